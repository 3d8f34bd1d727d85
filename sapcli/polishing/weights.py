"""The tensors of a network as a checkpoint has them: kept, put back, and those that are not what they were."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from sapcli.activations.scoring import Classifier
from sapcli.checkpoints.checkpoint import Checkpoint


class Weights:
    """The weights of a network that the checkpoint has a place for, as they were at first and as they are.

    Args:
        classifier: The network.
        checkpoint: Its checkpoint, in whose types the weights will be written.
    """

    def __init__(self, classifier: Classifier, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tensors = _tensors(classifier.module)
        self._entries = {name: classifier.loaded.entry_names.get(name) for name in self._tensors}
        self._kept = classifier.loaded.kept
        self._original = self.now()

    @property
    def count(self) -> int:
        """How many numbers they are."""
        return sum(tensor.numel() for tensor in self._tensors.values())

    def now(self) -> dict[str, Tensor]:
        """All tensors as they are, on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._tensors.items()}

    def differing(self) -> dict[str, Tensor]:
        """Those that are not what they were at first."""
        return {name: tensor for name, tensor in self.now().items() if not _same(tensor, self._original[name])}

    def put(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Put the first tensors back, but for those that are given."""
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_((tensors or {}).get(name, self._original[name]))

    def round(self) -> bool:
        """Make of every tensor what the checkpoint can hold; one that has no place there is put back.

        Returns:
            Whether all of them are finite.
        """
        finite = True
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                entry = self._entries[name]
                # Numbers of batches, tables of positions and the like are no weights.
                if entry is None or name in self._kept or not tensor.is_floating_point():
                    tensor.copy_(self._original[name])
                    continue
                if not _same(tensor.detach().cpu(), self._original[name]):
                    tensor.copy_(tensor.to(self._checkpoint.entries[entry].dtype))
                    finite = finite and bool(torch.isfinite(tensor).all())
        return finite

    def replacements(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By entry, those of `tensors` that are to be written."""
        return {
            entry: tensor
            for name, tensor in tensors.items()
            if (entry := self._entries.get(name)) is not None and not _same(tensor, self._original[name])
        }


def names_at_rest(names: Collection[str], trained: Collection[str]) -> set[str]:
    """The names of modules with parameters of which none is trained."""
    modules = {name.rpartition(".")[0] for name in names}
    return modules - {name.rpartition(".")[0] for name in trained}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and saved buffers, under all their names."""
    saved = module.state_dict(keep_vars=True).keys()
    named = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return {name: tensor for name, tensor in named.items() if name in saved or tensor.requires_grad}


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first, second)
