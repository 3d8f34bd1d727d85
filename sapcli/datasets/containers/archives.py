"""Data folders that come as a tar or zip archive, unpacked within bounds that no hostile archive can move.

Beside the files themselves nothing is read that is larger than a header can need, and what is unpacked is bounded by
the archive's own size. It lies among the temporary files, in a folder that its process keeps locked: what a killed
process has left is not, and the next one removes it.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import importlib.util
import io
import lzma
import os
import secrets
import shutil
import stat
import struct
import tarfile
import tempfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import IO, cast

from sapcli.datasets.formats import open_regular
from sapcli.errors import DatasetError
from sapcli.machine.files import remove_at_end

try:
    import fcntl
except ImportError:  # Windows, where folders of killed processes stay
    fcntl = None  # type: ignore[assignment]

_SUFFIXES = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
    *(".tar.zstd", ".zip"),
)
_PREFIX = "sap-data-"
_LOCK = "lock"
# A folder that was made so short a time ago may not have its lock yet.
_SECONDS_TO_LOCK, _SECONDS_WITHOUT_LOCK = 60.0, 86400.0
_READ_AT_ONCE = 1 << 16
# Bytes between two files: long names and extended headers.
_HEADER_BYTES = 1 << 20
_LONGEST_NAME, _DEEPEST_NAME = 2048, 64
# Images hardly compress; pictures of one colour do, a hundredfold.
_UNPACKED_BYTES, _TIMES_THE_ARCHIVE = 1 << 30, 100
_MEMBERS, _BYTES_PER_MEMBER = 100_000, 100
_SHARE_OF_THE_DISK = 0.9
# `xz -9` needs 65 MiB to unpack.
_XZ_MEMORY = 128 << 20
_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
# `zstd --ultra -22` needs a window of 128 MiB.
_ZSTD_WINDOW_LOG = 27
_LINK_MODE = 0o120000


def archive_suffixes() -> tuple[str, ...]:
    """What the names of archives end in."""
    return _SUFFIXES


def is_archive(path: Path) -> bool:
    """Whether the name is that of a tar archive, compressed or not, or of a zip archive."""
    return path.name.lower().endswith(_SUFFIXES)


def unpacked_archive(path: Path) -> Path:
    """Unpack an archive of a data folder; an unchanged archive is unpacked once in a process.

    Returns:
        A folder among the temporary files that is removed when the process ends; where the archive holds nothing but a
        single folder, that folder.

    Raises:
        DatasetError: If it is no archive, is damaged, holds links or a path that leads outside, is larger inside
            than archives of images are, or does not fit.
    """
    try:
        status = path.stat()
        facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        folder = _unpacked(Path(os.path.realpath(path)), facts)
        entries = list(folder.iterdir())
    except (_Refused, tarfile.FilterError) as error:
        raise DatasetError(
            f"{path}: refused to unpack the archive: {error}", "Unpack it yourself and give the folder instead."
        ) from error
    except _DAMAGED as error:
        raise DatasetError(
            f"{path}: cannot unpack the archive: {error}",
            "Check that it is a complete tar or zip archive and fits the disk.",
        ) from error
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


def remove_abandoned() -> None:
    """Remove the folders of processes that were killed before they could."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(Path(entry.path))


class _Refused(tarfile.TarError):
    """Something inside of an archive that is beyond the bounds, or could lead outside the folder."""


_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, MemoryError, OSError, EOFError, ValueError),
    *(ArithmeticError, RecursionError, NotImplementedError, RuntimeError, struct.error),
)


@functools.cache
def _unpacked(path: Path, _facts: tuple[int, ...]) -> Path:
    remove_abandoned()
    with os.fdopen(open_regular(path), "rb") as file:
        folder = _locked_folder(path.name)
        size = os.fstat(file.fileno()).st_size
        free = int(shutil.disk_usage(folder).free * _SHARE_OF_THE_DISK)
        most, members = min(max(_UNPACKED_BYTES, _TIMES_THE_ARCHIVE * size), free), _MEMBERS + size // _BYTES_PER_MEMBER
        try:
            if file.read(len(_ZIP[0])) in _ZIP:
                _unzip(file, folder, most, members)
            else:
                file.seek(0)
                _unpack(_Bounded(_decompressed(file), most), folder, members)
        except BaseException:
            shutil.rmtree(folder.parent, ignore_errors=True)
            raise
    return folder


def _unpack(stream: _Bounded, folder: Path, members: int) -> None:
    """Unpack the files of a tar stream one after the other."""
    with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", bufsize=_READ_AT_ONCE) as archive:
        count = 0
        while (member := archive.next()) is not None:
            count += 1
            if count > members:
                raise _Refused(f"it has more than {members:,} members")
            _check_member(member)
            stream.header_bytes = None
            # Times, owners and permissions are of no use here, and can have any value.
            archive.extract(member, folder, set_attrs=False, filter="data")
            stream.header_bytes = _HEADER_BYTES
            # What it would remember of all that went before, though a stream cannot go back.
            archive.members = []  # type: ignore[attr-defined]
            archive.pax_headers = {}


def _unzip(file: IO[bytes], folder: Path, most: int, members: int) -> None:
    """Unpack the files of a zip archive one after the other."""
    root = os.path.realpath(folder)
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if len(infos) > members:
            raise _Refused(f"it has more than {members:,} members")
        if sum(info.file_size for info in infos) > most:
            raise _Refused(f"more than {most / 1e6:,.0f} MB are in it")
        for info in infos:
            _check_name(info.filename)
            name = f"{info.filename[:100]}..." if len(info.filename) > 100 else info.filename
            if stat.S_IFMT(info.external_attr >> 16) == _LINK_MODE:
                raise _Refused(f"{name!r} is a link")
            if info.flag_bits & 1:
                raise _Refused(f"{name!r} is encrypted")
            # Some programs of Windows write its own slashes.
            inside = info.filename.replace("\\", "/").lstrip("/")
            place = os.path.normpath(os.path.join(root, inside))  # noqa: PTH118
            if not f"{place}/".startswith(f"{root}/"):
                raise _Refused(f"{name!r} would be extracted outside of the folder")
            if info.is_dir():
                os.makedirs(place, exist_ok=True)  # noqa: PTH103
                continue
            os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Python unpacks a piece of the others at once, however much comes of it.
                raise _Refused(f"{name!r} is compressed in an unusual way")
            # Reading ends where the directory says that the member ends, whatever comes.
            with archive.open(info) as source, open(place, "wb") as target:  # noqa: PTH123
                shutil.copyfileobj(source, target, _READ_AT_ONCE)


def _check_name(name: str) -> None:
    if len(os.fsencode(name)) > _LONGEST_NAME or name.count("/") > _DEEPEST_NAME:
        raise _Refused(f"the name {name[:100]!r} is too long or lies too deep")


def _check_member(member: tarfile.TarInfo) -> None:
    # A name may be as long as a header.
    name = member.name if len(member.name) <= 100 else f"{member.name[:100]}..."
    if member.issym() or member.islnk():
        raise _Refused(f"{name!r} is a link")
    if member.issparse():
        raise _Refused(f"{name!r} is a sparse file")
    if not member.isfile() and not member.isdir():
        raise _Refused(f"{name!r} is no file")
    _check_name(member.name)


class _Bounded:
    """A stream to read from up to a number of bytes, and at times up to a smaller one.

    Attributes:
        header_bytes: How many bytes may be read now; `None` while a file is unpacked.
    """

    def __init__(self, stream: IO[bytes] | _Unxz, most: int) -> None:
        self._stream = stream
        self._left = self._most = most
        self.header_bytes: int | None = _HEADER_BYTES

    def read(self, size: int) -> bytes:
        """The next bytes; fewer at the end."""
        content = self._stream.read(min(size, _READ_AT_ONCE))
        self._left -= len(content)
        if self._left < 0:
            raise _Refused(f"more than {self._most / 1e6:,.0f} MB are in it")
        if self.header_bytes is not None:
            self.header_bytes -= len(content)
            if self.header_bytes < 0:
                raise _Refused(f"a header of more than {_HEADER_BYTES:,} bytes")
        return content


def _decompressed(file: IO[bytes]) -> IO[bytes] | _Unxz:
    """What is in a file that may be compressed in one of the usual ways."""
    start = file.read(len(_XZ))
    file.seek(0)
    if start.startswith(_GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    if start.startswith(_BZIP2):
        return io.BufferedReader(bz2.BZ2File(file))
    if start.startswith(_ZSTD):
        return _unzstd(file)
    return _Unxz(file) if start == _XZ else file


def _unzstd(file: IO[bytes]) -> IO[bytes]:
    """What is in a zstd file, by whichever package reads it here."""
    if importlib.util.find_spec("zstandard") is not None:
        import zstandard

        reader = zstandard.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW_LOG)
        return cast("IO[bytes]", reader.stream_reader(file, read_across_frames=True))
    if importlib.util.find_spec("pyarrow") is not None:
        import pyarrow

        # Its window is bounded by the library's own default, which is the same.
        return cast("IO[bytes]", pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd"))
    raise _Refused("zstd needs a package to be read (pip install zstandard)")


class _Unxz:
    """What is in an xz file; unlike the standard library's reader, it takes no more memory than it may."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decompressor = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def read(self, size: int) -> bytes:
        """The next bytes; fewer at the end."""
        while True:
            if self._decompressor.eof:
                # Streams may follow each other, with zeros between them.
                rest = self._decompressor.unused_data.lstrip(b"\0") or self._file.read(_READ_AT_ONCE).lstrip(b"\0")
                if not rest:
                    return b""
                self._decompressor = self._new()
                content = self._decompressor.decompress(rest, size)
            elif self._decompressor.needs_input:
                compressed = self._file.read(_READ_AT_ONCE)
                if not compressed:
                    raise EOFError("it ends in the middle of its compressed data")
                content = self._decompressor.decompress(compressed, size)
            else:
                content = self._decompressor.decompress(b"", size)
            if content:
                return content


def _locked_folder(name: str) -> Path:
    """A new folder of that name for this process, beside whose name a lock tells others that the process lives."""
    place = Path(tempfile.gettempdir(), f"{_PREFIX}{secrets.token_hex(8)}")
    remove_at_end(place)
    place.mkdir(mode=0o700)
    if fcntl is not None:
        # It stays open, and so locked, until the process ends in whatever way.
        fcntl.flock(os.open(place / _LOCK, os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX | fcntl.LOCK_NB)
    folder = place / (_LOCK.upper() if name == _LOCK else name)
    folder.mkdir()
    return folder


def _remove_if_abandoned(place: Path) -> None:
    """Remove a folder of this user that no process has locked."""
    status = place.stat()
    age = time.time() - status.st_mtime
    if fcntl is None or status.st_uid != os.getuid() or age < _SECONDS_TO_LOCK:
        return
    try:
        lock = os.open(place / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        # Killed before it had one, or of a version that made none and may be alive.
        if age < _SECONDS_WITHOUT_LOCK:
            return
    else:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where the process lives
        finally:
            os.close(lock)
    shutil.rmtree(place, ignore_errors=True)
