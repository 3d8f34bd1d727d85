"""How a model of transformers takes its images: by its own image processor, run as it is.

A processor's class decides what its settings mean (which side is resized, what is cropped, in which order), so the
pixels are its own work. Only what it makes of their values, a line through black and white, is done here, in float32 on
the device, as for all networks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from sapcli.errors import ArchitectureError
from sapcli.machine.text import in_one_line
from sapcli.networks.huggingface.library import transformers

if TYPE_CHECKING:
    import numpy.typing as npt

# Pillow's numbers of the filters, as the settings have them.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# Pictures that tell whether all become one size, larger and smaller than what networks take.
_PROBED_SIZES = ((300, 300), (400, 260), (40, 64), (23, 17))
_HINT = "Give --input-size, --mean and --std as in the training: the images are then prepared without it."
# `[n, C, H, W]`; a mask of pixels is all ones where all images have one size.
_DIMENSIONS = 4
_NEEDLESS = frozenset({"pixel_values", "pixel_mask"})
# Of a value that is measured beside the one that is stated.
_TOLERANCE = 1e-4


class _NoPixelsError(Exception):
    """What an image becomes is more than pixels, or something else."""


def processor_settings(folder: Path, source: str) -> dict[str, object] | None:
    """What the image processor of a folder does, in the terms of timm's `pretrained_cfg`; None without one.

    Of a trainer's `checkpoint-N` that has none, it is that of the folder around it.

    Raises:
        ArchitectureError: It cannot be read, or makes images of different sizes.
    """
    place = next((it for it in (folder, Path(os.path.realpath(folder)).parent) if _is_in(it)), None)
    if place is None or (place != folder and not Path(os.path.realpath(folder)).name.startswith("checkpoint-")):
        return None
    with transformers(source) as library:
        try:
            processor = library.AutoImageProcessor.from_pretrained(
                str(place), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise ArchitectureError(
                f"transformers cannot read the image processor in {place}: {in_one_line(error)}", _HINT
            ) from error
        return _settings(processor, source)


def _is_in(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))


def _settings(processor: Any, source: str) -> dict[str, object]:
    values = processor.to_dict()
    kind = type(processor).__name__
    values["image_processor_type"] = kind
    text = json.dumps(values, sort_keys=True, default=str)
    sizes = set()
    for size in _PROBED_SIZES:
        try:
            sizes.add(_pixels(processor, Image.new("RGB", size)).shape)
        except _NoPixelsError as error:
            raise ArchitectureError(
                f"the {kind} of {source} makes {error} of an image, and no pixels of one size alone",
                "Models that take something else beside the pixels are not supported: give --arch for one that does.",
            ) from error
        except Exception as error:
            raise ArchitectureError(
                f"the {kind} of {source} does not take an image of {size[0]}x{size[1]}: {in_one_line(error)}", _HINT
            ) from error
    if len(sizes) != 1:
        found = " and ".join("x".join(map(str, size[1:])) for size in sorted(sizes)[:2])
        raise ArchitectureError(
            f"the {kind} of {source} makes images of different sizes ({found}), which cannot be run together", _HINT
        )
    (shape,) = sizes
    mean, std = _line(processor, shape)
    filter_number = values.get("resample")
    known = isinstance(filter_number, int) and 0 <= filter_number < len(_FILTERS)
    return {
        "input_size": list(shape),
        "mean": mean,
        "std": std,
        "interpolation": _FILTERS[filter_number] if known else "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
        # As transformers' pipelines and datasets' images do.
        "exif": "apply",
        "image_processor": text,
    }


def _line(processor: Any, shape: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Mean and deviation by which values become what the processor makes of them, from those of black and of white."""
    ends = []
    for grey in (0, 255):
        image = Image.new("RGB", (shape[2], shape[1]), (grey, grey, grey))
        values = torch.as_tensor(np.asarray(processor(images=image, return_tensors="pt")["pixel_values"]))[0]
        ends.append(values.double().mean(dim=(1, 2)))
    std = 1 / (ends[1] - ends[0])
    mean = -ends[0] * std
    stated = [
        torch.tensor(getattr(processor, name, None) or [0.0], dtype=torch.float64)
        for name in ("image_mean", "image_std")
    ]
    # The numbers that are stated are free of the rounding of those that are measured.
    if all(values.numel() in (1, len(std)) for values in stated):
        close = [(own - found).abs().max() < _TOLERANCE for own, found in zip(stated, (mean, std), strict=True)]
        if all(close):
            mean, std = (own.expand(len(std)) for own in stated)
    return mean.tolist(), std.tolist()


def image_transform(text: str) -> Callable[[Image.Image], npt.NDArray[np.uint8]]:
    """What a processor, as `image_processor` of its settings has it, makes of an image: uint8 `[C, H, W]`.

    Raises:
        ArchitectureError: transformers is not installed, or has no such processor.
    """
    values = json.loads(text)
    name = values.get("image_processor_type")
    with transformers(f"the image processor {name}") as library:
        kind = getattr(library, str(name), None)
        if kind is None or not str(name).endswith(("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil")):
            raise ArchitectureError(
                f"transformers {library.__version__} has no image processor {name!r}", "Install a newer version."
            )
        processor = kind.from_dict(values)

    def transform(image: Image.Image) -> npt.NDArray[np.uint8]:
        return _pixels(processor, image)

    return transform


def _pixels(processor: Any, image: Image.Image) -> npt.NDArray[np.uint8]:
    """The resized and cropped image before its values are scaled."""
    options: dict[str, object] = {"do_rescale": False, "do_normalize": False}
    if hasattr(processor, "include_top"):
        options["include_top"] = False
    made = processor(images=image, return_tensors="pt", **options)
    shape = np.shape(made.get("pixel_values", ()))
    if len(shape) != _DIMENSIONS or not _NEEDLESS.issuperset(made):
        raise _NoPixelsError(", ".join(f"{name} {list(np.shape(value))}" for name, value in made.items()))
    values: npt.NDArray[Any] = np.asarray(made["pixel_values"])[0]
    if values.dtype == np.uint8:
        return values
    rounded: npt.NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded
