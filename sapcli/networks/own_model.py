"""A network of the user's own as its own code makes it: built, filled, put into eval mode, and only then looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves  # noqa: PLC2701

from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.networks.derived_values import USED_FOR_OTHERS, FollowedTensors
from sapcli.networks.factories import Factory, values_outside_of_checkpoints
from sapcli.networks.loading import Match, Outline, fill, match_entries
from sapcli.networks.own.outputs import logits_alone
from sapcli.networks.own_loading import (
    CHANGED,
    customises_evaluation,
    customises_loading,
    entries_in_memory,
    give_memory,
    load_by_own_code,
    run_on_zeros,
)

# Another seed, to see whether random numbers reach what no checkpoint holds.
_ANOTHER_SEED = 1
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_OUTPUTS = "(outputs)"


@dataclass(frozen=True)
class OwnRecipe:
    """What a network of the user's own is made of.

    Attributes:
        factory: What builds it.
        checkpoint: What it is filled from.
        arguments: What the factory is called with.
        input_size: The size of its images: channels, height, width.
        runs_first: Whether it runs once before it is filled.
    """

    factory: Factory
    checkpoint: Checkpoint
    arguments: Mapping[str, object]
    input_size: tuple[int, int, int]
    runs_first: bool

    def build(self, seed: int | None = None) -> nn.Module:
        """The network before it is filled; `seed` is for random numbers that its code does not seed itself."""
        network = self.factory.build(self.arguments, seed=seed)
        give_memory(network, self.factory.name)
        with self.factory.running("cannot be converted to float32"):
            _to_float32(network)
        if self.runs_first:
            run_on_zeros(self.factory, network, self.input_size)
        return network


@dataclass(frozen=True)
class OwnModel:
    """A network of the user's own, filled; see `LoadedModel` for the attributes."""

    module: nn.Module
    entry_names: Mapping[str, str]
    extra_entries: tuple[str, ...]
    kept: Mapping[str, str]
    notes: tuple[str, ...]


def fill_own(recipe: OwnRecipe) -> nn.Module:
    """The network, filled and in eval mode.

    Raises:
        ArchitectureError: Its code fails, or does not accept the entries.
        CheckpointError: A tensor cannot be read.
        NumericsError: A weight is not finite.
    """
    return _filled(recipe).network


def load_own(recipe: OwnRecipe) -> OwnModel:
    """The network, filled and in eval mode, and what of the checkpoint it holds then; raises as `fill_own` does."""
    factory, checkpoint = recipe.factory, recipe.checkpoint
    notes = _about_random_values(recipe)
    filled = _filled(recipe)
    network, named = filled.network, filled.match.entry_names
    with factory.running("cannot be looked at"):
        outside = values_outside_of_checkpoints(network)
        entry_names, changed = entries_in_memory(network, checkpoint, named, checkpoint.source)
        others = frozenset[str]() if filled.followed is None else filled.followed.used_for_others(network, outside)
        kept = dict.fromkeys(sorted(others), USED_FOR_OTHERS) | dict.fromkeys(sorted(changed), CHANGED)
    used = {*named.values(), *entry_names.values()}
    extra = tuple(entry for entry in checkpoint.entries if entry not in used)
    return OwnModel(network, entry_names, extra, kept, notes)


@dataclass(frozen=True)
class _Filled:
    """A network in eval mode, how the checkpoint's names fit its own, and what was made of its tensors meanwhile."""

    network: nn.Module
    match: Match
    followed: FollowedTensors | None


def _filled(recipe: OwnRecipe, seed: int | None = None) -> _Filled:
    factory, checkpoint = recipe.factory, recipe.checkpoint
    network = recipe.build(seed)
    with factory.running("cannot be looked at"):
        outline, loads_itself = Outline.of(network), customises_loading(network)
        followed = FollowedTensors() if loads_itself or customises_evaluation(network) else None
    match = match_entries(checkpoint, outline)
    if followed is not None:
        followed.begin(network)

    def build_again() -> nn.Module:
        again = recipe.build(seed)
        if followed is not None:
            followed.begin(again)
        return again

    with followed or contextlib.nullcontext():
        if loads_itself:
            network = load_by_own_code(factory, network, build_again, checkpoint, match, outline)
        else:
            match.require_fit(checkpoint, factory.name)
            fill(network, checkpoint, match)
        with factory.running("cannot be put into eval mode"):
            network.eval()  # a statement: what it returns, if anything, is the code's own business
            make_contiguous(network)
            if not isinstance(network, torch.jit.ScriptModule):  # which takes no hooks
                network.register_forward_hook(logits_alone)
    return _Filled(network, match, followed)


def _about_random_values(recipe: OwnRecipe) -> tuple[str, ...]:
    """What is to be said of values that no checkpoint holds and no seed decides, where the logits depend on them."""
    factory = recipe.factory
    if factory.own is None or not factory.own.draws_at_random:
        return ()
    with factory.running("cannot be looked at"):
        first, other = (_own_values(recipe.build(seed)) for seed in (None, _ANOTHER_SEED))
    if not _differing(first, other):
        return ()
    # Loading and the first images may make the values anew, so what comes out decides; and what counts the networks
    # that are built, say, does not depend on the seed.
    again, same, other = (_values_and_outputs(recipe, seed) for seed in (None, None, _ANOTHER_SEED))
    by_chance = _differing(again, other) - _differing(again, same)
    if _OUTPUTS not in by_chance:
        return ()
    named = ", ".join(sorted(by_chance - {_OUTPUTS})[:1]) or "something"
    return (
        (
            f"{named} of {factory.name} is drawn at random without a seed, and no checkpoint holds it: the results are"
            " those of one draw, and the network had another one when it was trained"
        ),
    )


def _values_and_outputs(recipe: OwnRecipe, seed: int | None) -> dict[str, list[Tensor]]:
    """What the filled network has beside the checkpoint, and what it makes of noise."""
    network = _filled(recipe, seed).network
    noise = torch.randn(2, *recipe.input_size, generator=torch.Generator().manual_seed(0))
    with recipe.factory.running("cannot run on images"), torch.no_grad():
        outputs = [leaf.clone() for leaf in tree_leaves(network(noise)) if isinstance(leaf, Tensor)]
        return {**_own_values(network), _OUTPUTS: outputs}


def _own_values(network: nn.Module) -> dict[str, list[Tensor]]:
    """The numbers that no checkpoint holds, by attribute: unsaved buffers, tensors, arrays, numbers, lists of them."""
    found = {name: [value] for name, value in values_outside_of_checkpoints(network).items()}
    for prefix, module in network.named_modules():
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE:
                numbers = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor | np.ndarray | int | float)]
                found[f"{prefix}.{name}".lstrip(".")] = [torch.as_tensor(number).detach() for number in numbers]
    return found


def _differing(one: Mapping[str, Sequence[Tensor]], other: Mapping[str, Sequence[Tensor]]) -> set[str]:
    return {name for name in one.keys() | other.keys() if not _same(one.get(name, ()), other.get(name))}


def _same(values: Sequence[Tensor], others: Sequence[Tensor] | None) -> bool:
    named, other_named = (dict(zip(map(str, range(len(each))), each, strict=True)) for each in (values, others or ()))
    return len(named) == len(other_named) and same_tensors(named, other_named)


def _to_float32(network: nn.Module) -> None:
    """One dtype throughout, where the network's own code has one; where it mixes several, it knows why."""
    dtypes = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    if len(dtypes) == 1 and dtypes != {torch.float32}:
        network.float()


def make_contiguous(network: nn.Module) -> None:
    """Lay out parameters whose memory is in another order, as everything that reads them expects."""
    for parameter in network.parameters():
        if not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()


def same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether the second holds all tensors of the first, of the same types and values."""
    return all(
        name in second
        and value.shape == second[name].shape
        and value.dtype == second[name].dtype
        and torch.allclose(value, second[name], rtol=0, atol=0, equal_nan=True)
        for name, value in first.items()
    )
