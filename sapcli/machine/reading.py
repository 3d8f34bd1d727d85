"""Files that the user names, read so that nothing can hold the run up: pipes are copied first, devices refused."""

from __future__ import annotations

import codecs
import errno
import os
import stat
import sys
from pathlib import Path
from typing import IO

from sapcli.errors import SapError
from sapcli.machine.files import spool, spool_pipe

STANDARD_INPUT = "-"
# A text that somebody has written or a command has listed; more than this is another kind of file.
LARGEST_TEXT = 1 << 30
_BLOCK = 1 << 20
# No text has so many zeros in a row, not in UTF-32 either; a file without content on the disk has nothing else, and can
# claim to have any size.
_HOLE = bytes(64)
# So much of the beginning and of the end of a file tells whether it is a text.
_LOOKED_AT = 1 << 20


def open_input(path: Path) -> IO[bytes]:
    """Open a regular file, or a temporary copy of what comes through a pipe.

    Args:
        path: The file.

    Returns:
        The open file, which can be read anywhere.

    Raises:
        SapError: It is a device or a socket, or a pipe that nobody writes to.
        OSError: It cannot be opened.
    """
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode):
        return spool_pipe(path)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISREG(mode):
        # Opened without waiting: what was a file a moment ago may be a pipe by now.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        return os.fdopen(descriptor, "rb")
    raise SapError(f"{path} is a device or a socket, expected a file", "name a file")


def read_input(source: str | Path, largest: int = LARGEST_TEXT) -> bytes:
    """All bytes of a file, of what comes through a pipe, or of standard input (`-`).

    Args:
        source: The file.
        largest: So many bytes at most.

    Raises:
        SapError: It is a device, a pipe that nobody writes to, no text, or larger.
        OSError: It cannot be read.
    """
    if source == STANDARD_INPUT:
        return _text_of(sys.stdin.buffer, source, largest)
    with open_input(Path(source)) as stream:
        if os.fstat(stream.fileno()).st_size > largest:
            raise _too_large(source, largest)
        return _text_of(stream, source, largest)


def _text_of(stream: IO[bytes], source: str | Path, largest: int) -> bytes:
    """All bytes of a stream, of which none is kept once it turns out to be no text."""
    blocks: list[bytes] = []
    size = 0
    while block := stream.read(_BLOCK):
        size += len(block)
        if size > largest:
            raise _too_large(source, largest)
        if _HOLE in block:
            raise SapError(f"{source} holds zeros, expected a text", "name the right file, or get it again")
        blocks.append(block)
    return b"".join(blocks)


def _too_large(source: str | Path, largest: int) -> SapError:
    return SapError(f"{source} is larger than {largest >> 20} MiB, expected a text", "name the right file")


def spool_stdin() -> IO[bytes]:
    """Standard input, copied to a temporary file without a name.

    Raises:
        SapError: It is a terminal, or cannot be copied.
    """
    if sys.stdin.isatty():
        raise SapError("standard input is a terminal, expected a file", "pipe one in, or name a file")
    return spool(sys.stdin.buffer, "standard input")


def check_text(file: Path) -> None:
    """Make sure that what is in a file already is text, to which text can be appended; a new one, or a pipe, will do.

    Raises:
        SapError: It is something else, or cannot be read.
    """
    if not file.is_file():
        return
    try:
        with file.open("rb") as handle:
            head = handle.read(_LOOKED_AT)
            is_whole = handle.seek(0, os.SEEK_END) <= _LOOKED_AT
            handle.seek(0 if is_whole else -_LOOKED_AT, os.SEEK_END if not is_whole else os.SEEK_SET)
            tail = handle.read()
    except OSError as error:
        raise SapError(f"{file} cannot be read: {error.strerror or error}", "name another file") from error
    # Where the middle is left out, characters may be cut off there: three bytes of one at most.
    begins = next((place for place in range(4) if tail[place : place + 1] < b"\x80" or tail[place] >= 0xC0), 0)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=is_whole)
        (tail if is_whole else tail[begins:]).decode()
    except UnicodeDecodeError:
        is_text = False
    else:
        is_text = b"\0" not in head + tail
    if not is_text:
        raise SapError(f"{file} is no text, and nothing is appended to it", "name another file")
