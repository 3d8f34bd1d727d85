"""Files by their contents: whatever is changed is noticed, and what is not is not read again."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sapcli.datasets.file_digests
from sapcli.datasets.file_digests import FileDigests, file_digest
from sapcli.machine.cache import Cache
from sapcli.machine.progress import SilentProgress

PATHS = ("a", "b/c", "d")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    for number, path in enumerate(PATHS):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(bytes([number]) * 1000)
    return place


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have changes of a moment ago count as long past, and forget what this process knows."""
    monkeypatch.setattr(sapcli.datasets.file_digests, "_SETTLED_NS", 0)
    sapcli.datasets.file_digests._remembered.clear()
    yield
    sapcli.datasets.file_digests._remembered.clear()


def digests(folder: Path, cache: Path | None = None, paths: tuple[str, ...] = PATHS) -> tuple[bytes, ...]:
    """What another process would find."""
    sapcli.datasets.file_digests._remembered.clear()
    kept = None if cache is None else Cache(cache, SilentProgress())
    return FileDigests(kept).of(folder, paths)


def expected(folder: Path) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256((folder / path).read_bytes()).digest() for path in PATHS)


def replace_in_place(path: Path) -> None:
    path.write_bytes(b"x" * 1000)


def replace_by_rename(path: Path) -> None:
    path.with_name("new").write_bytes(b"x" * 1000)
    path.with_name("new").replace(path)


def replace_by_copy(path: Path) -> None:
    """As `cp -p` and `rsync -t` do."""
    other = path.parent.parent / "other"
    other.write_bytes(b"x" * 1000)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    shutil.copy2(other, path)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [replace_in_place, replace_by_rename, replace_by_copy])
@pytest.mark.parametrize("with_cache", [False, True])
def test_other_content_of_the_same_size_and_time_is_noticed(
    folder: Path, tmp_path: Path, change: object, with_cache: bool
) -> None:
    cache = tmp_path / "cache" if with_cache else None
    before = digests(folder, cache)
    status = (folder / "a").stat()
    time.sleep(0.02)  # a tick of the file system's clock
    change(folder / "a")  # type: ignore[operator]
    os.utime(folder / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (folder / "a").stat().st_size == status.st_size
    after = digests(folder, cache)
    assert after == expected(folder)
    assert after[0] != before[0]
    assert after[1:] == before[1:]


@pytest.mark.usefixtures("settled")
def test_what_is_unchanged_is_not_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert digests(folder, tmp_path / "cache") == expected(folder)
    read: list[str] = []
    whole = sapcli.datasets.file_digests._read

    def noted(path: str) -> object:
        read.append(path)
        return whole(path)

    monkeypatch.setattr(sapcli.datasets.file_digests, "_read", noted)
    assert digests(folder, tmp_path / "cache") == expected(folder)
    assert read == []
    # One that is new is read, and the others are still known; so they are to a list that names only some of them.
    (folder / "d").write_bytes(b"new")
    assert digests(folder, tmp_path / "cache", ("d",)) == expected(folder)[2:]
    assert digests(folder, tmp_path / "cache") == expected(folder)
    assert read == [f"{folder}/d"]
    assert file_digest(f"{folder}/d") == (3, expected_of(folder / "d"))
    assert read == [f"{folder}/d"]


def test_what_was_changed_a_moment_ago_is_not_trusted_to_stay(folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_bytes(b"1" * 1000)
    digests(folder, tmp_path / "cache")
    assert sapcli.datasets.file_digests._remembered == {}
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("content", [b"x", b"", bytes(48 * 3)])
def test_a_table_that_is_damaged_or_of_others_changes_nothing(folder: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "cache"
    digests(folder, cache)
    (table,) = (path for path in cache.iterdir() if not path.suffix)
    table.write_bytes(content)
    table.with_name(table.name + ".sha256").write_text(hashlib.sha256(content).hexdigest())
    assert digests(folder, cache) == expected(folder)


@pytest.mark.usefixtures("settled")
def test_what_is_no_file_has_no_content_and_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    (folder / "a").unlink()
    os.mkfifo(folder / "a")
    (folder / "d").unlink()
    (folder / "d").symlink_to("/dev/zero")
    found = digests(folder, tmp_path / "cache", (*PATHS, "gone", "b", "nul\0"))
    assert found == (b"", expected_of(folder / "b/c"), b"", b"", b"", b"")


def expected_of(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
