"""Tests of the cache: what is found again, damage, eviction, folders that cannot be written, several processes."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sapcli.machine.cache
from sapcli.errors import CheckpointError
from sapcli.machine.cache import Cache
from sapcli.machine.files import atomic_write
from sapcli.machine.progress import SilentProgress


class Warnings(SilentProgress):
    """Remembers what it is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        """Remember a warning."""
        self.said.append(text)


class Making:
    """Makes a text, and counts how often."""

    def __init__(self, text: str = "content") -> None:
        self.text = text
        self.times = 0

    def __call__(self) -> str:
        """Make it."""
        self.times += 1
        return self.text


def write(text: str, path: Path) -> None:
    with atomic_write(path) as handle:
        handle.write(text.encode())


def fetch(cache: Cache, make: Making, parts: dict[str, object] | None = None) -> str:
    return cache.fetch("texts", parts or {"number": 1}, make, Path.read_text, write)


@pytest.fixture
def progress() -> Warnings:
    return Warnings()


@pytest.fixture
def cache(tmp_path: Path, progress: Warnings) -> Cache:
    return Cache(tmp_path / "cache", progress)


def entry_of(cache: Cache) -> Path:
    (path,) = [path for path in cache.folder.iterdir() if path.suffix != ".sha256"]
    return path


def test_what_was_made_is_found_again(cache):
    make = Making()
    assert not cache.has("texts", {"number": 1})
    assert [fetch(cache, make), fetch(cache, make)] == ["content", "content"]
    assert make.times == 1
    assert cache.has("texts", {"number": 1})


@pytest.mark.parametrize("other", [{"number": 2}, {"number": "1"}, {"number": 1, "more": None}, {}])
def test_other_parts_are_another_entry(cache, other):
    fetch(cache, Making())
    make = Making("other")
    assert cache.fetch("texts", other, make, Path.read_text, write) == "other"


def test_the_order_of_parts_does_not_matter(cache):
    make = Making()
    fetch(cache, make, {"a": 1, "b": 2})
    fetch(cache, make, {"b": 2, "a": 1})
    assert make.times == 1


def test_entries_of_another_version_are_not_found(cache, monkeypatch):
    make = Making()
    fetch(cache, make)
    monkeypatch.setattr(sapcli.machine.cache, "_VERSION", sapcli.machine.cache._VERSION + 1)
    fetch(cache, make)
    assert make.times == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "no checksum", "bad checksum"])
def test_damage_is_noticed_and_mended(cache, damage):
    make = Making()
    fetch(cache, make)
    path = entry_of(cache)
    checksum = path.with_name(path.name + ".sha256")
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "remove":
        path.unlink()
    elif damage == "no checksum":
        checksum.unlink()
    else:
        checksum.write_bytes(b"\xff" * 64)
    assert fetch(cache, make) == "content"
    assert make.times == 2
    assert fetch(cache, make) == "content"
    assert make.times == 2


def test_an_entry_that_cannot_be_read_is_made_again(cache):
    def refuse(_path: Path) -> str:
        raise CheckpointError("not what it was", "make it again")

    make = Making()
    fetch(cache, make)
    assert cache.fetch("texts", {"number": 1}, make, refuse, write) == "content"
    assert make.times == 2


def test_a_failure_to_make_leaves_nothing(cache):
    def fail() -> str:
        raise CheckpointError("no", "never")

    with pytest.raises(CheckpointError):
        cache.fetch("texts", {"number": 1}, fail, Path.read_text, write)
    assert cache.info().entries == 0


def test_info_and_clear(cache):
    fetch(cache, Making("four"), {"number": 1})
    fetch(cache, Making("sixsix"), {"number": 2})
    assert (cache.info().entries, cache.info().bytes) == (2, 10)
    assert cache.clear().entries == 2
    assert cache.info().entries == 0
    assert list(cache.folder.iterdir()) == []


def test_a_folder_that_is_not_there_is_empty(tmp_path, progress):
    cache = Cache(tmp_path / "none", progress)
    assert cache.info().entries == 0
    assert cache.clear().entries == 0
    assert not (tmp_path / "none").exists()


def test_unfinished_entries_of_a_killed_process_are_counted_and_cleared(cache):
    make = Making()
    fetch(cache, make)
    path = entry_of(cache)
    path.with_name(path.name + ".sha256").unlink()
    assert cache.info().entries == 1
    cache.clear()
    assert list(cache.folder.iterdir()) == []


def test_foreign_files_are_never_removed(cache):
    fetch(cache, Making())
    foreign = cache.folder / "notes.txt"
    foreign.write_text("mine")
    cache.clear()
    assert foreign.read_text() == "mine"


def used(cache: Cache, number: int, seconds_ago: float) -> None:
    """Fetch an entry of 100 bytes, and let its last use be so long ago."""
    before = set(cache.folder.glob("*.sha256"))
    fetch(cache, Making("x" * 100), {"number": number})
    for checksum in set(cache.folder.glob("*.sha256")) - before:
        os.utime(checksum, (time.time() - seconds_ago,) * 2)


def test_the_least_recently_used_entries_give_way(tmp_path, progress):
    cache = Cache(tmp_path, progress, limit_bytes=350)
    for number, hours in ((1, 5), (2, 9), (3, 7)):
        used(cache, number, 3600 * hours)
    make = Making("x" * 100)
    fetch(cache, make, {"number": 2})  # used again, so not the oldest any more
    assert make.times == 0
    used(cache, 4, 0)
    assert [cache.has("texts", {"number": number}) for number in (1, 2, 3, 4)] == [True, True, False, True]
    assert cache.info().bytes == 300


def test_what_is_in_use_or_new_is_never_evicted(tmp_path, progress):
    cache = Cache(tmp_path, progress, limit_bytes=1)
    used(cache, 1, 10)
    used(cache, 2, 3600)
    used(cache, 3, 10)
    assert [cache.has("texts", {"number": number}) for number in (1, 2, 3)] == [True, False, True]


def test_a_folder_that_cannot_be_made_only_costs_time(tmp_path, progress):
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache", progress)
    make = Making()
    assert [fetch(cache, make), fetch(cache, make, {"number": 2})] == ["content", "content"]
    assert make.times == 2
    assert len(progress.said) == 1
    assert progress.said[0].startswith("the cache cannot be used, later runs start over: ")
    assert cache.info().entries == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_only_readable_is_still_read(cache, progress):
    make = Making()
    fetch(cache, make)
    cache.folder.chmod(0o500)
    try:
        assert fetch(cache, make) == "content"
        fetch(cache, make, {"number": 2})
    finally:
        cache.folder.chmod(0o700)
    assert make.times == 2
    assert len(progress.said) == 1


def test_a_failed_write_keeps_the_content(cache, progress):
    def fail(_content: str, _path: Path) -> None:
        raise OSError(28, "No space left on device")

    make = Making()
    assert cache.fetch("texts", {}, make, Path.read_text, fail) == "content"
    assert "No space left on device" in progress.said[0]
    assert cache.info().entries == 0


def test_the_folder_comes_from_the_environment(tmp_path, progress, monkeypatch):
    monkeypatch.setenv("SAP_CACHE", str(tmp_path / "elsewhere"))
    assert Cache(None, progress).folder == tmp_path / "elsewhere"
    monkeypatch.delenv("SAP_CACHE")
    assert Cache(None, progress).folder.name == "sap"


def test_many_at_once_all_get_the_content(tmp_path):
    warnings = Warnings()
    wrong: list[object] = []

    def work(seed: int) -> None:
        cache = Cache(tmp_path, warnings, limit_bytes=2000)
        for step in range(60):
            number = (seed + step) % 7
            text = str(number) * 500
            found = cache.fetch("texts", {"number": number}, lambda text=text: text, Path.read_text, write)
            if found != text:
                wrong.append((number, found))
            if step % 20 == seed:
                cache.clear()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert not wrong


def test_an_entry_that_is_gone_before_it_is_read_is_made_again(tmp_path):
    cache = Cache(tmp_path, Warnings())
    assert cache.fetch("texts", {}, lambda: "made", Path.read_text, write) == "made"

    def read(path: Path) -> str:
        cache.clear()
        return path.read_text()

    assert cache.fetch("texts", {}, lambda: "made again", read, write) == "made again"


def test_an_entry_under_the_name_of_another_is_not_believed(cache):
    fetch(cache, Making("one"), {"number": 1})
    first = entry_of(cache)
    fetch(cache, Making("two"), {"number": 2})
    (second,) = [path for path in cache.folder.iterdir() if path.suffix != ".sha256" and path != first]
    for suffix in ("", ".sha256"):
        Path(f"{second}{suffix}").write_bytes(Path(f"{first}{suffix}").read_bytes())
    make = Making("two")
    assert fetch(cache, make, {"number": 2}) == "two"
    assert make.times == 1


def test_an_entry_of_another_kind_is_not_believed(cache):
    fetch(cache, Making("text"), {"number": 1})
    entry = entry_of(cache)
    for suffix in ("", ".sha256"):
        Path(f"{entry}{suffix}").rename(cache.folder / (entry.name.replace("texts", "scores") + suffix))
    make = Making("scores")
    assert cache.fetch("scores", {"number": 1}, make, Path.read_text, write) == "scores"


@pytest.mark.parametrize("error", [RecursionError, KeyError, MemoryError, RuntimeError, UnicodeError, AssertionError])
def test_whatever_is_wrong_with_an_entry_it_is_made_again(cache, error):
    def refuse(_path: Path) -> str:
        raise error("no")

    make = Making()
    fetch(cache, make)
    assert cache.fetch("texts", {"number": 1}, make, refuse, write) == "content"
    assert make.times == 2


FOREIGN = (
    "thesis-final_version_of_december_2025.tex",
    "holiday-" + "x" * 32,
    "photos-" + "0123456789abcdef" * 2,
    "scores-" + "0123456789ABCDEF" * 2,
    "my scores-" + "0123456789abcdef" * 2,
    "scores-" + "0123456789abcdef" * 2 + ".png",
)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_nothing_that_only_looks_like_an_entry_is_removed(tmp_path, progress, limit):
    for name in FOREIGN:
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / ("bases-" + "0" * 32)).symlink_to(FOREIGN[0])
    (tmp_path / ("trusted-" + "0" * 32)).mkdir()
    cache = Cache(tmp_path, progress, limit_bytes=limit)
    fetch(cache, Making())
    assert cache.clear().entries == 1
    assert all((tmp_path / name).read_text() == "mine" for name in FOREIGN)
    assert len(list(tmp_path.iterdir())) == len(FOREIGN) + 2


@pytest.mark.parametrize(("mode", "is_used"), [(0o777, False), (0o772, False), (0o1777, True), (0o770, True)])
def test_a_folder_that_everybody_may_write_to_is_not_used(cache, progress, mode, is_used):
    make = Making()
    fetch(cache, make)
    cache.folder.chmod(mode)
    assert [fetch(cache, make), fetch(cache, make)] == ["content", "content"]
    assert (make.times == 1) == is_used
    assert len(progress.said) == (not is_used)


def test_a_folder_and_entries_of_another_user_are_not_used(cache, progress, monkeypatch):
    make = Making()
    fetch(cache, make)
    # Who looks has another number than who wrote; numbers other than the superuser's make the difference.
    owner = os.stat_result((*entry_of(cache).stat()[:4], 4321, *entry_of(cache).stat()[5:]))
    monkeypatch.setattr(Path, "lstat", lambda _path: owner)
    assert fetch(cache, make) == "content"
    assert make.times == 2
    monkeypatch.setattr(Path, "stat", lambda _path, **_more: owner)
    assert fetch(cache, make) == "content"
    assert make.times == 3
    assert "belongs to another user" in progress.said[0]
