"""Files in general: writing that is whole or does not happen, and input that can be read only once."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import secrets
import select
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sapcli.errors import SapError
from sapcli.machine.results import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_SECONDS_FOR_A_WRITER = 2.0
# A temporary file that has not grown for so long belongs to a process that was killed.
_STALE_SECONDS = 3600.0

_TEMPORARY = re.compile(r"\.sap-[0-9a-f]{16}\.tmp")

_unfinished: set[Path] = set()
_places: set[Path] = set()
_told_of_places: list[Callable[[], None]] = []

_WRITE_HINTS = {
    errno.ENOSPC: "Free some space on the disk, or write to another one.",
    errno.EDQUOT: "Free some of your disk quota, or write to another disk.",
    errno.EFBIG: "Raise the limit on file sizes (`ulimit -f`), or write to another disk.",
    errno.ENOENT: "Create the folder first.",
    errno.ENOTDIR: "Name a file in an existing folder.",
    errno.EISDIR: "Name a file, not a folder.",
    errno.EACCES: "Choose a folder that you may write to.",
    errno.EPERM: "Choose a folder that you may write to.",
    errno.EROFS: "Choose a folder that you may write to.",
}


def remove_at_end(path: Path) -> None:
    """Have `remove_unfinished` remove a temporary file or folder; to be called before it is made."""
    _unfinished.add(path)
    if path.parent not in _places:
        _places.add(path.parent)
        for tell in _told_of_places:
            tell()


def tell_of_places(tell: Callable[[], None]) -> None:
    """Have something done when temporary files are about to be made in a folder that had none of this process yet."""
    _told_of_places.append(tell)


def unfinished() -> tuple[list[str], list[str]]:
    """What `remove_unfinished` would remove, and all folders where this process has made temporary files."""
    return [os.fspath(path) for path in list(_unfinished)], [os.fspath(place) for place in list(_places)]


def remove_unfinished_of(pid: int, unfinished: Sequence[str], places: Sequence[str]) -> None:
    """Remove what a process of this machine left behind that was killed: what its `unfinished` said, and since."""
    for name in unfinished:
        with contextlib.suppress(OSError):
            Path(name).unlink(missing_ok=True)
        shutil.rmtree(name, ignore_errors=True)
    for place in places:
        for path in Path(place).glob(f".sap-{pid:08x}*.tmp"):
            with contextlib.suppress(OSError):
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink()


def remove_unfinished() -> None:
    """Remove the temporary files and folders that this process has left, however it comes to its end."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


atexit.register(remove_unfinished)


@contextmanager
def atomic_write(path: Path, kind: type[SapError] = SapError, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """Write one file that appears under its name whole, or not at all.

    Args:
        path: The file to make or to replace.
        kind: The error to raise when it cannot be written.
        replace: Whether a file that has the name by then is replaced; otherwise it stays, and that is an error.

    Yields:
        The open file, which has its name only after the context was left without an exception.

    Raises:
        SapError: The file cannot be written, as `kind`.
    """
    with atomic_writes([path], kind, replace=replace) as (handle,):
        yield handle


@contextmanager
def atomic_writes(
    paths: Sequence[Path], kind: type[SapError] = SapError, *, replace: bool = True
) -> Iterator[list[IO[bytes]]]:
    """Write several files of which none appears under its name before all are whole and on the disk.

    Args:
        paths: The files; they get their names in this order, so a file that refers to the others comes last.
        kind: The error to raise when one cannot be written.
        replace: Whether files that have the names by then are replaced.

    Yields:
        The open files, in the order of `paths`.

    Raises:
        SapError: A file cannot be written, as `kind`. A closed pipe stays a `BrokenPipeError`.
    """
    with pending_files(paths, kind, replace=replace) as pending:
        yield [file.handle for file in pending]


@contextmanager
def pending_files(
    paths: Sequence[Path], kind: type[SapError] = SapError, *, replace: bool = True
) -> Iterator[list[_PendingFile]]:
    """As `atomic_writes`, with the files themselves, which can be given other names while they are written.

    Each is written to a temporary file in its own folder, which any exception removes. A symbolic link stays
    a link to the new content; what is no regular file (a pipe, `/dev/null`) is written to, never replaced.
    """
    pending: list[_PendingFile] = []
    path = paths[0]
    try:
        for path in paths:
            pending.append(_PendingFile(path))
            pending[-1].replace = replace
        yield pending
        for file in pending:
            path = file.path
            file.settle()
        for file in pending:
            path = file.path
            file.publish()
    except BaseException as error:
        for file in pending:
            file.discard()
        if isinstance(error, FileExistsError):
            raise kind(
                f"{path} has appeared since the run began, and is not replaced",
                "Name another file, or overwrite it with --force.",
            ) from error
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise write_error(str(path), error, kind) from error
        raise


def write_error(destination: str, error: OSError, kind: type[SapError] = SapError) -> SapError:
    """The error, of kind `kind`, that says why `destination` could not be written and what to do."""
    hint = _WRITE_HINTS.get(error.errno or 0, "Check the disk, or write to another one.")
    return kind(f"Cannot write {destination}: {error.strerror or error}", hint)


class _PendingFile:
    """A file that is being written and has not got its name yet.

    Attributes:
        path: Its name to be, as the user gave it.
        replace: Whether a file that has this name by then is replaced.
        handle: The open file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replace = True
        self._temporary: Path | None = None
        self._made: Path | None = None
        path = place_of(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            self.handle: IO[bytes] = path.open("wb")
            return
        self._target = Path(os.path.realpath(path))
        # The name is short, so that a target whose own name is as long as allowed can be written.
        temporary = self._target.with_name(f".sap-{os.getpid():08x}{secrets.token_hex(4)}.tmp")
        remove_at_end(temporary)
        # What was readable for its owner alone is so from the first byte on.
        mode = _mode(self._target)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
        self.handle = os.fdopen(descriptor, "wb")
        self._temporary = temporary
        if mode is not None:
            os.chmod(temporary, mode)  # noqa: PTH101 - beside the calls above
        _remove_stale(temporary)

    def name_by_content(self, name: str) -> None:
        """Have the file get another name in the same folder, which only this content has: it may be there already."""
        self.path, self._target = self.path.with_name(name), self._target.with_name(name)
        self.replace = True

    def settle(self) -> None:
        """Bring all bytes to the disk, where the errors that the system has put off come up."""
        self.handle.flush()
        if self._temporary is not None:
            os.fsync(self.handle.fileno())
        self.handle.close()

    def publish(self) -> None:
        """Give the file its name.

        Raises:
            FileExistsError: Another file has it, which is not to be replaced.
        """
        if self._temporary is None:
            return
        is_new = not os.path.lexists(self._target)
        if self.replace or not _linked(self._temporary, self._target):
            self._temporary.replace(self._target)
        else:
            self._temporary.unlink()
        self._made = self._target if is_new else None
        _unfinished.discard(self._temporary)
        self._temporary = None
        _sync_folder(self._target.parent)

    def discard(self) -> None:
        """Remove what was written, also where it has got its name before another of several files failed to."""
        # Closing writes what is buffered, which fails again where writing has failed.
        with contextlib.suppress(OSError):
            self.handle.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            _unfinished.discard(self._temporary)
        if self._made is not None:
            self._made.unlink(missing_ok=True)


def _mode(path: Path) -> int | None:
    """The permissions of an existing file."""
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        return None


def _linked(temporary: Path, target: Path) -> bool:
    """Give a file a second name, which no other file may have (FileExistsError).

    Where the file system has no links, an empty file takes the name, to be replaced, and the answer is no.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        return False
    return True


def _remove_stale(newest: Path) -> None:
    """Remove the temporary files beside `newest` that a killed process has left."""
    with contextlib.suppress(OSError):
        # By the clock of the file's own system, which may be another machine's.
        now = newest.stat().st_mtime
        for path in newest.parent.glob(".sap-*.tmp"):
            with contextlib.suppress(OSError):
                if _TEMPORARY.fullmatch(path.name) and now - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power cut, on the systems that can sync a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def temporary_copy(source: str) -> Iterator[IO[bytes]]:
    """Fill a temporary file without a name, which is gone when it is closed, also when the process is killed.

    Args:
        source: What the user calls that which is copied.

    Yields:
        The file, which stays open after the context, rewound; an exception closes it.

    Raises:
        SapError: Reading or writing failed.
    """
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - it outlives the context
    try:
        yield copy
        copy.seek(0)
    except BaseException as error:
        with contextlib.suppress(OSError):
            copy.close()
        if isinstance(error, OSError):
            raise SapError(
                f"Cannot copy {source} to a temporary file: {error.strerror or error}",
                f"Make room in {tempfile.gettempdir()}, or point TMPDIR to a larger disk.",
            ) from error
        raise


def spool(stream: IO[bytes], source: str, head: bytes = b"") -> IO[bytes]:
    """Copy a stream that can be read only once to a temporary file without a name.

    Args:
        stream: What to copy, up to its end.
        source: What the user calls it.
        head: Bytes that were taken from the stream already.

    Returns:
        The temporary file, at its beginning.

    Raises:
        SapError: Reading or copying failed.
    """
    with temporary_copy(source) as copy:
        copy.write(head)
        shutil.copyfileobj(stream, copy, 1 << 20)
    return copy


def spool_pipe(path: Path) -> IO[bytes]:
    """Copy what comes through a named pipe or a shell's `<(...)` to a temporary file without a name.

    A writer may take as long as it needs, but a pipe that nobody has opened for writing is not waited for.

    Args:
        path: The pipe.

    Returns:
        The temporary file, at its beginning.

    Raises:
        SapError: Nobody writes to the pipe, or copying failed.
        OSError: The pipe cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        select.select([descriptor], [], [], _SECONDS_FOR_A_WRITER)
        # Nothing read (None) means that a writer is there but has not written yet; no bytes, that there is none.
        head = stream.read(1 << 16)
        if head == b"":
            raise SapError(f"{path} is a pipe that nobody writes to", "Name a file, or start its writer first.")
        os.set_blocking(descriptor, True)
        return spool(stream, str(path), head or b"")
