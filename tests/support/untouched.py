"""What every run of the command line in these tests is held to: the files that it was given stay as they were."""

from __future__ import annotations

import hashlib
import itertools
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# What these name is written, and may replace what was there.
_OUTPUTS = frozenset({"-o", "--output", "--report", "--html", "--summary", "--apply-to", "--cache-dir"})
_DEFAULT_OUTPUTS = (".sap.safetensors", ".sap.safetensors.index.json", "corrected.csv")
_DEFAULT_OUTPUTS_OF = {"activations": ("bases.safetensors",)}
_LARGE, _ENDS = 8 << 20, 1 << 20
_MOST = 5000

Contents = Mapping[Path, bytes]

_holding = 0
_held: list[Contents] = []


def contents_of(folder: Path, arguments: Sequence[str | Path]) -> Contents:
    """Digests of the files that a command line may read, by their paths.

    Those are the files that it names, the files beside these, and all files in folders that it names; but for what it
    names as an output alone, and what lies under the names that outputs have by themselves.

    Args:
        folder: The working folder.
        arguments: The command line.
    """
    read, written = _named([os.fspath(argument) for argument in arguments])
    inputs: set[Path] = set()
    outputs = {path.resolve() for path in _existing(folder, written)}
    for path in _existing(folder, read):
        inputs |= set(_files_in(path)) if path.is_dir() else {path, *path.parent.iterdir()}
        outputs.discard(path.resolve())
    if "demo" in arguments:
        inputs.clear()  # its folder is an output
    by_itself = (*_DEFAULT_OUTPUTS, *_DEFAULT_OUTPUTS_OF.get(os.fspath(arguments[0]) if arguments else "", ()))
    # What a killed run has left is there to be removed.
    kept = (
        path
        for path in sorted(inputs)
        if path.is_file()
        and not path.name.endswith(by_itself)
        and not path.match(".sap-*.tmp")
        and not {path.resolve(), *path.resolve().parents} & outputs
    )
    contents = {}
    for path in itertools.islice(kept, _MOST):
        with suppress(OSError):  # some tests forbid to read a file
            contents[path] = _digest(path)
    return contents


@contextmanager
def inputs_untouched(folder: Path, arguments: Sequence[str | Path]) -> Iterator[None]:
    """Fail where a command line changes, within the context, one of the files that it may read."""
    global _holding
    before = contents_of(folder, arguments)
    _holding += 1
    try:
        yield
    finally:
        _holding -= 1
    check_untouched(before)


def hold(folder: object, command: object) -> None:
    """Look at the inputs of a command that a test starts by itself; `check_held` compares, at the end of the test."""
    with suppress(OSError, ValueError):
        words = words_of(command if isinstance(command, list | tuple) else [str(command)])
        _held.append(contents_of(Path(os.fsdecode(folder or "")), words))  # type: ignore[arg-type]


def check_held() -> None:
    """Fail where an input of a command that the test has started by itself has changed."""
    held = list(_held)
    _held.clear()
    for contents in held:
        check_untouched(contents)


def let_go() -> None:
    """Forget what was held: for a test whose processes write over files of earlier ones, as they are told to."""
    _held.clear()


def words_of(command: Sequence[str | Path]) -> list[str]:
    """The arguments in a command that starts the tool, and of a shell's program all its words."""
    words = [os.fsdecode(part) for part in command]
    if "-c" in words and words[0].endswith("sh"):
        words = shlex.split(words[words.index("-c") + 1], comments=True)
    return words[words.index("sapcli") + 1 :] if "sapcli" in words else words


def is_holding() -> bool:
    """Whether the inputs of a command line are being held still now."""
    return _holding > 0


def check_untouched(before: Contents) -> None:
    """Fail where a file is gone or has another content than before."""
    for path, digest in before.items():
        assert path.exists(), f"{path} is gone"
        assert _digest(path) == digest, f"{path} has another content than before"


def _named(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a command line names to read, as far as it can be told, and to write."""
    read, written = [], []
    is_output = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if is_output:
            written.append(argument)
        elif equals and argument.startswith("-"):
            (written if option in _OUTPUTS else read).append(value)
        else:
            read.append(argument.rpartition(":")[0] if argument.rpartition(":")[0].endswith(".py") else argument)
        is_output = argument in _OUTPUTS
    return read, written


def _existing(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    for name in names:
        with suppress(OSError, ValueError):
            path = folder / name
            if name and (path.is_file() or path.is_dir()):
                yield path


def _files_in(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


def _digest(path: Path) -> bytes:
    """A hash of a file's content; of a large one the hash of its ends, its size and the time of its last change."""
    status = path.stat()
    if status.st_size <= _LARGE:
        return hashlib.sha256(path.read_bytes()).digest()
    with path.open("rb") as file:
        head = file.read(_ENDS)
        file.seek(-_ENDS, os.SEEK_END)
        facts = (status.st_ino, status.st_size, status.st_mtime_ns, head, file.read())
    return hashlib.sha256(repr(facts).encode()).digest()
