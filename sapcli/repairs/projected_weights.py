"""The weights that a projection makes of those of a checkpoint, for one alpha after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial

import torch
from torch import Tensor

from sapcli.activations.bases import Bases
from sapcli.activations.moments import Basis
from sapcli.activations.rows import WeightView
from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.errors import NumericsError
from sapcli.machine.device import full_precision
from sapcli.machine.heap import give_back_freed_memory
from sapcli.repairs.projection import coordinates, project
from sapcli.settings import ForgetMode, Importance

_NORM_ELEMENTS = 1 << 20
# What is needed again is kept up to this size: projected weights for the comparison, the digest and the file, and their
# coordinates for the next alpha.
_KEPT_BYTES = 1 << 26
# Each weight that is made can leave a gap of its own size in a heap that keeps freed memory, where a small object came
# to lie behind what it was made with. After so many bytes of weights the gaps are given back.
_GAPS_BYTES = 1 << 24


class ProjectedWeights:
    """The weights of a checkpoint after a repair with one alpha or another, made when they are asked for.

    The original weights are read from the checkpoint's file each time, so that memory holds no second copy of the
    model, and everything is rounded to the file's dtype: what is measured is what is written.

    Args:
        checkpoint: The file.
        entry_names: From a weight's name in the network to the file's entry.
        bases: Of the trusted samples.
        kind: The importance formula.
        device: Where the weights are made.
        forget: Bases of the suspected samples.
        forget_mode: What they take away.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        entry_names: Mapping[str, str],
        bases: Bases,
        kind: Importance,
        device: torch.device,
        *,
        forget: Bases | None = None,
        forget_mode: ForgetMode = ForgetMode.KEEP_SHARED,
    ) -> None:
        self.bases = bases
        self._checkpoint = checkpoint
        self._entry_names = entry_names
        self._kind = kind
        self._device = device
        self._forget = forget
        self._forget_mode = forget_mode
        self._made = KeptTensors(_KEPT_BYTES)
        self._made_with: float | None = None
        self._gaps = 0
        self._coordinates = KeptTensors(_KEPT_BYTES)

    def original(self, name: str) -> Tensor:
        """A weight, a gain or a buffer of the network as the file has it, on the CPU."""
        return self._checkpoint.read(self._entry_names[name])

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that the file has it in; float32 for what the file lacks."""
        entry = self._entry_names.get(name)
        return torch.float32 if entry is None else self._checkpoint.entries[entry].dtype

    def projected(self, name: str, alpha: float) -> Tensor:
        """A weight, or a gain's new size, in the entry's dtype, on `device`; not to be changed.

        Raises:
            NumericsError: The result is not finite.
        """
        if alpha != self._made_with:
            self._made.clear()
            self._made_with = alpha
        return self._made.get(name, lambda: self._make(name, alpha))

    def removed(self, name: str, alpha: float) -> float:
        """How much of a weight is removed: `||W - W M|| / ||W||`, Frobenius, 0 for a weight of zeros."""
        original = self.original(name)
        size = _norm(original)
        return _norm(original, self.projected(name, alpha).cpu()) / size if size else 0.0

    def _make(self, name: str, alpha: float) -> Tensor:
        if self._gaps > _GAPS_BYTES:
            give_back_freed_memory()
            self._gaps = 0
        original = self.original(name).to(self._device)
        self._gaps += original.nbytes
        if name in self.bases.gains:
            weight = self.bases.gains[name]
            return rescaled_gain(original, self.original(weight).to(original.device), self.projected(weight, alpha))
        return projected_weight(
            name, original, self.bases, self._kind, alpha, self._forget, self._forget_mode, self._coordinates
        )


class KeptTensors:
    """Tensors that are made once and kept, up to a size in bytes; what does not fit is made each time."""

    def __init__(self, size: int) -> None:
        self._free = self._size = size
        self._tensors: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of that name, not to be changed."""
        if key in self._tensors:
            return self._tensors[key]
        made = make()
        if made.nbytes <= self._free:
            self._tensors[key] = made
            self._free -= made.nbytes
        return made

    def clear(self) -> None:
        """Give all up."""
        self._tensors.clear()
        self._free = self._size


@full_precision()
def projected_weight(
    name: str,
    original: Tensor,
    bases: Bases,
    kind: Importance,
    alpha: float,
    forget: Bases | None = None,
    forget_mode: ForgetMode = ForgetMode.KEEP_SHARED,
    kept_coordinates: KeptTensors | None = None,
) -> Tensor:
    """One weight after the repair, in the original's dtype and on its device.

    Args:
        name: The weight's name in the bases.
        original: The weight as it was, whose memory may be taken for the result.
        bases: Of the trusted samples.
        kind: The importance formula.
        alpha: Its coefficient.
        forget: Bases of the suspected samples.
        forget_mode: What they take away.
        kept_coordinates: Those of the same weights from an earlier alpha.

    Raises:
        NumericsError: The result is not finite.
    """
    wide = original.dtype == torch.float64 and original.device.type != "mps"
    projected = original.to(torch.float64 if wide else torch.float32)
    forgotten: dict[WeightView, Basis] = {}
    if forget is not None:
        forgotten = {piece.view: piece.basis for piece in forget.pieces.get(name, ())}
    for piece in bases.pieces[name]:
        if forget is not None and piece.view not in forgotten:
            # What the forget set never met has nothing to forget.
            continue
        for number, block in enumerate(piece.view.blocks(projected)):
            matrices = block.reshape(piece.view.groups, -1, piece.view.row_length)
            in_basis = None
            if kept_coordinates is not None and forget is None:
                make = partial(coordinates, matrices, piece.basis)
                in_basis = kept_coordinates.get((name, piece.view, number), make)
            forget_basis = forgotten.get(piece.view)
            matrices = project(matrices, piece.basis, kind, alpha, forget_basis, forget_mode, in_basis)
            block.copy_(matrices.reshape(block.shape))
    if not bool(torch.isfinite(projected).all()):
        raise NumericsError(
            f"projecting {name} with alpha {alpha:g} gives NaN or infinite values",
            "leave the layer out with --skip-layers, or choose another --alpha",
        )
    return projected.to(original.dtype)


def rescaled_gain(gain: Tensor, weight: Tensor, projected: Tensor) -> Tensor:
    """The gain `g` that a projected weight needs where `g V / ||V||` is what multiplies the rows.

    `g ||V M|| / ||V||` gives `g V M / ||V||`, which is the projection of what was used.

    Args:
        gain: `g`, with the dimensions of the weight, 1 where the norm is taken.
        weight: `V`.
        projected: `V M`.
    """
    axes = [axis for axis, size in enumerate(gain.shape) if size == 1]
    before, after = (torch.linalg.vector_norm(each.float(), dim=axes, keepdim=True) for each in (weight, projected))
    return torch.where(before > 0, gain * (after / before), gain).to(gain.dtype)


def _norm(tensor: Tensor, minus: Tensor | None = None) -> float:
    """The Frobenius norm of a tensor or a difference, in float64 a piece at a time: a whole copy could be large."""
    total = 0.0
    for start in range(0, tensor.numel(), _NORM_ELEMENTS):
        piece = tensor.flatten()[start : start + _NORM_ELEMENTS].double()
        if minus is not None:
            piece -= minus.flatten()[start : start + _NORM_ELEMENTS]
        total += float(piece.square().sum())
    return math.sqrt(total)
