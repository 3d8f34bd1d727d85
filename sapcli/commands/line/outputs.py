"""Where a command reads from and writes to: files made sure of before the work begins, `-` for stdin and stdout."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sapcli.checkpoints import saving
from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.commands.line.options import OutputOptions
from sapcli.errors import CheckpointError, UsageError
from sapcli.machine.files import atomic_write, write_error
from sapcli.machine.results import place_of, results
from sapcli.settings import ReportForm

STDIO = "-"
# What PyTorch's own files are called, which nobody could read under such a name.
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def one_stdin(**sources: str | None) -> None:
    """Make sure that at most one input comes from stdin."""
    from_stdin = [name if name.isupper() else f"--{name}" for name, source in sources.items() if source == STDIO]
    if len(from_stdin) > 1:
        raise UsageError(f"{' and '.join(from_stdin)} cannot both be read from stdin", "give a file for one of them")


def destination_file(output: OutputOptions, default: Path | None) -> Path | None:
    """The file to write, `None` for stdout; made sure of before the work begins."""
    if output.output == STDIO or (output.output is None and default is None):
        return None
    path = default if output.output is None else Path(output.output)
    assert path is not None
    check_writable(path, output.force)
    return path


def destination_checkpoint(checkpoint: Checkpoint, output: OutputOptions, *, in_folder: bool = False) -> Path | None:
    """Where the corrected checkpoint goes, `None` for stdout; made sure of before the work begins.

    Args:
        checkpoint: The input.
        output: What the user says.
        in_folder: Whether that names a folder, for several checkpoints.
    """
    if output.output == STDIO:
        return None
    path = saving.default_output(checkpoint) if output.output is None or in_folder else Path(output.output)
    if in_folder and output.output is not None:
        path = Path(output.output) / path.name
    if path.suffix in _PICKLES:
        raise UsageError(f"-o {path}: what is written is always safetensors", "name it .safetensors")
    for file in saving.output_files(checkpoint, path):
        if checkpoint.path is not None and file.exists() and file.samefile(checkpoint.path):
            raise CheckpointError(
                f"{file} is the input itself, which is never overwritten", "name another file with -o"
            )
        check_writable(file, output.force)
    return path


def check_writable(path: Path, force: bool, option: str = "-o") -> None:
    """Raise what would keep `path`, which `option` names, from being written in the end."""
    path = place_of(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder", f"name a file with {option}")
    if path.exists() and path.is_file() and not force:
        hint = f"name another file with {option}, or overwrite it with --force"
        raise CheckpointError(f"{path} exists already", hint)
    if not path.parent.is_dir():
        hint = f"make it first, or name another with {option}"
        raise CheckpointError(f"the folder {path.parent} does not exist", hint)
    # A file is written beside its place first; a pipe or a terminal is not.
    if (path.is_file() or not path.exists()) and not _may_write(Path(os.path.realpath(path)).parent):
        raise write_error(str(path), PermissionError(errno.EACCES, os.strerror(errno.EACCES)), CheckpointError)


def _may_write(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def check_appendable(file: Path | None) -> None:
    """Raise what would keep text from being appended to `file` in the end."""
    if file is not None and not file.exists():
        check_writable(file, True, "--summary")


def report_forms(files: Sequence[Path], force: bool, option: str = "--report") -> dict[Path, ReportForm]:
    """The form of each report, which `option` names, by the ending of its name, made sure of before the work begins.

    Raises:
        UsageError: An ending is none of `.html`, `.md` and `.json`.
        CheckpointError: A file cannot be written.
    """
    forms = {}
    for file in files:
        try:
            forms[file] = ReportForm(file.suffix.removeprefix(".").lower())
        except ValueError:
            raise UsageError(f"{file} has none of the endings of a report", "name it .html, .md or .json") from None
        check_writable(file, force, option)
    return forms


@contextmanager
def open_output(destination: Path | None) -> Iterator[IO[bytes]]:
    """The destination, atomically written, or stdout."""
    if destination is None:
        try:
            yield results()
            results().flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise write_error("to the output stream", error) from error
    else:
        with atomic_write(destination) as handle:
            yield handle
