"""Where a command reads from and writes to: files made sure of before the work begins, `-` for stdin and stdout."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sapcli.checkpoints import container_saving, folder_saving, saving
from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.commands.line import console
from sapcli.commands.line.options import OutputOptions
from sapcli.commands.line.project_options import WritingOptions
from sapcli.errors import CheckpointError, UsageError
from sapcli.machine.files import atomic_write, write_error
from sapcli.machine.parallel.membership import world_size
from sapcli.machine.reading import check_text
from sapcli.machine.results import place_of, results
from sapcli.repairs.session import Session
from sapcli.settings import ReportForm, ResultFormat, WeightsFormat

if TYPE_CHECKING:
    from torch import Tensor

STDIO = "-"
# What PyTorch's own files are called, which nobody could read under such a name.
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def one_stdin(**sources: str | None) -> None:
    """Make sure that at most one input comes from stdin."""
    from_stdin = [name if name.isupper() else f"--{name}" for name, source in sources.items() if source == STDIO]
    if from_stdin and world_size() > 1:
        raise UsageError(
            f"{from_stdin[0]} cannot be read from stdin by {world_size()} processes", "give a file that all of them see"
        )
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


@dataclass(frozen=True)
class CheckpointOutput:
    """Where a corrected checkpoint goes, and in which form.

    Attributes:
        path: The file, the index of shards, or the folder that the user named; None for stdout.
        form: The form.
        weights: Which weights of a training file are replaced, as the user asked for them.
    """

    path: Path | None
    form: WeightsFormat = WeightsFormat.SAFETENSORS
    weights: str | None = None

    def files(self, checkpoint: Checkpoint) -> list[Path]:
        """The files that are written, as far as their names are known; the last one opens it."""
        if self.path is None:
            return []
        if self.form is WeightsFormat.PTH:
            return [self.path]
        if folder_saving.goes_into_folder(checkpoint, self.path):
            return folder_saving.files_in(checkpoint, self.path)
        # Shards have names of their own content, which nothing else has.
        return [saving.output_files(checkpoint, self.path)[-1]]

    def shown(self, checkpoint: Checkpoint) -> Path | None:
        """What opens the corrected checkpoint: a file, an index or a folder."""
        if self.path is None or folder_saving.goes_into_folder(checkpoint, self.path):
            return self.path
        return self.files(checkpoint)[-1]

    def write(
        self,
        session: Session,
        changed: Callable[[Mapping[str, str] | None], Mapping[str, Tensor]],
        metadata: Mapping[str, str],
        *,
        force: bool,
    ) -> None:
        """Write it.

        Args:
            session: The checkpoint and the data.
            changed: The tensors that change, under the names of what is written (from these names to the checkpoint's
                entries), or of the entries themselves for `None`.
            metadata: What the file says of itself.
            force: Whether existing files are replaced.
        """
        target = results() if self.path is None else self.path
        if self.form is WeightsFormat.PTH:
            container_saving.write_container(
                session.checkpoint, target, changed(None), weights=self.weights, replace=force
            )
            return
        names = session.classifier.loaded.written_names
        folder_saving.write_model(session.written, target, changed(names), metadata, replace=force)


def destination_checkpoint(
    checkpoint: Checkpoint,
    output: OutputOptions,
    writing: WritingOptions,
    weights: str | None,
    *,
    in_folder: bool = False,
    mark: str = "sap",
) -> CheckpointOutput:
    """Where the corrected checkpoint goes; made sure of before the work begins.

    Args:
        checkpoint: The input.
        output: What the user says.
        writing: In which form.
        weights: Which weights of a training file they are.
        in_folder: Whether the output names a folder, for several checkpoints.
        mark: What its name has beside that of the input, without a word from the user.
    """
    in_container = writing.form is WeightsFormat.PTH
    if in_container:
        container_saving.check_container(checkpoint)
    if output.output == STDIO:
        return CheckpointOutput(None, writing.form, weights)
    path = _place(checkpoint, output, mark, in_folder=in_folder, in_container=in_container)
    result = CheckpointOutput(path, writing.form, weights)
    if path.name.endswith(_PICKLES) and not in_container:
        hint = "name it .safetensors, or write a training file as it came with --format pth"
        raise UsageError(f"-o {path}: what is written is always safetensors", hint)
    if path.suffix == ".safetensors" and in_container:
        raise UsageError(
            f"-o {path}: --format pth writes one of PyTorch's files", "name it .pth, or leave out --format"
        )
    files = result.files(checkpoint)
    for file in files:
        if checkpoint.path is not None and file.exists() and file.samefile(checkpoint.path):
            raise CheckpointError(
                f"{file} is the input itself, which is never overwritten", "name another file with -o"
            )
    if result.shown(checkpoint) != files[-1]:
        _check_folder(path, files, output.force)
    else:
        check_writable(files[-1], output.force)
    return result


def about_output(checkpoint: Checkpoint, path: Path | None) -> list[str]:
    """What is to be said of a model's folder: what of it is not written again."""
    if path is None or not folder_saving.goes_into_folder(checkpoint, path):
        return []
    names = folder_saving.left_out(checkpoint)
    return [f"not copied from {checkpoint.folder}: {', '.join(names)}"] if names else []


def _place(checkpoint: Checkpoint, output: OutputOptions, mark: str, *, in_folder: bool, in_container: bool) -> Path:
    """The path that the output has, from what the user says and what is usual."""
    if in_container:
        usual = container_saving.default_container(checkpoint, mark)
    elif checkpoint.folder is not None:
        usual = folder_saving.default_folder(checkpoint, mark)
    else:
        usual = saving.default_output(checkpoint, mark)
    if output.output is None:
        return usual
    path = Path(output.output)
    if in_folder:
        return path / usual.name
    return path / Path(checkpoint.path or usual).name if in_container and path.is_dir() else path


def _check_folder(folder: Path, files: Sequence[Path], force: bool) -> None:
    """Raise what would keep a model's folder from being written in the end."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, and the model is a folder", "name a folder with -o")
    if not folder.exists():
        check_writable(folder, force)
        return
    for file in files:
        check_writable(file, force)


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
