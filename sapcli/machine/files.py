"""Files in general: writing that is whole or does not happen, and input that can be read only once."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
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
    from collections.abc import Iterator, Sequence

_SECONDS_FOR_A_WRITER = 2.0
# A temporary file that has not grown for so long belongs to a process that was killed.
_STALE_SECONDS = 3600.0

_unfinished: set[Path] = set()

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


def remove_unfinished() -> None:
    """Remove the temporary files and folders that this process has left, however it comes to its end."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


atexit.register(remove_unfinished)


@contextmanager
def atomic_write(path: Path, kind: type[SapError] = SapError) -> Iterator[IO[bytes]]:
    """Write one file that appears under its name whole, or not at all.

    Args:
        path: The file to make or to replace.
        kind: The error to raise when it cannot be written.

    Yields:
        The open file, which has its name only after the context was left without an exception.

    Raises:
        SapError: The file cannot be written, as `kind`.
    """
    with atomic_writes([path], kind) as (handle,):
        yield handle


@contextmanager
def atomic_writes(paths: Sequence[Path], kind: type[SapError] = SapError) -> Iterator[list[IO[bytes]]]:
    """Write several files of which none appears under its name before all are whole and on the disk.

    Each is written to a temporary file in its own folder, which any exception removes. A symbolic link stays
    a link to the new content; what is no regular file (a pipe, `/dev/null`) is written to, never replaced.

    Args:
        paths: The files; they get their names in this order, so a file that refers to the others comes last.
        kind: The error to raise when one cannot be written.

    Yields:
        The open files, in the order of `paths`.

    Raises:
        SapError: A file cannot be written, as `kind`. A closed pipe stays a `BrokenPipeError`.
    """
    pending: list[_PendingFile] = []
    path = paths[0]
    try:
        for path in paths:
            pending.append(_PendingFile(path))  # noqa: PERF401 - an error must find those that are open already
        yield [file.handle for file in pending]
        for file in pending:
            path = file.path
            file.settle()
        for file in pending:
            path = file.path
            file.publish()
    except BaseException as error:
        for file in pending:
            file.discard()
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise write_error(str(path), error, kind) from error
        raise


def write_error(destination: str, error: OSError, kind: type[SapError] = SapError) -> SapError:
    """The error, of kind `kind`, that says why `destination` could not be written and what to do."""
    hint = _WRITE_HINTS.get(error.errno or 0, "Check the disk, or write to another one.")
    return kind(f"Cannot write {destination}: {error.strerror or error}", hint)


class _PendingFile:
    """A file that is being written and has not got its name yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary: Path | None = None
        path = place_of(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            self.handle: IO[bytes] = path.open("wb")
            return
        self._target = Path(os.path.realpath(path))
        # The name is short, so that a target whose own name is as long as allowed can be written.
        temporary = self._target.with_name(f".sap-{secrets.token_hex(8)}.tmp")
        remove_at_end(temporary)
        self.handle = temporary.open("xb")
        self._temporary = temporary
        _remove_stale(temporary)

    def settle(self) -> None:
        """Bring all bytes to the disk, where the errors that the system has put off come up."""
        self.handle.flush()
        if self._temporary is not None:
            os.fsync(self.handle.fileno())
        self.handle.close()

    def publish(self) -> None:
        """Give the file its name."""
        if self._temporary is not None:
            self._temporary.replace(self._target)
            _unfinished.discard(self._temporary)
            self._temporary = None
            _sync_folder(self._target.parent)

    def discard(self) -> None:
        """Remove what was written."""
        # Closing writes what is buffered, which fails again where writing has failed.
        with contextlib.suppress(OSError):
            self.handle.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            _unfinished.discard(self._temporary)


def _remove_stale(newest: Path) -> None:
    """Remove the temporary files beside `newest` that a killed process has left."""
    with contextlib.suppress(OSError):
        # By the clock of the file's own system, which may be another machine's.
        now = newest.stat().st_mtime
        for path in newest.parent.glob(".sap-*.tmp"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > _STALE_SECONDS:
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
