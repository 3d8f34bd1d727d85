"""How an image becomes the network's input: every setting from a source that can be named, none guessed silently."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from sapcli.errors import ArchitectureError, SapError, UsageError
from sapcli.settings import Exif, PreprocessingOverrides

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
"""What can be chosen, by timm's names."""
# What stands for the filter and the crop where nothing is resized or cropped.
_READY = "none"

# The effect of these on images of about the input's size is small; the other settings have no harmless value.
_HARMLESS = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
# Beyond any real setting; what a file claims beyond it is damaged.
_LARGEST = 1 << 16
# Values of one image, three channels of 2364 x 2364 pixels, unless the user types another size; and of the image that
# it is cropped from, which a small crop_pct makes large.
_MOST_VALUES = 1 << 24
_MOST_BEFORE_CROPPING = 1 << 26

_OPTIONS = {"input_size": "--input-size", "mean": "--mean", "std": "--std"}


@dataclass(frozen=True)
class Preprocessing:
    """The way from an image to the network's input.

    Attributes:
        input_size: Channels, height, width.
        mean: Per channel, of values in [0, 1]; subtracted. Empty where it is not known, and no image is prepared.
        std: Per channel, likewise; divided by.
        interpolation: PIL's name of the filter, in lower case.
        crop_pct: The side of the crop over the side that the image is resized to.
        crop_mode: `center`, `squash` or `border`, as in timm.
        source: Where the settings come from, for people.
        exif: What becomes of the images' EXIF orientation.
        image_processor: The settings of the image processor of transformers that resizes and crops, as JSON; empty
            where that is done here. The mean and the deviation are those of what it makes.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    source: str
    exif: Exif = Exif.IGNORE
    image_processor: str = ""

    def __str__(self) -> str:
        """The settings in one line."""
        channels, height, width = self.input_size
        if self.is_ready:
            return f"{channels}x{height}x{width}, ready tensors taken as they are"
        mean, std = (",".join(f"{value:.3g}" for value in values) or "not known" for values in (self.mean, self.std))
        crop = f"crop {self.crop_pct:.3g}" + (f" {self.crop_mode}" if self.crop_mode != "center" else "")
        turned = ", EXIF orientation applied" if self.exif is Exif.APPLY else ""
        resized = f"{self.interpolation}, {crop}"
        if self.image_processor:
            resized = f"by transformers' {json.loads(self.image_processor).get('image_processor_type')}"
        return f"{channels}x{height}x{width}, {resized}, mean {mean}, std {std}{turned}"

    @property
    def is_ready(self) -> bool:
        """Whether there is nothing to prepare, since the images are the network's inputs."""
        return self.crop_mode == _READY

    def to_settings(self) -> dict[str, object]:
        """All but the source, in the terms of timm's `pretrained_cfg`; `exif`, which it has not, only where applied."""
        left_out = {"source"} | ({"exif"} if self.exif is not Exif.APPLY else set())
        left_out |= set() if self.image_processor else {"image_processor"}
        return {key: value for key, value in vars(self).items() if key not in left_out}


@dataclass(frozen=True)
class Settings:
    """What one source says about the preprocessing, in the terms of timm's `pretrained_cfg`."""

    source: str
    values: Mapping[str, object]


def ready_tensors(shape: Sequence[int]) -> Preprocessing:
    """The preprocessing of tensors `[C, H, W]` that are the network's inputs as they are."""
    channels, height, width = shape
    mean, std = (0.0,) * channels, (1.0,) * channels
    return Preprocessing((channels, height, width), mean, std, _READY, 1.0, _READY, "the dataset's tensors")


def resolve_preprocessing(
    name: str, sources: Sequence[Settings], overrides: PreprocessingOverrides, *, for_images: bool = True
) -> Preprocessing:
    """Put the preprocessing together.

    Args:
        name: The architecture, for messages.
        sources: What is known, the most important first; each setting is taken from the first that has it.
        overrides: The user's options, before all of them.
        for_images: Whether images are going to be prepared; otherwise mean and std may be left open, and are empty.

    Raises:
        ArchitectureError: If the input size, mean or std is known from nowhere, or a value makes no sense.
        UsageError: If it is an option's value that makes none.
    """
    given = {key: value for key, value in vars(overrides).items() if value is not None}
    layers = [*(Settings(f"--{key.replace('_', '-')}", {key: value}) for key, value in given.items()), *sources]
    chosen: dict[str, tuple[object, str]] = {}  # the value and where it comes from
    for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "exif", "image_processor"):
        layer = next((layer for layer in layers if layer.values.get(key) not in (None, "")), None)
        if layer is None and key in _HARMLESS:
            layer = Settings(f"the default {key}", _HARMLESS)
        if layer is not None:
            chosen[key] = layer.values[key], layer.source

    left_open = () if for_images else ("mean", "std")
    unknown = [option for key, option in _OPTIONS.items() if key not in chosen and key not in left_open]
    if unknown:
        raise ArchitectureError(
            f"{name} does not say how its input images are prepared, and nothing else does",
            f"Give {', '.join(unknown)} as in the training, or a pretrained_cfg on the network or in config.json.",
        )
    # What resizes and crops in another way than a processor takes its place.
    if {"input_size", "interpolation", "crop_pct"} & given.keys():
        chosen.pop("image_processor", None)
    size = _sizes(*chosen["input_size"])
    crop_pct = _positive("crop_pct", *chosen["crop_pct"])
    if math.prod(size) / crop_pct / crop_pct > max(_MOST_BEFORE_CROPPING, 4 * math.prod(size)):
        raise _senseless("crop_pct", crop_pct, "a share that makes no image of gigabytes", chosen["crop_pct"][1])
    mean, std = (_per_channel(key, *chosen[key], size[0]) if key in chosen else () for key in ("mean", "std"))
    if mean and std:
        _refuse_0_to_255(mean, std, {key: where for key, (_, where) in chosen.items()})
    return Preprocessing(
        input_size=size,
        mean=mean,
        std=std,
        interpolation=_one_of("interpolation", *chosen["interpolation"], INTERPOLATIONS),
        crop_pct=crop_pct,
        crop_mode=_one_of("crop_mode", *chosen["crop_mode"], CROP_MODES),
        source=", ".join(dict.fromkeys(where for _, where in chosen.values())),
        exif=Exif(_one_of("exif", *chosen["exif"], tuple(Exif))) if "exif" in chosen else Exif.IGNORE,
        image_processor=_processor(*chosen["image_processor"]) if "image_processor" in chosen else "",
    )


def _processor(value: object, where: str) -> str:
    """The settings of an image processor, which name its class."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        if isinstance(value, str) and isinstance(json.loads(value).get("image_processor_type"), str):
            return value
    raise _senseless("image_processor", value, "the settings of an image processor of transformers' as JSON", where)


def _sizes(value: object, where: str) -> tuple[int, int, int]:
    if isinstance(value, list | tuple) and [type(size) for size in value] == [int, int, int]:
        channels, height, width = value
        if all(0 < size <= _LARGEST for size in value):
            if math.prod(value) <= _MOST_VALUES or where.startswith("--"):
                return channels, height, width
            raise _senseless("input_size", value, f"no more than {_MOST_VALUES} values in one image", where)
    raise _senseless("input_size", value, "channels, height and width as positive integers", where)


def _per_channel(key: str, value: object, where: str, channels: int) -> tuple[float, ...]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    numbers = [float(number) for number in values if _is_number(number)]
    if len(numbers) != len(values) or len(numbers) not in {1, channels}:
        raise _senseless(key, value, f"{channels} numbers, one per channel", where)
    if key == "std" and min(numbers) <= 0:
        raise _senseless(key, value, "positive numbers", where)
    return tuple(numbers) * (channels if len(numbers) == 1 else 1)


def _refuse_0_to_255(mean: tuple[float, ...], std: tuple[float, ...], where: Mapping[str, str]) -> None:
    """Refuse what belongs to pixels of 0 to 255: of those in [0, 1], no mean lies above 1, and no deviation above 0.5.

    A deviation of 1 leaves the pixels' range as it is, and is used beside a mean that fits.
    """
    wrong = [key for key, values in (("mean", mean), ("std", std)) if max(values) > 1]
    if not wrong:
        return
    # Where the mean is of 0 to 255, so is a deviation of 1.
    scaled = {
        key: tuple(value / 255 for value in values) if max(values) >= 1 else values
        for key, values in (("mean", mean), ("std", std))
    }
    given = " and ".join(f"{key} {_listed(mean if key == 'mean' else std)} (from {where[key]})" for key in wrong)
    kind = UsageError if all(where[key].startswith("--") for key in wrong) else ArchitectureError
    raise kind(
        f"the preprocessing's {given}: that is for pixels from 0 to 255, and here they lie in [0, 1]",
        f"Divided by 255, it is {' '.join(f'--{key} {_listed(values)}' for key, values in scaled.items())}.",
    )


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.6g}" for value in values)


def _positive(key: str, value: object, where: str) -> float:
    if _is_number(value) and value > 0:
        return float(value)
    raise _senseless(key, value, "a positive number", where)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) <= _LARGEST  # which NaN is not


def _one_of(key: str, value: object, where: str, allowed: Sequence[str]) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    raise _senseless(key, value, f"one of {', '.join(allowed)}", where)


def _senseless(key: str, value: object, expected: str, where: str) -> SapError:
    option = key.replace("_", "-")
    kind = UsageError if where.startswith("--") else ArchitectureError
    return kind(
        f"the preprocessing's {key} is {value!r} (from {where}), expected {expected}",
        f"Give --{option}, or correct it there."
        if key not in ("crop_mode", "image_processor")
        else "Correct it there.",
    )
