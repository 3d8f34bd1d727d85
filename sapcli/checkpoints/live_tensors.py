"""The tensors of a network in memory as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from sapcli.checkpoints.checkpoint import Checkpoint, Form
from sapcli.checkpoints.safetensors_file import DTYPE_NAMES, SafetensorsFile, save_tensors
from sapcli.errors import CheckpointError
from sapcli.machine.files import temporary_copy

if TYPE_CHECKING:
    from torch import Tensor


def checkpoint_of(tensors: Mapping[str, Tensor], source: str) -> Checkpoint:
    """A checkpoint of tensors as they are now, whatever becomes of them.

    They are copied to a temporary file without a name, as those of PyTorch's own files are, so that memory does not
    hold them twice.

    Args:
        tensors: The tensors, by name, on any device.
        source: What messages call the checkpoint.

    Raises:
        SapError: There are none, the temporary file cannot be written, or a tensor is of a kind that no file holds.
    """
    if not tensors:
        raise CheckpointError(f"{source} holds no tensors", "give a network with weights")
    odd = next((name for name, tensor in tensors.items() if not _is_plain(tensor)), None)
    if odd is not None:
        raise CheckpointError(
            f"{odd} of {source} is no plain tensor (quantised, sparse or divided over devices)",
            "gather it into plain tensors of floating point numbers first",
        )
    with temporary_copy(source) as copy:
        save_tensors(copy, tensors, {"format": "pt"})
    file = SafetensorsFile(copy, source)
    return Checkpoint(source, None, Form.SINGLE, file.entries, file.metadata, {source: file})


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and tensor.dtype in DTYPE_NAMES
        and type(tensor.data).__name__ in ("Tensor", "Parameter")
    )
