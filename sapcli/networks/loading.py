"""Which entry of a checkpoint belongs to which tensor of a network, and how it is filled from them, strictly."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from sapcli.checkpoints.checkpoint import refuse_quantised
from sapcli.checkpoints.entry_names import (
    candidate_prefixes,
    is_beside_network,
    top_prefixes,
    without_any_inner_wrapper,
)
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

    def require_fit(self, checkpoint: Checkpoint, architecture: str) -> None:
        """Raise what does not fit, if anything.

        Args:
            checkpoint: The checkpoint.
            architecture: The architecture's name, as the user knows it.

        Raises:
            ArchitectureError: Naming some of the missing, unexpected and misshapen names.
        """
        if self.fits:
            return
        source = checkpoint.source
        other = explain_names((*self.unexpected, *self.missing)) if self.unexpected else None
        if other is not None:
            raise ArchitectureError(f"{source} {other.what}, and does not fit {architecture}", other.way_out)
        inside = self._prefixes_of_all_names(checkpoint)
        if inside:
            heads = [prefix.rstrip(".") for prefix in inside]
            raise ArchitectureError(
                f"{source} holds more than the weights of {architecture}, which fits what stands under {_some(heads)}",
                _way_to(inside[0], checkpoint),
            )
        shapes = [f"{name} is {found}, expected {wanted}" for name, (found, wanted) in self.misshapen.items()]
        parts = [("missing", self.missing), ("unexpected", self.unexpected), ("misshapen", shapes)]
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in parts if names)
        raise ArchitectureError(
            f"{source} does not fit {architecture}: {listed}",
            "Give the architecture that was trained (--arch), or its arguments (--arch-arg key=value).",
        )

    def _prefixes_of_all_names(self, checkpoint: Checkpoint) -> list[str]:
        """What stands before all of the network's names in some of the entries, which are a network for themselves."""
        wanted = {*self.entry_names, *self.missing}
        if not self.missing:
            return []
        names = checkpoint.unwrapped_names
        last = f".{self.missing[0]}"
        found = [name.removesuffix(self.missing[0]) for name in names if name.endswith(last)]
        return [prefix for prefix in found if all(prefix + name in names for name in wanted)]


def _way_to(prefix: str, checkpoint: Checkpoint) -> str:
    """How to have a part of a checkpoint alone."""
    head = prefix.rstrip(".")
    if checkpoint.training is not None:
        return f"Say which one with --weights, as in --weights {head}."
    return (
        f"Save that alone: safetensors.torch.save_file({{k.removeprefix({prefix!r}): v for k, v in"
        f" safetensors.torch.load_file(FILE).items() if k.startswith({prefix!r})}}, 'model.safetensors')"
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
    names = checkpoint.unwrapped_names
    prefixes = candidate_prefixes(names) or [""]
    if checkpoint.training is not None and checkpoint.training.is_lightning:
        prefixes = list(dict.fromkeys([*prefixes, *top_prefixes(names)]))
    matches = [_match_under(prefix, checkpoint, outline) for prefix in prefixes]
    best = min(matches, key=lambda match: match.misfits)
    others = [match for match in matches if match.fits and not match.prefix.startswith(best.prefix)]
    if best.fits and others and best.prefix:
        several = [match.prefix.rstrip(".") for match in (best, *others)]
        raise ArchitectureError(
            f"{checkpoint.source} holds {len(several)} networks that fit: {', '.join(several)}",
            f"Say which one with --weights, as in --weights {several[0]}.",
        )
    return best


def written_names(checkpoint: Checkpoint, entry_names: Mapping[str, str], extra: Collection[str]) -> dict[str, str]:
    """What a corrected file holds: from the names in it to the checkpoint's entries.

    Of the state dict in a training file it is the network's entries alone. Where that state dict is a part of the file
    and has more than the network (a Lightning module with its losses, an average with its counter), they get the
    network's own names. Of all others it is all entries, under the names that they have.

    Args:
        checkpoint: The checkpoint.
        entry_names: From the network's names to the entries that fill it.
        extra: The entries that are not the network's.
    """
    training = checkpoint.training
    every = {name: name for name in checkpoint.entries}
    if training is None or not training.is_part or not checkpoint.beside.isdisjoint(every):
        return every
    others = set(extra)
    own = [name for name in checkpoint.entries if name not in others]
    if not own or not (others or training.is_lightning):
        return every
    prefixes = {entry.removesuffix(name) for name, entry in entry_names.items() if entry.endswith(name)}
    prefix = max((it for it in prefixes if all(name.startswith(it) for name in own)), key=len, default="")
    # Buffers that the network computes itself stay with it.
    own += [name for name in extra if prefix and name.startswith(prefix)]
    kept = set(own)
    return {name.removeprefix(prefix): name for name in checkpoint.entries if name in kept}


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
        # The network may have wrapped submodules itself, by torch.compile for one.
        candidates += [without_any_inner_wrapper(candidate) for candidate in candidates]
        found = next((candidate for candidate in candidates if candidate in names), None)
        if found is not None:
            entry_names[name] = names[found]
        elif name not in outline.optional:
            missing.append(name)

    # A Lightning module has more than its network: losses, metrics, buffers of its own.
    is_part = bool(prefix) and checkpoint.training is not None and checkpoint.training.is_lightning
    used = set(entry_names.values())
    derived = {each for name in outline.derived for each in (prefix + name, without_any_inner_wrapper(prefix + name))}
    leftover = {entry: name for name, entry in names.items() if entry not in used}
    extra = {
        entry: None
        for entry, name in leftover.items()
        if name in derived or is_beside_network(name) or (is_part and not name.startswith(prefix))
    } | dict.fromkeys(name for name in entries if name in checkpoint.beside)
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
