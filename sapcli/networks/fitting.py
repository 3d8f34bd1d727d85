"""How to build a network so that a checkpoint fits it: the number of classes, the input size, and single options.

All of it is read from the shapes of the checkpoint's tensors, by building outlines of the network and comparing.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING

from sapcli.errors import ArchitectureError
from sapcli.networks.building_limits import BuildingLimits
from sapcli.networks.class_count import PROBED_COUNTS, at_count, class_dimensions, count_classes
from sapcli.networks.loading import Match, Outline, match_entries
from sapcli.networks.preprocessing import Settings

if TYPE_CHECKING:
    from torch import nn

    from sapcli.checkpoints.checkpoint import Checkpoint
    from sapcli.networks.factories import Factory

# What factories call the side of the images that position tables are made for.
_SIZE_OPTIONS = ("img_size", "image_size")
_LARGEST_SIDE = 2048


@dataclass(frozen=True)
class Plan:
    """A way to build a network, and how a checkpoint fits what comes out.

    Attributes:
        arguments: What the factory is called with, beside the number of classes.
        network: The network's outline; its tensors have no values, and not the right number of classes.
        num_classes: The number of classes in the checkpoint; None if the factory does not take one.
        match: How the checkpoint fits at that number.
    """

    arguments: Mapping[str, object]
    network: nn.Module
    num_classes: int | None
    match: Match


def fitting_plan(checkpoint: Checkpoint, factory: Factory, arguments: Mapping[str, object], requested: object) -> Plan:
    """The first way to build the network that the checkpoint fits.

    Tried in turn: for the requested input size, where the network is built for one; as the arguments say; for the
    input size that the position tables tell; and with a single yes-or-no option of the network the other way, since a
    file may lack, say, the auxiliary classifier.

    Args:
        checkpoint: The checkpoint.
        factory: What builds the network.
        arguments: What it is called with.
        requested: The input size (channels, height, width) that the user or the checkpoint asks for; None without one.

    Raises:
        ArchitectureError: If the factory fails, or the checkpoint fits none.
    """
    plain = _plan(checkpoint, factory, arguments)
    best = plain
    for plan in _variants(checkpoint, factory, plain, requested):
        if plan.match.fits:
            return plan
        best = min(best, plan, key=lambda plan: plan.match.misfits)
    best.match.require_fit(checkpoint.source, factory.name)
    return best


def published_settings(factory: Factory, network: nn.Module) -> list[Settings]:
    """What the network itself, then its library, says about the preprocessing."""
    found = []
    for attribute in ("pretrained_cfg", "default_cfg"):
        settings: object = getattr(network, attribute, None)
        if is_dataclass(settings) and not isinstance(settings, type):  # timm's PretrainedCfg
            settings = vars(settings)
        if isinstance(settings, Mapping) and settings:
            found.append(Settings(f"the {attribute} of {factory.name}", settings))
            break
    library = factory.settings()
    return [*found, Settings(f"the published weights of {factory.name}", library)] if library else found


def is_built_for_a_size(factory: Factory, network: nn.Module) -> bool:
    """Whether the size of the images shapes the network, as that of vision transformers."""
    return not factory.options_of(network).keys().isdisjoint(_SIZE_OPTIONS)


def built_input_size(arguments: Mapping[str, object], known: Sequence[Settings]) -> Settings:
    """The input size that a network was built for by its arguments; nothing where they do not choose it."""
    size = next((item.values["input_size"] for item in known if "input_size" in item.values), (3, None, None))
    side = next((arguments[name] for name in _SIZE_OPTIONS if name in arguments), None)
    if not isinstance(size, list | tuple) or len(size) != 3 or (side is None and "in_chans" not in arguments):
        return Settings("", {})
    height, width = side if isinstance(side, list | tuple) and len(side) == 2 else (side or size[1], side or size[2])
    return Settings("the network's arguments", {"input_size": (arguments.get("in_chans", size[0]), height, width)})


def _variants(checkpoint: Checkpoint, factory: Factory, plain: Plan, requested: object) -> Iterator[Plan]:
    sized = _sized(factory, plain, requested)
    if sized:
        yield _plan(checkpoint, factory, sized)
    yield plain
    if not plain.match.missing and not plain.match.unexpected:
        yield from _resized(checkpoint, factory, plain)
    elif len(plain.match.missing) < len(plain.match.entry_names):  # else it is another network altogether
        for option, default in factory.options_of(plain.network).items():
            if isinstance(default, bool) and option not in plain.arguments:
                with contextlib.suppress(ArchitectureError):  # not every option goes with the others
                    yield _plan(checkpoint, factory, {**plain.arguments, option: not default})


def _plan(checkpoint: Checkpoint, factory: Factory, arguments: Mapping[str, object]) -> Plan:
    """Build the network's outline, and read the number of classes where the checkpoint's shapes follow it."""
    limits = BuildingLimits.of(checkpoint)
    if "num_classes" in arguments or not factory.accepts("num_classes"):
        network = factory.outline(arguments, limits)
        given = arguments.get("num_classes")
        match = match_entries(checkpoint, Outline.of(network))
        return Plan(arguments, network, given if isinstance(given, int) else None, match)

    network, other = (factory.outline({**arguments, "num_classes": count}, limits) for count in PROBED_COUNTS)
    outline = Outline.of(network)
    match = match_entries(checkpoint, outline)
    dimensions = class_dimensions(outline.shapes, Outline.of(other).shapes)
    found = {name: checkpoint.entries[entry].shape for name, entry in match.entry_names.items()}
    count = count_classes(dimensions, found)
    if count is not None:
        match = match_entries(checkpoint, outline.with_shapes(at_count(outline.shapes, dimensions, count)))
    return Plan(arguments, network, count, match)


def _sized(factory: Factory, plain: Plan, requested: object) -> dict[str, object] | None:
    """The arguments for a requested input size, where it differs from the network's and the network takes one."""
    known = next((item.values.get("input_size") for item in published_settings(factory, plain.network)), None)
    if not isinstance(requested, list | tuple) or len(requested) != 3 or tuple(requested) == known:
        return None
    channels, height, width = requested
    wanted = dict.fromkeys(_SIZE_OPTIONS, height if height == width else (height, width))
    if isinstance(known, list | tuple) and channels != known[0]:
        wanted["in_chans"] = channels
    options = factory.options_of(plain.network)
    added = {key: value for key, value in wanted.items() if key in options and key not in plain.arguments}
    return {**plain.arguments, **added} if added else None


def _resized(checkpoint: Checkpoint, factory: Factory, plain: Plan) -> Iterator[Plan]:
    """The network for the smallest square images that make its first misshapen tensor as large as the checkpoint's."""
    options = factory.options_of(plain.network)
    option = next((name for name in _SIZE_OPTIONS if name in options and name not in plain.arguments), None)
    if option is None or not plain.match.misshapen:
        return
    name, (wanted, _) = next(iter(plain.match.misshapen.items()))

    limits = BuildingLimits.of(checkpoint)

    def size_at(side: int) -> int:
        network = factory.outline({**plain.arguments, option: side}, limits)
        return math.prod(Outline.of(network).shapes[name])

    with contextlib.suppress(ArchitectureError, KeyError):
        side = bisect.bisect_left(range(_LARGEST_SIDE), math.prod(wanted), lo=1, key=size_at)
        yield _plan(checkpoint, factory, {**plain.arguments, option: side})
