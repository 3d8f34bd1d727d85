"""How to build a network so that a checkpoint fits it: the number of classes, the input size, and single options.

All of it is read from the shapes of the checkpoint's tensors, by building outlines of the network and comparing.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING

from sapcli.errors import ArchitectureError
from sapcli.networks.building_limits import BuildingLimits
from sapcli.networks.class_count import PROBED_COUNTS, at_count, class_dimensions, count_classes
from sapcli.networks.loading import Match, Outline, match_entries
from sapcli.networks.own_loading import customises_loading, has_lazy_layers, load_by_own_code, run_on_zeros
from sapcli.networks.preprocessing import Settings

if TYPE_CHECKING:
    from torch import nn

    from sapcli.checkpoints.checkpoint import Checkpoint
    from sapcli.networks.factories import Factory

# What factories call the side of the images that position tables are made for.
_SIZE_OPTIONS = ("img_size", "image_size")
_LARGEST_SIDE = 2048
# So many numbers of classes are tried where no name tells which is right.
_TRIED_COUNTS = 8


@dataclass(frozen=True)
class Plan:
    """A way to build a network, and how a checkpoint fits what comes out.

    Attributes:
        arguments: What the factory is called with, beside the number of classes.
        published: What the network itself, then its library, says about the preprocessing.
        options: The arguments, with their defaults, that shape the network.
        num_classes: The number of classes in the checkpoint; None if the factory does not take one.
        match: How the checkpoint fits at that number.
        runs_first: Whether the network has its tensors, or their shapes, only once it has run.
    """

    arguments: Mapping[str, object]
    published: tuple[Settings, ...]
    options: Mapping[str, object]
    num_classes: int | None
    match: Match
    runs_first: bool = False

    @property
    def is_built_for_a_size(self) -> bool:
        """Whether the size of the images shapes the network, as that of vision transformers."""
        return not self.options.keys().isdisjoint(_SIZE_OPTIONS)


@dataclass(frozen=True)
class _Case:
    """What is to be fitted: a checkpoint, what builds its network, and the input size that was asked for, if any."""

    checkpoint: Checkpoint
    factory: Factory
    requested: object


def fitting_plan(checkpoint: Checkpoint, factory: Factory, arguments: Mapping[str, object], requested: object) -> Plan:
    """The first way to build the network that the checkpoint fits.

    Tried in turn: for the requested input size, where the network is built for one; as the arguments say; for the
    input size that the position tables tell; and with a single yes-or-no option of the network the other way, since a
    file may lack, say, the auxiliary classifier. Of the user's own code also the network that has run once.

    Args:
        checkpoint: The checkpoint.
        factory: What builds the network.
        arguments: What it is called with.
        requested: The input size (channels, height, width) that the user or the checkpoint asks for; None without one.

    Raises:
        ArchitectureError: If the factory fails, or the checkpoint fits none.
    """
    case = _Case(checkpoint, factory, requested)
    plain = _plan(case, arguments)
    best = plain
    for plan in _variants(case, plain):
        if plan.match.fits:
            return plan
        best = min(best, plan, key=lambda plan: plan.match.misfits)
    best.match.require_fit(checkpoint, factory.name)
    return best


def built_input_size(arguments: Mapping[str, object], known: Sequence[Settings]) -> Settings:
    """The input size that a network was built for by its arguments; nothing where they do not choose it."""
    size = next((item.values["input_size"] for item in known if "input_size" in item.values), (3, None, None))
    side = next((arguments[name] for name in _SIZE_OPTIONS if name in arguments), None)
    if not isinstance(size, list | tuple) or len(size) != 3 or (side is None and "in_chans" not in arguments):
        return Settings("", {})
    height, width = side if isinstance(side, list | tuple) and len(side) == 2 else (side or size[1], side or size[2])
    return Settings("the network's arguments", {"input_size": (arguments.get("in_chans", size[0]), height, width)})


def carried_settings(network: nn.Module, name: str) -> tuple[Settings, ...]:
    """What a network says itself about the preprocessing, as timm's do; `name` is what messages call it."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        settings: object = getattr(network, attribute, None)
        if is_dataclass(settings) and not isinstance(settings, type):  # timm's PretrainedCfg
            settings = vars(settings)
        if isinstance(settings, Mapping) and settings:
            return (Settings(f"the {attribute} of {name}", settings),)
    return ()


def _published_settings(factory: Factory, network: nn.Module) -> tuple[Settings, ...]:
    found = carried_settings(network, factory.name)
    library = factory.settings()
    return (*found, Settings(f"the published weights of {factory.name}", library)) if library else found


def _variants(case: _Case, plain: Plan) -> Iterator[Plan]:
    sized = _sized(case, plain)
    if sized:
        yield _plan(case, sized)
    yield plain
    if not plain.match.missing and not plain.match.unexpected:
        yield from _resized(case, plain)
        return
    if case.factory.own is not None and not plain.runs_first:
        # Layers that are made when images first come are no lazy ones to PyTorch.
        with contextlib.suppress(ArchitectureError):
            yield _plan(case, plain.arguments, runs_first=True)
    if len(plain.match.missing) < len(plain.match.entry_names):  # else it is another network altogether
        for option, default in plain.options.items():
            if isinstance(default, bool) and option not in plain.arguments:
                with contextlib.suppress(ArchitectureError):  # not every option goes with the others
                    yield _plan(case, {**plain.arguments, option: not default})


def _plan(case: _Case, arguments: Mapping[str, object], *, runs_first: bool = False) -> Plan:
    """Build the network's outline, and read the number of classes where the checkpoint's shapes follow it."""
    checkpoint, factory = case.checkpoint, case.factory
    if "num_classes" in arguments or not factory.accepts("num_classes"):
        drawn = _drawn(case, arguments, runs_first)
        given = arguments.get("num_classes")
        count = given if isinstance(given, int) else None
        match = match_entries(checkpoint, drawn.outline)
        return _accepted(case, arguments, drawn, count, [count], match)

    drawn, other = (_drawn(case, {**arguments, "num_classes": count}, runs_first) for count in PROBED_COUNTS)
    outline = drawn.outline
    match = match_entries(checkpoint, outline)
    dimensions = class_dimensions(outline.shapes, other.outline.shapes)
    found = {name: checkpoint.entries[entry].shape for name, entry in match.entry_names.items()}
    count = count_classes(dimensions, found)
    if count is not None:
        match = match_entries(checkpoint, outline.with_shapes(at_count(outline.shapes, dimensions, count)))
        return _accepted(case, arguments, drawn, count, [count], match)
    # The network's own code may know its classifier under another name.
    unexpected = [checkpoint.entries[entry].shape for entry in match.unexpected]
    counts = [
        item.count(shape[item.dimension])
        for item in dimensions
        for shape in unexpected
        if len(shape) == len(outline.shapes[item.name])
    ]
    likely = [count for count in dict.fromkeys(counts) if count is not None]
    return _accepted(case, arguments, drawn, None, likely[:_TRIED_COUNTS], match)


@dataclass(frozen=True)
class _Drawn:
    """A network as far as it was looked at before it was let go of."""

    outline: Outline
    published: tuple[Settings, ...]
    options: Mapping[str, object]
    runs_first: bool
    loads_itself: bool


def _drawn(case: _Case, arguments: Mapping[str, object], runs_first: bool) -> _Drawn:
    factory = case.factory
    network = factory.outline(arguments, BuildingLimits.of(case.checkpoint))
    runs_first = runs_first or has_lazy_layers(network)
    with factory.running("cannot be looked at"):
        published = _published_settings(factory, network)
    if runs_first:
        run_on_zeros(factory, network, _size_of_zeros(case, published))
    with factory.running("cannot be looked at"):
        loads_itself = factory.own is not None and customises_loading(network)
        return _Drawn(Outline.of(network), published, factory.options_of(network), runs_first, loads_itself)


def _size_of_zeros(case: _Case, published: Sequence[Settings]) -> tuple[int, ...]:
    """The size of the images that lazy layers are to get their shapes from."""
    known = [case.requested, *(item.values.get("input_size") for item in published)]
    for size in known:
        if isinstance(size, list | tuple) and len(size) == 3 and all(isinstance(side, int) for side in size):
            return tuple(size)
    raise ArchitectureError(
        f"{case.factory.name} has layers that get their shapes from the first images, whose size is not known",
        "Give --input-size as in the training.",
    )


def _accepted(
    case: _Case,
    arguments: Mapping[str, object],
    drawn: _Drawn,
    count: int | None,
    counts: Sequence[int | None],
    match: Match,
) -> Plan:
    """The plan, with the network's own word on whether the checkpoint fits, where it has one and the names do not."""
    plan = Plan(arguments, drawn.published, drawn.options, count, match, drawn.runs_first)
    if match.fits or not drawn.loads_itself:
        return plan
    for tried in counts:
        given = dict(arguments) if tried is None else {**arguments, "num_classes": tried}

        def build(given: Mapping[str, object] = given) -> nn.Module:
            network = case.factory.build(given)
            if drawn.runs_first:
                run_on_zeros(case.factory, network, _size_of_zeros(case, drawn.published))
            return network

        with contextlib.suppress(ArchitectureError):
            load_by_own_code(case.factory, build(), build, case.checkpoint, match, drawn.outline)
            return replace(plan, num_classes=tried, match=replace(match, missing=(), unexpected=(), misshapen={}))
    return plan


def _sized(case: _Case, plain: Plan) -> dict[str, object] | None:
    """The arguments for a requested input size, where it differs from the network's and the network takes one."""
    known = next((item.values.get("input_size") for item in plain.published), None)
    requested = case.requested
    if not isinstance(requested, list | tuple) or len(requested) != 3 or tuple(requested) == known:
        return None
    channels, height, width = requested
    wanted = dict.fromkeys(_SIZE_OPTIONS, height if height == width else (height, width))
    if isinstance(known, list | tuple) and channels != known[0]:
        wanted["in_chans"] = channels
    added = {key: value for key, value in wanted.items() if key in plain.options and key not in plain.arguments}
    return {**plain.arguments, **added} if added else None


def _resized(case: _Case, plain: Plan) -> Iterator[Plan]:
    """The network for the smallest square images that make its first misshapen tensor as large as the checkpoint's."""
    option = next((name for name in _SIZE_OPTIONS if name in plain.options and name not in plain.arguments), None)
    if option is None or not plain.match.misshapen:
        return
    name, (wanted, _) = next(iter(plain.match.misshapen.items()))

    def size_at(side: int) -> int:
        return math.prod(_drawn(case, {**plain.arguments, option: side}, plain.runs_first).outline.shapes[name])

    with contextlib.suppress(ArchitectureError, KeyError):
        side = bisect.bisect_left(range(_LARGEST_SIDE), math.prod(wanted), lo=1, key=size_at)
        yield _plan(case, {**plain.arguments, option: side})
