"""Files that appear whole or not at all, and pipes."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest

from sapcli.errors import CheckpointError, SapError
from sapcli.machine.files import atomic_write, atomic_writes, spool_pipe


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with atomic_write(target) as handle:
        handle.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert names_in(tmp_path) == ["out"]


def test_a_new_file_has_the_rights_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o444])
def test_a_replaced_file_keeps_its_rights(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    target.chmod(mode)
    with atomic_write(target) as handle:
        handle.write(b"new")
        (temporary,) = tmp_path.glob(".sap-*.tmp")
        assert temporary.stat().st_mode & 0o777 == mode
    assert target.stat().st_mode & 0o777 == mode
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("how", ["file", "link to a file", "hard link"])
def test_a_file_that_has_appeared_is_not_replaced(
    tmp_path: Path, how: str, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, target = tmp_path / "other", tmp_path / "out"
    other.write_bytes(b"theirs")
    appear = {
        "file": lambda: target.write_bytes(b"theirs"),
        "link to a file": lambda: target.symlink_to("other"),
        "hard link": lambda: os.link(other, target),
    }[how]

    def write(handle: IO[bytes]) -> None:
        handle.write(b"ours")
        appear()
        if not links:
            monkeypatch.setattr(os, "link", no_links)

    with pytest.raises(SapError, match="has appeared"), atomic_write(target, replace=False) as handle:
        write(handle)
    monkeypatch.undo()
    assert target.read_bytes() == b"theirs"
    assert other.read_bytes() == b"theirs"
    assert names_in(tmp_path) == ["other", "out"]


def no_links(*_names: object) -> None:
    """What a file system without links answers."""
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_gets_its_name_without_replacing(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with atomic_write(tmp_path / "out", replace=False) as handle:
        handle.write(b"ours")
    assert (tmp_path / "out").read_bytes() == b"ours"
    assert names_in(tmp_path) == ["out"]


def test_of_several_files_none_stays_where_one_cannot_have_its_name(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(SapError, match="b has appeared"), atomic_writes(paths, replace=False):
        (tmp_path / "b").write_bytes(b"theirs")
    assert names_in(tmp_path) == ["b"]


def test_only_temporary_files_of_ours_are_swept_away(tmp_path: Path) -> None:
    names = (".sap-0123456789abcdef.tmp", ".sap-holiday.tmp", ".sap-0123456789ABCDEF.tmp")
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (1, 1))
    with atomic_write(tmp_path / "out"):
        pass
    assert names_in(tmp_path) == sorted(["out", *names[1:]])


def test_a_name_as_long_as_allowed(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("n" * 255)) as handle:
        handle.write(b"x")
    assert names_in(tmp_path) == ["n" * 255]


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing_behind(tmp_path: Path, exception: type[BaseException]) -> None:
    (tmp_path / "b").write_bytes(b"old")

    def fail_after_writing(handles: list[IO[bytes]]) -> None:
        for handle in handles:
            handle.write(b"x" * 100_000)
        raise exception

    with pytest.raises(exception), atomic_writes([tmp_path / "a", tmp_path / "b"]) as handles:
        fail_after_writing(handles)
    assert names_in(tmp_path) == ["b"]
    assert (tmp_path / "b").read_bytes() == b"old"


def test_several_files_get_their_names_only_when_all_can(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(SapError, match="b: Is a directory"), atomic_writes([tmp_path / "a", tmp_path / "b"]):
        pass
    assert names_in(tmp_path) == ["b"]


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    with atomic_write(tmp_path / "link") as handle:
        handle.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"x"


def test_a_device_is_written_to_and_not_replaced() -> None:
    with atomic_write(Path("/dev/null")) as handle:
        handle.write(b"x")
    assert Path("/dev/null").is_char_device()


def test_a_full_disk_behind_a_device() -> None:
    with (
        pytest.raises(CheckpointError, match="No space left") as caught,
        atomic_write(Path("/dev/full"), CheckpointError) as handle,
    ):
        handle.write(b"x" * 100_000)
    assert "space" in caught.value.hint


def test_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(SapError, match="File too large"), atomic_write(tmp_path / "out") as handle:
            handle.write(b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "number"),
    [("missing/out", errno.ENOENT), ("file/out", errno.ENOTDIR), ("", errno.EISDIR)],
)
def test_a_place_where_no_file_can_be(tmp_path: Path, path: str, number: int) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SapError, match=os.strerror(number)) as caught, atomic_write(tmp_path / path):
        pass
    assert caught.value.hint
    assert names_in(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SapError, match="Permission denied"), atomic_write(tmp_path / "out"):
        pass
    tmp_path.chmod(0o700)


def test_a_closed_pipe_stays_a_broken_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def write_to_nobody(handle: IO[bytes]) -> None:
        os.close(reader)
        handle.write(b"x" * 100_000)

    with pytest.raises(BrokenPipeError), atomic_write(pipe) as handle:
        write_to_nobody(handle)
    assert pipe.is_fifo()


def test_a_killed_writer_leaves_no_file_under_the_final_name(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from typing import IO
from sapcli.machine.files import atomic_write
with atomic_write(Path(sys.argv[1])) as handle:
    handle.write(b"x" * 100_000)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert not (tmp_path / "out").exists()


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = bytes(range(256)) * 1000
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    with spool_pipe(pipe) as copy:
        assert copy.read() == content
    writer.join()


def test_a_pipe_whose_writer_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapcli.machine.files._SECONDS_FOR_A_WRITER", 0.01)
    reading, writing = os.pipe()
    later = threading.Timer(0.2, lambda: (os.write(writing, b"late"), os.close(writing)))
    later.start()
    with spool_pipe(Path(f"/dev/fd/{reading}")) as copy:
        assert copy.read() == b"late"
    later.join()
    os.close(reading)


def test_a_pipe_without_a_writer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapcli.machine.files._SECONDS_FOR_A_WRITER", 0.01)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SapError, match="nobody writes"):
        spool_pipe(tmp_path / "pipe")
