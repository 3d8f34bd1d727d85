"""A training file written back as what it was: its own container, with new weights in the place of the old ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch

from sapcli.checkpoints.pytorch_file import load_content, tensors_in
from sapcli.checkpoints.saving import cast_entry
from sapcli.checkpoints.training_file import choose_state_dict
from sapcli.errors import CheckpointError, UsageError
from sapcli.machine.files import atomic_write, write_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sapcli.checkpoints.checkpoint import Checkpoint

# torch.save's own endings, of which some are two.
_DOUBLE_ENDINGS = (".pth.tar", ".pt.tar")


def require_container(checkpoint: Checkpoint) -> Path:
    """The PyTorch file that a checkpoint was opened from.

    Raises:
        UsageError: It is no file of PyTorch's, or came through a pipe and cannot be read again.
    """
    if checkpoint.training is None or checkpoint.path is None:
        what = "came through a pipe" if checkpoint.path is None else "is none of PyTorch's files"
        raise UsageError(
            f"--format pth writes the file of a training back, and {checkpoint.source} {what}",
            "leave out --format: the corrected file is then safetensors",
        )
    return checkpoint.path


def default_container(checkpoint: Checkpoint, mark: str = "sap") -> Path:
    """Where it goes without a word from the user: beside the input, with a mark before its ending."""
    path = require_container(checkpoint)
    ending = next((ending for ending in _DOUBLE_ENDINGS if path.name.endswith(ending)), path.suffix)
    return path.with_name(f"{path.name.removesuffix(ending)}.{mark}{ending or '.pth'}")


def write_container(
    checkpoint: Checkpoint,
    destination: Path | BinaryIO,
    replacements: Mapping[str, Tensor],
    *,
    weights: str | None = None,
    replace: bool = True,
) -> None:
    """Write a training file again with some of the network's tensors replaced.

    All else is in it: optimizers, averages, metrics, the command line. The file is loaded without running code, so its
    objects are values; tensors that shared their memory share it still.

    Args:
        checkpoint: What is to be written, opened from a PyTorch file.
        destination: A file, or an open one.
        replacements: New tensors for some entries, cast to their types.
        weights: Which of its state dicts they belong to, as `open_checkpoint` was told.
        replace: Whether a file that has the name by then is replaced.

    Raises:
        CheckpointError: It cannot be written, would replace what it is read from, or was changed since it was opened.
        NumericsError: A replacement is not finite in its entry's dtype.
        UsageError: It is no file of PyTorch's.
    """
    path = require_container(checkpoint)
    if isinstance(destination, Path) and destination.exists() and Path(destination).samefile(path):
        raise CheckpointError(f"{destination} is the checkpoint that is being read", "Name another output with -o.")
    content = _content(path, checkpoint.source)
    chosen = choose_state_dict(content, checkpoint.source, weights)
    tensors = dict(tensors_in(chosen.tensors, checkpoint.source))
    with torch.no_grad():
        for name, new in replacements.items():
            held, entry = tensors.get(name), checkpoint.entries[name]
            if held is None or held.dtype != entry.dtype or tuple(held.shape) != entry.shape:
                raise CheckpointError(
                    f"{checkpoint.source} was changed while it was being repaired: {name} is another tensor",
                    "Run again when nothing else writes to it.",
                )
            held.data.copy_(cast_entry(checkpoint, name, new))
    if isinstance(destination, Path):
        with atomic_write(destination, CheckpointError, replace=replace) as out:
            torch.save(content, out)
        return
    try:
        torch.save(content, destination)
        destination.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise write_error("to the output stream", error, CheckpointError) from error


def _content(path: Path, source: str) -> dict[object, object]:
    """What the file holds, as it was saved."""
    with path.open("rb") as handle:
        return load_content(handle, None, source, restored=True)


def check_container(checkpoint: Checkpoint) -> None:
    """Make sure, before the work, that the file can be loaded and written again.

    Raises:
        CheckpointError: It holds objects that cannot be written.
        UsageError: It is no file of PyTorch's.
    """
    _content(require_container(checkpoint), checkpoint.source)
