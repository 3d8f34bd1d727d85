"""One cache folder for eight processes, and entries that were damaged: the result stays the same, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import project_arguments, repaired, start
from support.small_project import Project


def test_eight_processes_on_one_cache(project: Project, expected: bytes) -> None:
    runs = [
        start(project.folder, project_arguments(f"out-{number}.safetensors", "--workers", "0")) for number in range(8)
    ]
    assert [run.wait() for run in runs] == [0] * 8
    assert [(project.folder / f"out-{number}.safetensors").read_bytes() for number in range(8)] == [expected] * 8
    assert not list((project.folder / "cache").glob(".sap-*.tmp"))


def flip(content: bytes, place: float, bit: int) -> bytes:
    """One bit changed, at a place from 0 (the first byte) to 1 (the last)."""
    index = round(place * (len(content) - 1))
    return content[:index] + bytes([content[index] ^ 1 << bit]) + content[index + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "first bit": lambda content: flip(content, 0, 0),
    "a bit of the header": lambda content: flip(content, 0.02, 3),
    "a bit in the middle": lambda content: flip(content, 0.5, 6),
    "last bit": lambda content: flip(content, 1, 7),
    "half": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "empty": lambda _: b"",
    "longer": lambda content: content + b"\0",
    "another one": lambda _: b"nothing that was ever here",
}


def entries(cache: Path) -> dict[str, bytes]:
    """The files of a cache, but for what it knows of files that were not changed for a while: that comes with time."""
    return {path.name: path.read_bytes() for path in cache.iterdir() if not path.name.startswith("digests-")}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_entries_are_made_again(project: Project, expected: bytes, damage: str) -> None:
    assert repaired(project) == expected
    cache = project.folder / "cache"
    before = entries(cache)
    assert len(before) >= 6  # three entries and their checksums
    for damaged in [*([name] for name in before), list(before)]:
        for name in damaged:
            (cache / name).write_bytes(DAMAGES[damage](before[name]))
        (project.folder / "out.safetensors").unlink()
        assert repaired(project) == expected, damaged
    assert entries(cache) == before


def test_an_entry_that_cannot_be_read_costs_only_time(project: Project, expected: bytes) -> None:
    assert repaired(project) == expected
    for path in (project.folder / "cache").iterdir():
        path.unlink()
        path.mkdir()
        (path / "inside").write_bytes(b"")
    (project.folder / "out.safetensors").unlink()
    assert repaired(project) == expected


def test_a_cache_that_is_no_folder_costs_only_time(project: Project, expected: bytes) -> None:
    (project.folder / "cache").write_bytes(b"")
    run = start(project.folder, project_arguments())
    assert run.wait() == 0
    assert "warning: the cache cannot be used" in run.said()
    assert (project.folder / "out.safetensors").read_bytes() == expected


def test_links_in_the_cache_are_not_followed_to_be_written(project: Project, tmp_path: Path, expected: bytes) -> None:
    assert repaired(project) == expected
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    for path in (project.folder / "cache").iterdir():
        path.unlink()
        path.symlink_to(precious)
    (project.folder / "out.safetensors").unlink()
    assert repaired(project) == expected
    assert precious.read_bytes() == b"mine"
