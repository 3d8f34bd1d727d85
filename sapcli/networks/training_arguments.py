"""What a training file tells of its network by the command line and the hyperparameters that lie beside the weights.

timm's training script saves its arguments, torchvision's reference scripts theirs, Lightning the hyperparameters of a
module. Only what is said there counts, under the names that these tools use; what is no name of a known architecture,
or no number where one is expected, tells nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sapcli.networks.factories import known_library
from sapcli.networks.preprocessing import CROP_MODES, INTERPOLATIONS

if TYPE_CHECKING:
    from sapcli.checkpoints.checkpoint import Checkpoint

_NAMES = ("arch", "model", "model_name", "architecture", "backbone", "net", "network", "base_model")
_PLACES = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt", "options", "params")
# Of the images that torchvision's reference scripts prepare, whatever the network.
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_SIDES = ("img_size", "image_size", "input_size", "crop_size", "resolution")


@dataclass(frozen=True)
class TrainingArguments:
    """What a training file says.

    Attributes:
        name: The architecture, as `timm:resnet18`; None where no known one is named.
        arguments: What its factory was called with.
        settings: The preprocessing, in the terms of timm's `pretrained_cfg`.
        source: Where that stands: `arch and args of the file`.
    """

    name: str | None
    arguments: Mapping[str, object]
    settings: Mapping[str, object]
    source: str


def training_arguments(checkpoint: Checkpoint) -> TrainingArguments | None:
    """What the file of a training says beside its weights; None where it says nothing of the network."""
    about = {} if checkpoint.training is None else checkpoint.training.about
    places = [(key, value) for key in _PLACES if isinstance(value := about.get(key), dict)]
    if not about:
        return None
    by_timm = any(_is_timms(value) for _, value in places)
    name, where = _name([("", about), *places], prefers_timm=by_timm)
    sources = [where] if name else []
    settings: dict[str, object] = {}
    arguments: dict[str, object] = {}
    for key, value in places:
        found = _settings(value)
        settings = found | settings
        if by_timm:
            arguments |= _timm_arguments(value)
        if found or (by_timm and _timm_arguments(value)):
            sources.append(key)
    if name is None and not settings:
        return None
    return TrainingArguments(name, arguments, settings, f"{' and '.join(dict.fromkeys(sources))} of the file")


def _name(places: list[tuple[str, Mapping[str, object]]], *, prefers_timm: bool) -> tuple[str | None, str]:
    """The first architecture that is named and known, with its library, and the key that names it."""
    for place, values in places:
        for key in _NAMES:
            value = values.get(key)
            library = known_library(value, prefers_timm=prefers_timm) if isinstance(value, str) else None
            if library is not None:
                return f"{library}:{str(value).rpartition(':')[2].removeprefix('timm/')}", place or key
    return None, ""


def _is_timms(arguments: Mapping[str, object]) -> bool:
    """Whether these are the arguments of timm's training script."""
    return "model" in arguments and {"crop_pct", "mean", "std", "interpolation"} <= arguments.keys()


def _timm_arguments(arguments: Mapping[str, object]) -> dict[str, object]:
    """What timm's script hands to `create_model` that shapes the network or what it computes."""
    found: dict[str, object] = {}
    for key, name in (("in_chans", "in_chans"), ("gp", "global_pool"), ("bn_eps", "bn_eps")):
        if arguments.get(key) is not None:
            found[name] = arguments[key]
    more = arguments.get("model_kwargs")
    return {**found, **more} if isinstance(more, dict) else found


def _settings(arguments: Mapping[str, object]) -> dict[str, object]:
    """How images are prepared, as far as the arguments say."""
    found: dict[str, object] = {}
    for key in ("mean", "std"):
        values = arguments.get(key)
        if _is_numbers(values):
            found[key] = values
    if arguments.get("interpolation") in INTERPOLATIONS:
        found["interpolation"] = arguments["interpolation"]
    if _is_number(arguments.get("crop_pct")):
        found["crop_pct"] = arguments["crop_pct"]
    if arguments.get("crop_mode") in CROP_MODES:
        found["crop_mode"] = arguments["crop_mode"]
    size = _input_size(arguments)
    if size is not None:
        found["input_size"] = size
    resized, cropped = arguments.get("val_resize_size"), arguments.get("val_crop_size")
    if isinstance(resized, int) and isinstance(cropped, int) and 0 < cropped <= resized:
        share = cropped / resized
        # timm resizes to the floor of the quotient.
        share = share if math.floor(cropped / share) == resized else math.nextafter(share, 0.0)
        found |= {"input_size": [3, cropped, cropped], "crop_pct": share, **_IMAGENET}
    return found


def _input_size(arguments: Mapping[str, object]) -> list[int] | None:
    """Channels, height and width, from whichever of the usual names has them."""
    channels = arguments.get("in_chans")
    channels = channels if isinstance(channels, int) and channels > 0 else 3
    # timm's script goes by the whole size before the side.
    for key in sorted(_SIDES, key=lambda key: key != "input_size"):
        value = arguments.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return [channels, value, value]
        if isinstance(value, list) and all(type(side) is int and side > 0 for side in value):
            if len(value) == 3:
                return value
            if len(value) == 2:
                return [channels, *value]
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_numbers(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) for item in value)
    )
