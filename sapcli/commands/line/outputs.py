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
from sapcli.commands.line import console
from sapcli.commands.line.options import OutputOptions
from sapcli.errors import CheckpointError, UsageError
from sapcli.machine.files import atomic_write, write_error
from sapcli.machine.reading import check_text
from sapcli.machine.results import place_of, results
from sapcli.settings import ReportForm, ResultFormat

STDIO = "-"
# What PyTorch's own files are called, which nobody could read under such a name.
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def one_stdin(**sources: str | None) -> None:
    """Make sure that at most one input comes from stdin."""
    from_stdin = [name if name.isupper() else f"--{name}" for name, source in sources.items() if source == STDIO]
    if len(from_stdin) > 1:
        raise UsageError(f"{' and '.join(from_stdin)} cannot both be read from stdin", "give a file for one of them")


def one_stdout(output: OutputOptions, output_format: ResultFormat) -> None:
    """Make sure that not both a file and the JSON about it are to be written to stdout."""
    if output_format is ResultFormat.JSON and output.output == STDIO:
        raise UsageError("-o - and --format json cannot both be written to stdout", "name a file with -o FILE")


def destination_file(output: OutputOptions, default: Path | None) -> Path | None:
    """The file to write, `None` for stdout; made sure of before the work begins."""
    if output.output == STDIO or (output.output is None and default is None):
        return None
    path = default if output.output is None else Path(output.output)
    assert path is not None
    check_writable(path, output.force)
    return path


def destination_checkpoint(
    checkpoint: Checkpoint, output: OutputOptions, *, in_folder: bool = False, mark: str = "sap"
) -> Path | None:
    """Where the corrected checkpoint goes, `None` for stdout; made sure of before the work begins.

    Args:
        checkpoint: The input.
        output: What the user says.
        in_folder: Whether that names a folder, for several checkpoints.
        mark: What its name has beside that of the input, without a word from the user.
    """
    if output.output == STDIO:
        return None
    path = saving.default_output(checkpoint, mark) if output.output is None or in_folder else Path(output.output)
    if in_folder and output.output is not None:
        path = Path(output.output) / path.name
    if path.suffix in _PICKLES:
        raise UsageError(f"-o {path}: what is written is always safetensors", "name it .safetensors")
    # Shards have names of their own content, which nothing else has.
    file = saving.output_files(checkpoint, path)[-1]
    if checkpoint.path is not None and file.exists() and file.samefile(checkpoint.path):
        raise CheckpointError(f"{file} is the input itself, which is never overwritten", "name another file with -o")
    check_writable(file, output.force)
    return path


def destination_index(checkpoint: Checkpoint, destination: Path | None) -> Path | None:
    """The file by which the corrected checkpoint is opened: the destination, a file in it, or an index there."""
    return None if destination is None else saving.output_files(checkpoint, destination)[-1]


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


def check_summary(file: Path | None) -> None:
    """Raise what would keep text from being appended to `file` in the end."""
    if file is None:
        return
    if not file.exists():
        check_writable(file, True, "--summary")
    check_text(file)


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
def open_output(destination: Path | None, force: bool = True) -> Iterator[IO[bytes]]:
    """The destination, atomically written, or stdout.

    Args:
        destination: The file; `None` is stdout.
        force: Whether a file that has the name by then is replaced.
    """
    if destination is None:
        try:
            yield results()
            results().flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise write_error("to the output stream", error) from error
    else:
        with atomic_write(destination, replace=force) as handle:
            yield handle


def write_text(destination: Path | None, text: str, force: bool = True, *, is_json: bool = False) -> None:
    """Write a result that is text; on stdout, it cannot steer what shows it.

    Args:
        destination: The file, which gets the text as it is; `None` is stdout.
        text: The text.
        force: Whether a file that has the name by then is replaced.
        is_json: Whether it is JSON, whose own escapes do.
    """
    if destination is None:
        text = console.harmless(text, is_json=is_json)
    with open_output(destination, force) as handle:
        handle.write(text.encode("utf-8", "surrogateescape"))
