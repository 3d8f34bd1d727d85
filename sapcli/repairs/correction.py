"""The network under repair: the weights of one alpha after another, and the way back to what it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from sapcli.activations.bases import Bases
from sapcli.activations.moments import Basis
from sapcli.activations.rows import WeightView
from sapcli.activations.scoring import Classifier
from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.errors import NumericsError
from sapcli.machine.device import full_precision
from sapcli.machine.heap import give_back_freed_memory
from sapcli.repairs.batchnorm import batchnorm_layers
from sapcli.repairs.layer_plan import LayerPlan
from sapcli.repairs.projection import coordinates, project
from sapcli.settings import ForgetMode, Importance

_NORM_ELEMENTS = 1 << 20
# What is needed again is kept up to this size: projected weights for the comparison, the digest and the file, and their
# coordinates for the next alpha.
_KEPT_BYTES = 1 << 26
# Each weight that is made can leave a gap of its own size in a heap that keeps freed memory, where a small object came
# to lie behind what it was made with. After so many bytes of weights the gaps are given back.
_GAPS_BYTES = 1 << 24


class Correction:
    """Writes repaired weights into a network, and takes them back.

    The original weights are read from the checkpoint's file each time, so that memory holds no second copy of the
    model, and everything is rounded to the file's dtype before it is tried: what is measured is what is written.

    Args:
        classifier: The network, changed in place.
        checkpoint: The file that it was loaded from.
        bases: Of the trusted samples.
        plan: Which weights to project.
        kind: The importance formula.
        forget: Bases of the suspected samples.
        forget_mode: What they take away.
        calibrate: Re-estimates the BatchNorm statistics after a projection, on all or, for a first look, on the first
            so many of its images; `None` keeps them.

    Raises:
        NumericsError: No activation of the samples reached a weight that is to be projected.
    """

    def __init__(
        self,
        classifier: Classifier,
        checkpoint: Checkpoint,
        bases: Bases,
        plan: LayerPlan,
        kind: Importance,
        *,
        forget: Bases | None = None,
        forget_mode: ForgetMode = ForgetMode.KEEP_SHARED,
        calibrate: Callable[[int | None], None] | None = None,
    ) -> None:
        bases.require_rows(plan.projected)
        self._classifier = classifier
        self._checkpoint = checkpoint
        self._bases = bases
        self._plan = plan
        self._gains = {gain: name for gain, name in bases.gains.items() if name in plan.projected}
        self._kind = kind
        self._forget = forget
        self._forget_mode = forget_mode
        self._calibrate = calibrate
        self._parameters = dict(classifier.module.named_parameters())
        self._buffers: dict[str, Tensor] = {}
        if calibrate is not None:
            for name, layer in batchnorm_layers(classifier.module).items():
                for statistic in ("running_mean", "running_var"):
                    self._buffers[f"{name}.{statistic}" if name else statistic] = getattr(layer, statistic)
        self._calibrated: dict[float, dict[str, Tensor]] = {}
        self._made = KeptTensors(_KEPT_BYTES)
        self._made_with: float | None = None
        self._gaps = 0
        self._coordinates = KeptTensors(_KEPT_BYTES)

    def apply(self, alpha: float, first_look: int | None = None) -> None:
        """Put the weights repaired with `alpha` into the network, and its BatchNorm statistics.

        Args:
            alpha: The importance's coefficient.
            first_look: How many images are enough for the statistics this time.
        """
        for name in (*self._plan.projected, *self._gains):
            self._parameters[name].data.copy_(self._projected(name, alpha))
        if self._calibrate is None:
            return
        if first_look is not None and alpha not in self._calibrated:
            self._calibrate(first_look)
            return
        if alpha not in self._calibrated:
            self._calibrate(None)
            self._calibrated[alpha] = {
                name: buffer.detach().to("cpu", self._entry_dtype(name), copy=True)
                for name, buffer in self._buffers.items()
            }
        for name, buffer in self._buffers.items():
            buffer.copy_(self._calibrated[alpha][name])

    def restore(self) -> None:
        """Put the checkpoint's own weights and statistics back."""
        for name in (*self._plan.projected, *self._gains, *self._buffers):
            target = self._parameters[name].data if name in self._parameters else self._buffers[name]
            target.copy_(self._original(name))

    def replacements(self, alpha: float) -> Mapping[str, Tensor]:
        """What the corrected checkpoint holds instead, by entry, made when asked for; after `apply` of this `alpha`."""
        return _Replacements(self.changed_entries(), lambda name: self._corrected(name, alpha))

    def removed(self, alpha: float) -> dict[str, float]:
        """How much of each projected weight is removed: `||W - W M|| / ||W||`, Frobenius, 0 for a weight of zeros."""
        shares = {}
        for name in self._plan.projected:
            original = self._original(name)
            size = _norm(original)
            change = _norm(original, self._projected(name, alpha).cpu())
            shares[name] = change / size if size else 0.0
        return shares

    def _corrected(self, name: str, alpha: float) -> Tensor:
        return self._calibrated[alpha][name] if name in self._buffers else self._projected(name, alpha).cpu()

    def _projected(self, name: str, alpha: float) -> Tensor:
        """The projected weight, or its new size, in the entry's dtype, on the network's device; not to be changed."""
        if alpha != self._made_with:
            self._made.clear()
            self._made_with = alpha
        return self._made.get(name, lambda: self._make(name, alpha))

    def _make(self, name: str, alpha: float) -> Tensor:
        if self._gaps > _GAPS_BYTES:
            give_back_freed_memory()
            self._gaps = 0
        original = self._original(name).to(self._classifier.device)
        self._gaps += original.nbytes
        if name in self._gains:
            weight = self._gains[name]
            return rescaled_gain(original, self._original(weight).to(original.device), self._projected(weight, alpha))
        return projected_weight(
            name, original, self._bases, self._kind, alpha, self._forget, self._forget_mode, self._coordinates
        )

    def _original(self, name: str) -> Tensor:
        return self._checkpoint.read(self._classifier.loaded.entry_names[name])

    def _entry_dtype(self, name: str) -> torch.dtype:
        entry = self._classifier.loaded.entry_names.get(name)
        return torch.float32 if entry is None else self._checkpoint.entries[entry].dtype

    def changed_entries(self) -> dict[str, str]:
        """The name of each entry that changes, to that of the tensor behind it: tied entries all get the same."""
        changed = {_place(self._parameters[name]): name for name in (*self._plan.projected, *self._gains)}
        changed |= {_place(buffer): name for name, buffer in self._buffers.items()}
        return {
            self._classifier.loaded.entry_names[name]: changed[_place(tensor)]
            for name, tensor in self._classifier.module.state_dict().items()
            if _place(tensor) in changed and name in self._classifier.loaded.entry_names
        }


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


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """Where a tensor lies in memory, and its shape: the same for one tensor under several names."""
    return tensor.data_ptr(), tuple(tensor.shape)


class _Replacements(Mapping[str, Tensor]):
    """Tensors made when they are asked for, so that not all are in memory at once."""

    def __init__(self, names: Mapping[str, str], make: Callable[[str], Tensor]) -> None:
        self._names = names
        self._make = make

    def __getitem__(self, entry: str) -> Tensor:
        return self._make(self._names[entry])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
