"""From an image file to the pixels that a model is shown, in whatever form the file has them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from sapcli.datasets.folders import image_formats
from sapcli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from sapcli.networks.preprocessing import Preprocessing

Pixels = npt.NDArray[np.uint8]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# PGM and PNG files of 16 bits come as "I" or as one of the "I;16" modes, depending on their byte order and on Pillow.
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
# JPEG files of so many pixels are read in half, a quarter or an eighth of their size where that still is so many times
# the size that they are resized to. A photograph's pixels then differ by 0.3 of 255 on average and by 4 at most. Sizes
# that are no multiples would be rounded, which moves the picture.
_LARGE = 1 << 20
_TIMES_THE_SIZE = 2
_DRAFT_SCALES = (8, 4, 2)


class Decoder:
    """Reads images and brings them into the shape that a model expects, by timm's evaluation transform.

    Images are turned upright by their EXIF orientation, the first frame of an animation stands for it, and grey images
    of 16 bits are scaled to 8. Large JPEG files are read in a smaller size. A decoder can be handed to another process.

    Attributes:
        shape: Channels, height and width of the pixels.

    Raises:
        UsageError: If no image has the number of channels that the model takes.
    """

    def __init__(self, root: Path, preprocessing: Preprocessing) -> None:
        channels, height, width = preprocessing.input_size
        if channels not in _MODES:
            raise UsageError(
                f"the model takes images of {channels} channels (from {preprocessing.source})",
                "Images can be given as 1 channel (grey), 3 (RGB) or 4 (RGBA).",
            )
        self.shape = (channels, height, width)
        self._root = root
        self._mode = _MODES[channels]
        self._longest_side = max(height, width) / preprocessing.crop_pct
        self._size_as_it_is = (width, height) if preprocessing.crop_pct == 1 else None
        self._preprocessing = preprocessing

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Tensor]:
        # The import takes a second, which images of the network's own size do not need.
        from timm.data.transforms_factory import create_transform

        preprocessing = self._preprocessing
        transform: Callable[[Image.Image], Tensor] = create_transform(
            preprocessing.input_size,
            is_training=False,
            use_prefetcher=True,
            mean=preprocessing.mean,
            interpolation=preprocessing.interpolation,
            crop_pct=preprocessing.crop_pct,
            crop_mode=preprocessing.crop_mode,
        )
        return transform

    def __call__(self, paths: Sequence[str]) -> list[Pixels | str]:
        """For each path relative to the data folder the pixels, uint8 `[C, H, W]`, or the reason why there are none."""
        with warnings.catch_warnings():
            # Pillow warns of odd metadata in images that it reads all the same.
            warnings.simplefilter("ignore")
            return [self._pixels_or_reason(path) for path in paths]

    def _pixels_or_reason(self, path: str) -> Pixels | str:
        # Damaged files make Pillow's readers raise nearly everything; none of it may end the run.
        try:
            return self._pixels(f"{self._root}/{path}")
        except Exception as error:
            return _reason(error)

    def _pixels(self, file: str) -> Pixels:
        with Image.open(file, formats=image_formats()) as image:
            # Pillow bounds the file's pixels; a sliver within that bound can still become huge when its side grows.
            width, height = image.size
            if self._longest_side**2 * max(width, height) / min(width, height) > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError(f"{width} x {height} pixels are too narrow to be resized")
            if width * height >= _LARGE and self._preprocessing.interpolation != "nearest":
                self._read_smaller(image)
            ImageOps.exif_transpose(image, in_place=True)
            converted = _converted(image, self._mode)
            if converted.size == self._size_as_it_is:
                # Nothing to resize or crop, which the transform takes as long to find out as the file to be decoded.
                return np.asarray(converted).reshape(*self.shape[1:], -1).transpose(2, 0, 1)
            pixels: Pixels = self._transform(converted).numpy()
        return pixels

    def _read_smaller(self, image: Image.Image) -> None:
        """Have a JPEG file that is not decoded yet be decoded in a smaller size; others stay as they are."""
        width, height = image.size
        for scale in _DRAFT_SCALES:
            fits = min(width, height) >= scale * _TIMES_THE_SIZE * self._longest_side
            if fits and width % scale == 0 and height % scale == 0:
                image.draft(None, (width // scale, height // scale))
                return


def longest_side(path: Path) -> int | None:
    """The longer side of an image file in pixels, by its header; `None` where that cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=image_formats()) as image:
                return max(image.size)
        except Exception:  # as of damaged files above
            return None


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _SIXTEEN_BITS:
        # Pillow's own conversion would cut off all that is brighter than 255.
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception) -> str:
    """In one line, why an image cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "an empty file, or no image format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
