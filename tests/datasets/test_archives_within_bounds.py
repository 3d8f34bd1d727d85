"""Archives that are made to take memory, disk or time, and what killed processes leave of honest ones."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.data_folders import CLASSES, opened, write_classes
from support.memory import peak_of

import sapcli.datasets.containers.archives
from sapcli.datasets.containers.archives import unpacked_archive
from sapcli.errors import DatasetError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def header(name: str, kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def long_name(megabytes: int) -> bytes:
    return header("././@LongLink", tarfile.GNUTYPE_LONGNAME, megabytes << 20)


def extended_header(megabytes: int) -> bytes:
    return header("x", tarfile.XHDTYPE, megabytes << 20)


def global_header(megabytes: int) -> bytes:
    return header("x", tarfile.XGLTYPE, megabytes << 20)


def file_of_zeros(megabytes: int) -> bytes:
    return header("train/cat/a.png", tarfile.REGTYPE, megabytes << 20)


@pytest.mark.parametrize("start", [long_name, extended_header, global_header])
@pytest.mark.parametrize("opener", [gzip.open, bz2.open, lzma.open])
def test_a_header_of_hundreds_of_megabytes_is_not_read(
    tmp_path: Path, temporary: Path, start: Callable[[int], bytes], opener: Callable[..., io.BufferedIOBase]
) -> None:
    archive = tmp_path / "data.tar.gz"
    megabytes = 300 if opener is gzip.open else 40
    with opener(archive, "wb") as file:
        file.write(start(megabytes))
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
    with pytest.raises(DatasetError, match=r"refused to unpack the archive: a header of more than 1,048,576 bytes"):
        unpacked_archive(archive)
    assert list(temporary.iterdir()) == []


def test_the_peak_of_a_huge_header(tmp_path: Path) -> None:
    archive = tmp_path / "data.tar.gz"
    with gzip.open(archive, "wb", 1) as file:
        file.write(long_name(400))
        for _ in range(400):
            file.write(bytes(1 << 20))
    code = f"""
from pathlib import Path
from sapcli.datasets.containers.archives import unpacked_archive
from sapcli.errors import DatasetError
start()
try:
    unpacked_archive(Path({str(archive)!r}))
except DatasetError:
    pass
"""
    assert peak_of(code) < 30


@pytest.mark.parametrize("opener", [gzip.open, bz2.open, lzma.open])
def test_more_than_images_can_unpack_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opener: Callable[..., io.BufferedIOBase]
) -> None:
    monkeypatch.setattr(sapcli.datasets.containers.archives, "_UNPACKED_BYTES", 2 << 20)
    archive = tmp_path / "data.tar"
    with opener(archive, "wb") as file:
        file.write(file_of_zeros(8))
        file.write(bytes(8 << 20))
    with pytest.raises(DatasetError, match=r"more than [0-9]+ MB are in it"):
        unpacked_archive(archive)


def test_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sapcli.datasets.containers.archives, "_MEMBERS", 10)
    archive = tmp_path / "data.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for number in range(200):
            file.addfile(tarfile.TarInfo(f"cat/{number}.png"))
    with pytest.raises(DatasetError, match=r"more than [0-9]{2} members"):
        unpacked_archive(archive)


@pytest.mark.parametrize("name", ["d/" * 3000 + "z.png", "d/" * 100 + "z.png", "n" * 5000 + ".png"])
def test_names_that_are_too_long_or_deep_are_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as file:
        file.addfile(tarfile.TarInfo(name))
    with pytest.raises(DatasetError, match=r"refused to unpack the archive: the name .* too long or lies too deep"):
        unpacked_archive(archive)


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as file:
        member = tarfile.TarInfo("cat/a.png")
        member.type = kind
        file.addfile(member)
    with pytest.raises(DatasetError, match="refused to unpack"):
        unpacked_archive(archive)


@pytest.mark.parametrize("value", ["1e300", "-1e300", "nan", "inf", "1e18"])
def test_times_of_any_value_are_of_no_account(tmp_path: Path, value: str) -> None:
    archive = tmp_path / "data.tar"
    data = write_classes(tmp_path / "data")
    with tarfile.open(archive, "w") as file:
        for path in sorted(data.rglob("*.png")):
            member = file.gettarinfo(path, str(path.relative_to(data)))
            member.pax_headers = {"mtime": value}
            with path.open("rb") as content:
                file.addfile(member, content)
    assert opened(archive).paths == opened(data).paths


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tgz"])
def test_damage_anywhere_is_an_error_of_ours_or_harmless(tmp_path: Path, suffix: str) -> None:
    data = write_classes(tmp_path / "data")
    whole = io.BytesIO()
    kinds = {".tar": "w", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}
    with tarfile.open(fileobj=whole, mode=kinds.get(suffix, "w:gz")) as file:  # type: ignore[call-overload]
        file.add(data, "data")
    chance = random.Random(0)
    for number in range(30):
        content = bytearray(whole.getvalue())
        for _ in range(3):
            content[chance.randrange(len(content))] = chance.randrange(256)
        archive = tmp_path / f"{number}{suffix}"
        archive.write_bytes(content[: chance.randrange(len(content))] if number % 2 else content)
        with contextlib.suppress(DatasetError):
            unpacked_archive(archive)


def test_streams_of_xz_one_after_the_other(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data")
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as file:
        for name in CLASSES:
            file.add(data / name, name)
    content = plain.getvalue()
    parts = [lzma.compress(content[start : start + 3000]) for start in range(0, len(content), 3000)]
    (tmp_path / "data.tar.xz").write_bytes(b"\0\0\0\0".join(parts))
    assert opened(tmp_path / "data.tar.xz").fingerprint == opened(data).fingerprint


def test_an_archive_that_was_replaced_is_unpacked_again(tmp_path: Path) -> None:
    archive = tmp_path / "data.tar"
    found = []
    for level in (b"1", b"2"):
        with tarfile.open(archive, "w") as file:
            member = tarfile.TarInfo("cat/a.png")
            member.size = 1
            file.addfile(member, io.BytesIO(level))
        os.utime(archive, ns=(0, 0))
        found.append((unpacked_archive(archive) / "a.png").read_bytes())
        time.sleep(0.02)  # a tick of the file system's clock
    assert found == [b"1", b"2"]


# What killed processes leave

UNPACK = """
import os, signal, sys
from pathlib import Path
from sapcli.datasets.containers.archives import unpacked_archive
print(unpacked_archive(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def aged(folder: Path, seconds: float) -> None:
    long_ago = time.time() - seconds
    os.utime(folder, (long_ago, long_ago))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    data = write_classes(tmp_path / "data")
    with tarfile.open(tmp_path / "data.tar", "w") as file:
        file.add(data, "data")
    return tmp_path / "data.tar"


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(
    archive: Path, temporary: Path
) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", UNPACK, archive], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    folders = []
    for process in processes:
        assert process.stdout is not None
        folders.append(temporary / Path(process.stdout.readline().decode()).relative_to(temporary).parts[0])
    killed, living = folders
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait()
    for folder in folders:
        aged(folder, 3600)
    assert unpacked_archive(archive).is_dir()
    assert not killed.exists()
    assert (living / archive.name / "data" / "cat" / "0.png").is_file()
    processes[1].communicate(b"")
    assert not living.exists()


@pytest.mark.parametrize(("seconds", "stays"), [(10, True), (3600, True), (200_000, False)])
def test_a_folder_without_a_lock_may_be_in_use_for_a_day(
    archive: Path, temporary: Path, seconds: float, stays: bool
) -> None:
    other = temporary / "sap-data-0123456789abcdef"
    (other / "cat").mkdir(parents=True)
    aged(other, seconds)
    sapcli.datasets.containers.archives.remove_abandoned()
    assert other.exists() == stays


def test_only_folders_of_our_own_are_removed(temporary: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (temporary / "sap-data-link").symlink_to(precious)
    (temporary / "sap-data-file").write_text("a file")
    (temporary / "sap-other").mkdir()
    for path in (precious, temporary / "sap-other"):
        aged(path, 10**6)
    sapcli.datasets.containers.archives.remove_abandoned()
    assert precious.exists()
    assert sorted(path.name for path in temporary.iterdir()) == ["sap-data-file", "sap-data-link", "sap-other"]
