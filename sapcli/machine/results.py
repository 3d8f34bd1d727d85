"""Where results go: to stdout, which nobody else writes to while a command runs other people's code.

A network's own code prints when it is imported, built and run; libraries below Python do so on the descriptor itself.
All of that goes to stderr for the time being, and results keep a descriptor of their own.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

_STDOUT, _STDERR = 1, 2
_NAMES_OF_STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")

_kept: IO[bytes] | None = None


def results() -> BinaryIO:
    """The stream that a command's result is written to."""
    return cast(BinaryIO, sys.stdout.buffer if _kept is None else _kept)


def are_shown() -> bool:
    """Whether results go to a terminal."""
    return results().isatty()


def descriptor_of(number: int) -> int:
    """The file descriptor that leads where `number` led when the command began."""
    if number != _STDOUT or _kept is None:
        return number
    try:
        return _kept.fileno()
    except OSError:  # it is no file
        return number


def place_of(path: Path) -> Path:
    """The path that leads where `path` led when the command began, which matters to `/dev/stdout` alone."""
    descriptor = descriptor_of(_STDOUT) if str(path) in _NAMES_OF_STDOUT else _STDOUT
    return path if descriptor == _STDOUT else Path(f"/dev/fd/{descriptor}")


@contextlib.contextmanager
def reserved() -> Iterator[None]:
    """Keep stdout for `results` alone: what others print goes to stderr."""
    global _kept
    stdout = sys.stdout
    if _kept is not None:
        yield
        return
    if _descriptor(stdout) != _STDOUT:
        # A stream that somebody has put in the place of the process' own.
        _kept, sys.stdout = stdout.buffer, sys.stderr
        try:
            yield
        finally:
            _kept, sys.stdout = None, stdout
        return
    stdout.flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    _kept = os.fdopen(kept, "wb")
    try:
        yield
        _kept.flush()
    finally:
        # What was printed and not written yet.
        with contextlib.suppress(Exception):
            stdout.flush()
        os.dup2(kept, _STDOUT)
        stream, _kept, sys.stdout = _kept, None, stdout
        with contextlib.suppress(OSError):
            stream.close()


def _descriptor(stream: IO[str]) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None
