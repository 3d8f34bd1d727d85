"""Which entry of a checkpoint belongs to which tensor of a network, and how it is filled from them, strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from sapcli.checkpoints.checkpoint import refuse_quantised
from sapcli.checkpoints.entry_names import TRAINING_STATE, candidate_prefixes
from sapcli.checkpoints.other_formats import explain_names
from sapcli.errors import ArchitectureError, NumericsError

if TYPE_CHECKING:
    from torch import Tensor

    from sapcli.checkpoints.checkpoint import Checkpoint

_NAMED_AT_MOST = 4


@dataclass(frozen=True)
class Outline:
    """What a network expects of a checkpoint.

    Attributes:
        shapes: The shape of every tensor of its state dict, by name.
        tied_names: For every name, all names of the same tensor (tied weights), itself included.
        optional: Names that a checkpoint may lack: BatchNorm's batch counters, which old files do not have.
        derived: Buffers that the network computes itself, and that files of older versions contain nevertheless.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tied_names: Mapping[str, tuple[str, ...]]
    optional: frozenset[str]
    derived: frozenset[str]

    @classmethod
    def of(cls, network: nn.Module) -> Outline:
        """The outline of a network, which may be on the meta device."""
        tensors = state_tensors(network)
        groups: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            groups.setdefault(id(tensor), []).append(name)
        return cls(
            shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
            tied_names={name: tuple(groups[id(tensor)]) for name, tensor in tensors.items()},
            optional=frozenset(name for name in tensors if name.rpartition(".")[2] == "num_batches_tracked"),
            derived=frozenset(name for name, _ in network.named_buffers(remove_duplicate=False) if name not in tensors),
        )

    def with_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> Outline:
        """The same names with other shapes."""
        return replace(self, shapes=shapes)


@dataclass(frozen=True)
class Match:
    """How the entries of a checkpoint fit an outline.

    Attributes:
        prefix: What stands before the network's names in the checkpoint (`module.`), else "".
        entry_names: From the network's name to the entry's; tied names may share one entry.
        extra_entries: Entries that are not the network's: training state, and buffers that it computes itself.
        missing: Names that the checkpoint ought to have.
        unexpected: Entries that the network has no place for.
        misshapen: For a name, the shape in the checkpoint and the shape in the network.
    """

    prefix: str
    entry_names: Mapping[str, str]
    extra_entries: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether every tensor has its entry, every entry its place, and all shapes agree."""
        return not (self.missing or self.unexpected or self.misshapen)

    @property
    def misfits(self) -> int:
        """The number of names that do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def require_fit(self, source: str, architecture: str) -> None:
        """Raise what does not fit, if anything.

        Args:
            source: The checkpoint, as the user knows it.
            architecture: The architecture's name, likewise.

        Raises:
            ArchitectureError: Naming some of the missing, unexpected and misshapen names.
        """
        if self.fits:
            return
        other = explain_names((*self.unexpected, *self.missing)) if self.unexpected else None
        if other is not None:
            raise ArchitectureError(f"{source} {other.what}, and does not fit {architecture}", other.way_out)
        shapes = [f"{name} is {found}, expected {wanted}" for name, (found, wanted) in self.misshapen.items()]
        parts = [("missing", self.missing), ("unexpected", self.unexpected), ("misshapen", shapes)]
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in parts if names)
        raise ArchitectureError(
            f"{source} does not fit {architecture}: {listed}",
            "Give the architecture that was trained (--arch), or its arguments (--arch-arg key=value).",
        )


def state_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state dict, tied ones being the same object."""
    return {
        name: value for name, value in network.state_dict(keep_vars=True).items() if isinstance(value, torch.Tensor)
    }


def match_entries(checkpoint: Checkpoint, outline: Outline) -> Match:
    """Find the entry of every tensor, under the prefix that leaves the fewest names without a partner.

    A name whose tensor was left out because it shares its memory with another (safetensors' `save_model` does that, and
    says in the metadata which name stands for it) takes the other's entry.
    """
    prefixes = candidate_prefixes(checkpoint.unwrapped_names) or [""]
    return min((_match_under(prefix, checkpoint, outline) for prefix in prefixes), key=lambda match: match.misfits)


def fill(network: nn.Module, checkpoint: Checkpoint, match: Match) -> None:
    """Copy a checkpoint's entries into a network, one at a time, so that memory holds no second copy of it.

    Args:
        network: The network on the CPU, whose outline `match` was made for.
        checkpoint: Where the entries come from; they are cast to the network's dtypes.
        match: A match that fits.

    Raises:
        ArchitectureError: If entries differ that the network ties to one tensor.
        CheckpointError: If an entry cannot be read, or weights are stored as integers.
        NumericsError: If a parameter's entry contains a NaN or an infinity.
    """
    tensors = state_tensors(network)
    floating = {name for name, tensor in tensors.items() if tensor.is_floating_point()}
    refuse_quantised(checkpoint, [entry for name, entry in match.entry_names.items() if name in floating])
    filled: dict[int, str] = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            entry = match.entry_names.get(name)
            if entry is None or filled.get(id(tensor)) == entry:
                continue
            values = checkpoint.read(entry).to(tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                require_finite(values, entry, checkpoint.source)
            first = filled.setdefault(id(tensor), entry)
            if first == entry:
                tensor.copy_(values)
            elif not torch.equal(values, tensor):
                raise ArchitectureError(
                    f"{first} and {entry} of {checkpoint.source} differ, but the network uses one tensor for both",
                    "Give the architecture (--arch) or the arguments (--arch-arg) under which they are two tensors.",
                )


def require_finite(values: Tensor, entry: str, source: str) -> None:
    """Raise where a parameter's values, from that entry of a checkpoint, contain a NaN or an infinity.

    Raises:
        NumericsError: They do.
    """
    if not torch.isfinite(values).all():
        raise NumericsError(
            f"{entry} of {source} contains NaN or infinite values",
            "The training that wrote it went wrong: take an earlier checkpoint.",
        )


def _match_under(prefix: str, checkpoint: Checkpoint, outline: Outline) -> Match:
    entries, names = checkpoint.entries, checkpoint.unwrapped_names
    entry_names: dict[str, str] = {}
    missing = []
    for name, tied_names in outline.tied_names.items():
        stand_in = checkpoint.metadata.get(prefix + name, prefix + name)
        candidates = [prefix + name, stand_in, *(prefix + tied for tied in tied_names)]
        found = next((candidate for candidate in candidates if candidate in names), None)
        if found is not None:
            entry_names[name] = names[found]
        elif name not in outline.optional:
            missing.append(name)

    used = set(entry_names.values())
    derived = {prefix + name for name in outline.derived}
    leftover = {entry: name for name, entry in names.items() if entry not in used}
    extra = {
        entry: None for entry, name in leftover.items() if name in derived or name.partition(".")[0] in TRAINING_STATE
    }
    return Match(
        prefix=prefix,
        entry_names=entry_names,
        extra_entries=tuple(extra),
        missing=tuple(missing),
        unexpected=tuple(entry for entry in leftover if entry not in extra),
        misshapen={
            name: (entries[entry].shape, outline.shapes[name])
            for name, entry in entry_names.items()
            if entries[entry].shape != outline.shapes[name]
        },
    )


def _some(names: Sequence[str]) -> str:
    # Names come from the file: what a terminal would obey is escaped.
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:_NAMED_AT_MOST])
    return shown if len(names) <= _NAMED_AT_MOST else f"{shown}, ... and {len(names) - _NAMED_AT_MOST} more"
