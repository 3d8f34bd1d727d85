"""A model's folder written as a folder: the corrected weights, and all that lay beside the old ones."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sapcli.checkpoints.checkpoint import Form
from sapcli.checkpoints.locating import CACHED_REPOSITORY
from sapcli.checkpoints.saving import write_checkpoint
from sapcli.errors import CheckpointError
from sapcli.machine.files import remove_at_end, write_error

if TYPE_CHECKING:
    from torch import Tensor

    from sapcli.checkpoints.checkpoint import Checkpoint

# The same network's weights in whatever form: unrepaired, they would be found before or in the place of the new ones.
_WEIGHTS = re.compile(
    r"(model|pytorch_model|tf_model|flax_model|diffusion_pytorch_model|open_clip_(pytorch_)?model|consolidated)"
    r"([._-].*)?\.(safetensors|bin|h5|msgpack|onnx|pt|pth|ckpt|gguf|ot)(\.index\.json)?(\..*)?"
    r"|.*\.(safetensors|safetensors\.index\.json|bin\.index\.json|onnx|tflite|gguf|mlmodel)"
)
# Other models in it, and what version control and downloads keep.
_OTHER_FOLDERS = re.compile(r"checkpoint-\d+|\..*|onnx|runs|wandb|__pycache__|global_step\d+")


def goes_into_folder(checkpoint: Checkpoint, destination: Path) -> bool:
    """Whether a destination of a checkpoint that was given as a model's folder is one, too, and not a file."""
    return checkpoint.folder is not None and not destination.name.endswith((".safetensors", ".json"))


def default_folder(checkpoint: Checkpoint, mark: str = "sap") -> Path:
    """Where the folder goes without a word from the user: beside the input; what lies in a cache, where the user is."""
    assert checkpoint.folder is not None
    cached = CACHED_REPOSITORY.search(str(checkpoint.folder.absolute()))
    if cached is not None:
        return Path(f"{cached['name']}.{mark}")
    folder = Path(os.path.abspath(checkpoint.folder))  # noqa: PTH100 - links stay links, and the name is needed
    return (
        checkpoint.folder.parent / f"{folder.name}.{mark}"
        if checkpoint.folder.name
        else Path(f"../{folder.name}.{mark}")
    )


def left_out(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What of the folder is not written again: other forms of the weights, and folders of other models."""
    assert checkpoint.folder is not None
    own = _own_files(checkpoint)
    kept = {path.name for path in _beside(checkpoint)}
    found = sorted(path.name for path in checkpoint.folder.iterdir())
    return tuple(name for name in found if name not in kept and name not in own)


def write_model(
    checkpoint: Checkpoint,
    destination: Path | BinaryIO,
    replacements: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    replace: bool = True,
) -> None:
    """Write a checkpoint as `write_checkpoint` does, or, where it came as a model's folder, as such a folder.

    A new folder appears whole or not at all. Into one that is there, the files that lie beside the weights are written
    first, each whole, and the weights last; nothing in it is replaced unless `replace` is true, and nothing is removed.

    Args:
        checkpoint: What is to be written.
        destination: A path, or an open file.
        replacements: New tensors for some entries.
        metadata: The texts for the header.
        replace: Whether files that are there are replaced.

    Raises:
        CheckpointError: It cannot be written, or would replace what is not to be replaced.
        NumericsError: A replacement is not finite in its entry's dtype.
    """
    if not isinstance(destination, Path) or not goes_into_folder(checkpoint, destination):
        write_checkpoint(checkpoint, destination, replacements, metadata, replace=replace)
        return
    try:
        if destination.is_dir():
            _fill(checkpoint, destination, replacements, metadata, replace=replace)
            return
        with _new_folder(destination) as folder:
            _fill(checkpoint, folder, replacements, metadata, replace=True)
    except OSError as error:
        raise write_error(str(destination), error, CheckpointError) from error


def _fill(
    checkpoint: Checkpoint,
    folder: Path,
    replacements: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    replace: bool,
) -> None:
    """Write everything into a folder that is there, the weights last."""
    assert checkpoint.folder is not None
    for path in _beside(checkpoint):
        _copy(path, folder / path.name, replace=replace, inside=frozenset({Path(os.path.realpath(checkpoint.folder))}))
    write_checkpoint(checkpoint, weights_in(checkpoint, folder), replacements, metadata, replace=replace)


def weights_in(checkpoint: Checkpoint, folder: Path) -> Path:
    """The file, or the index, by which the weights in a written folder are opened; with the names that they had."""
    assert checkpoint.path is not None
    if checkpoint.form is Form.PICKLE:
        return folder / "model.safetensors"
    return folder / checkpoint.path.name


def files_in(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    """The files that are written into a folder, as far as their names are known before."""
    return [*(folder / path.name for path in _beside(checkpoint) if path.is_file()), weights_in(checkpoint, folder)]


def _own_files(checkpoint: Checkpoint) -> set[str]:
    assert checkpoint.path is not None
    return {checkpoint.path.name, *checkpoint.files}


def _beside(checkpoint: Checkpoint) -> list[Path]:
    """What lies beside the weights and belongs to the model."""
    assert checkpoint.folder is not None
    own = _own_files(checkpoint)
    found = []
    for path in sorted(checkpoint.folder.iterdir()):
        is_weights = path.name in own or _WEIGHTS.fullmatch(path.name) is not None
        if (path.is_file() and not is_weights and not path.name.startswith(".sap-")) or (
            path.is_dir() and not _OTHER_FOLDERS.fullmatch(path.name) and not _holds(path, checkpoint.folder)
        ):
            found.append(path)
    return found


def _holds(link: Path, folder: Path) -> bool:
    """Whether a link in a folder leads to this folder, or to one around it."""
    return Path(os.path.realpath(folder)).is_relative_to(Path(os.path.realpath(link)))


def _copy(source: Path, target: Path, *, replace: bool, inside: frozenset[Path] = frozenset()) -> None:
    """Copy a file, or a folder of files, each whole under its name or not there; links become what they lead to.

    A folder that lies in itself, by a link, is copied once.
    """
    if source.is_dir():
        inside |= {Path(os.path.realpath(source))}
        target.mkdir(exist_ok=True)
        for path in sorted(source.iterdir()):
            if path.is_file() or (path.is_dir() and Path(os.path.realpath(path)) not in inside):
                _copy(path, target / path.name, replace=replace, inside=inside)
        return
    if target.exists() and not replace:
        raise CheckpointError(f"{target} exists already", "Name another folder with -o, or overwrite it with --force.")
    temporary = target.with_name(f".sap-{secrets.token_hex(8)}.tmp")
    remove_at_end(temporary)
    try:
        shutil.copyfile(source, temporary)
        with contextlib.suppress(OSError):
            shutil.copymode(source, temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """A folder that gets its name once it is filled; whatever ends the filling removes it."""
    temporary = destination.with_name(f".sap-{secrets.token_hex(8)}.tmp")
    remove_at_end(temporary)
    temporary.mkdir()
    try:
        yield temporary
        # Of two runs the later one finds the folder there, which cannot be replaced as long as it holds something.
        temporary.rename(destination)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
