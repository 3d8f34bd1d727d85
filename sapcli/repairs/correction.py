"""The network under repair: the weights of one alpha after another, and the way back to what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from sapcli.activations.scoring import Classifier
from sapcli.repairs.batchnorm import batchnorm_layers
from sapcli.repairs.layer_plan import LayerPlan
from sapcli.repairs.projected_weights import ProjectedWeights


class Correction:
    """Writes repaired weights into a network, and takes them back.

    Args:
        classifier: The network, changed in place.
        weights: What is written, for every alpha.
        plan: Which weights to project.
        calibrate: Re-estimates the BatchNorm statistics after a projection, on all or, for a first look, on the first
            so many of its images; `None` keeps them.

    Raises:
        NumericsError: No activation of the samples reached a weight that is to be projected.
    """

    def __init__(
        self,
        classifier: Classifier,
        weights: ProjectedWeights,
        plan: LayerPlan,
        calibrate: Callable[[int | None], None] | None = None,
    ) -> None:
        weights.bases.require_rows(plan.projected)
        self._classifier = classifier
        self._weights = weights
        self._plan = plan
        self._gains = [gain for gain, name in weights.bases.gains.items() if name in plan.projected]
        self._calibrate = calibrate
        self._parameters = dict(classifier.module.named_parameters())
        self._buffers: dict[str, Tensor] = {}
        if calibrate is not None:
            for name, layer in batchnorm_layers(classifier.module).items():
                for statistic in ("running_mean", "running_var"):
                    self._buffers[f"{name}.{statistic}" if name else statistic] = getattr(layer, statistic)
        self._calibrated: dict[float, dict[str, Tensor]] = {}

    def apply(self, alpha: float, first_look: int | None = None) -> None:
        """Put the weights repaired with `alpha` into the network, and its BatchNorm statistics.

        Args:
            alpha: The importance's coefficient.
            first_look: How many images are enough for the statistics this time.
        """
        for name in (*self._plan.projected, *self._gains):
            self._parameters[name].data.copy_(self._weights.projected(name, alpha))
        if self._calibrate is None:
            return
        if first_look is not None and alpha not in self._calibrated:
            self._calibrate(first_look)
            return
        if alpha not in self._calibrated:
            self._calibrate(None)
            self._calibrated[alpha] = {
                name: buffer.detach().to("cpu", self._weights.dtype(name), copy=True)
                for name, buffer in self._buffers.items()
            }
        for name, buffer in self._buffers.items():
            buffer.copy_(self._calibrated[alpha][name])

    def restore(self) -> None:
        """Put the checkpoint's own weights and statistics back."""
        for name in (*self._plan.projected, *self._gains, *self._buffers):
            target = self._parameters[name].data if name in self._parameters else self._buffers[name]
            target.copy_(self._weights.original(name))

    def replacements(self, alpha: float, written_names: Mapping[str, str] | None = None) -> Mapping[str, Tensor]:
        """What the corrected checkpoint holds instead, made when asked for; after `apply` of this `alpha`.

        Args:
            alpha: The importance's coefficient.
            written_names: As of `changed_entries`.
        """
        return _Replacements(self.changed_entries(written_names), lambda name: self._corrected(name, alpha))

    def removed(self, alpha: float) -> dict[str, float]:
        """How much of each projected weight is removed; see `ProjectedWeights.removed`."""
        return {name: self._weights.removed(name, alpha) for name in self._plan.projected}

    def changed_entries(self, written_names: Mapping[str, str] | None = None) -> dict[str, str]:
        """The name of each entry that changes, to that of the tensor behind it: tied entries all get the same.

        Args:
            written_names: From the names that are asked for to the checkpoint's entries, as a corrected file has them;
                None for the entries' own.
        """
        changed = {_place(self._parameters[name]): name for name in (*self._plan.projected, *self._gains)}
        changed |= {_place(buffer): name for name, buffer in self._buffers.items()}
        entries = {
            self._classifier.loaded.entry_names[name]: changed[_place(tensor)]
            for name, tensor in _tensors(self._classifier.module).items()
            if _place(tensor) in changed and name in self._classifier.loaded.entry_names
        }
        if written_names is None:
            return entries
        return {new: entries[entry] for new, entry in written_names.items() if entry in entries}

    def _corrected(self, name: str, alpha: float) -> Tensor:
        return self._calibrated[alpha][name] if name in self._buffers else self._weights.projected(name, alpha).cpu()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers under all their names; a network's own state dict may hold other tensors."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


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
