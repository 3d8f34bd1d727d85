"""From an image file to the pixels that a model is shown, in whatever form the file has them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from sapcli.datasets.image_files import MOST_PIXELS, decode, open_image, orientation, upright
from sapcli.errors import UsageError
from sapcli.settings import Exif

if TYPE_CHECKING:
    from sapcli.networks.preprocessing import Preprocessing

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Greys of more than 8 bits: PGM, PNG and TIFF files of 16 bits come as "I" or as one of the "I;16" modes, depending on
# their byte order and on Pillow; "I" has 32 bits and a sign.
_INTEGERS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_FLOATS = "F"
_MOST_OF_EIGHT_BITS, _MOST_OF_SIXTEEN_BITS = 255, 65535
# Pictures are converted in strips of so many pixels, and from this many on in a smaller size where that still is the
# above times the size that they are resized to: a copy of a whole picture would take as much memory as the picture.
_STRIP = 1 << 20
_NO_COPY = 1 << 24
# Of these, so many are scaled at once, in numbers of 64 bits.
_SCALED_AT_ONCE = 1 << 18
# Pixels of a picture once it is resized for its shorter side to fill the crop.
_USUAL_RATIO, _MOST_RESIZED, _MOST_RESIZED_SLIVER = 16, MOST_PIXELS // 2, 1 << 24
# JPEG files of so many pixels are read in half, a quarter or an eighth of their size where that still is so many times
# the size that they are resized to. A photograph's pixels then differ by 0.3 of 255 on average and by 4 at most. Sizes
# that are no multiples would be rounded, which moves the picture.
_LARGE = 1 << 20
_TIMES_THE_SIZE = 2
_DRAFT_SCALES = (8, 4, 2)


class Scaling(StrEnum):
    """How the values of a grey image of more than 8 bits became 0 to 255, which its own lowest and highest decide."""

    AS_THEY_ARE = "taken as they are, none is above 255"
    UNIT = "multiplied by 255, they are floats from 0 to 1"
    SIXTEEN_BITS = "divided by 257, they need 16 bits"
    OWN_RANGE = "spread from the lowest to the highest of each image, they fit no 16 bits"


@dataclass(frozen=True)
class Treatment:
    """What was done to an image, or could have been, that its training may have done otherwise.

    Attributes:
        scaling: How its values were scaled; None of an image of 8 bits.
        highest: The highest value that was scaled.
        oriented: Whether its file says that the picture is to be turned or mirrored.
    """

    scaling: Scaling | None = None
    highest: float = 0.0
    oriented: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Treatment:
        """The fields as JSON values, as a treatment again."""
        scaling = values["scaling"]
        return cls(None if scaling is None else Scaling(scaling), float(values["highest"]), bool(values["oriented"]))


@dataclass(frozen=True)
class Decoded:
    """An image as the network is shown it.

    Attributes:
        pixels: uint8 `[C, H, W]`; of tensors that are ready for the network, float32.
        treatment: What there is to be said of it, of most images nothing.
    """

    pixels: Pixels
    treatment: Treatment | None = None


class Decoding(Protocol):
    """What gives the pixels of samples, by their paths.

    Attributes:
        shape: Channels, height and width.
        dtype: Of the values: uint8 of pixels, float32 of what is the network's input already.
        in_memory: Whether it keeps what it has made, and no other process can do its work.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    in_memory: bool

    def __call__(self, paths: Sequence[str], /) -> list[Decoded | str]:
        """For each path the image, or the reason why there is none."""


class Decoder:
    """Reads images and brings them into the shape that a model expects, by timm's evaluation transform.

    The first frame of an animation stands for it. Images are turned by their EXIF orientation only where the
    preprocessing says so, which the usual loaders do not. Grey images of more than 8 bits are scaled to 8 by the range
    of their values (see `Scaling`). Large JPEG files are read in a smaller size. A decoder can be handed to another
    process.

    Attributes:
        shape: Channels, height and width of the pixels.
        dtype: That of the pixels.
        in_memory: That other processes can do the work.

    Raises:
        UsageError: If no image has the number of channels that the model takes.
    """

    dtype = np.dtype(np.uint8)
    in_memory = False

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
        is_plain = preprocessing.crop_pct == 1 and not preprocessing.image_processor
        self._size_as_it_is = (width, height) if is_plain else None
        self._preprocessing = preprocessing

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Pixels]:
        if self._preprocessing.image_processor:
            from sapcli.networks.huggingface.image_processor import image_transform

            return image_transform(self._preprocessing.image_processor)
        # The import takes a second, which images of the network's own size do not need.
        from timm.data.transforms_factory import create_transform

        preprocessing = self._preprocessing
        transform = create_transform(
            preprocessing.input_size,
            is_training=False,
            use_prefetcher=True,
            mean=preprocessing.mean,
            interpolation=preprocessing.interpolation,
            crop_pct=preprocessing.crop_pct,
            crop_mode=preprocessing.crop_mode,
        )
        return lambda image: transform(image).numpy()

    def __call__(self, paths: Sequence[str]) -> list[Decoded | str]:
        """For each path relative to the data folder the image, or the reason why there is none."""
        with warnings.catch_warnings():
            # Pillow warns of odd metadata in images that it reads all the same.
            warnings.simplefilter("ignore")
            return [self._decoded_or_reason(path) for path in paths]

    def _decoded_or_reason(self, path: str) -> Decoded | str:
        # Damaged files make Pillow's readers raise nearly everything; none of it may end the run.
        try:
            return self._decoded(f"{self._root}/{path}")
        except Exception as error:
            return _reason(error)

    def _decoded(self, file: str) -> Decoded:
        with open_image(file) as image:
            width, height = image.size
            self._refuse_slivers(width, height)
            settings = self._preprocessing
            if width * height >= _LARGE and settings.interpolation != "nearest" and not settings.image_processor:
                self._read_smaller(image)
            decode(image, (width, height))
            return self.prepared(image)

    def prepared(self, image: Image.Image) -> Decoded:
        """A decoded image as the network is shown it.

        Raises:
            Image.DecompressionBombError: It is too narrow to be resized.
            ValueError: Its values are no numbers.
        """
        self._refuse_slivers(*image.size)
        stored = orientation(image)
        turn = stored if self._preprocessing.exif is Exif.APPLY else 1
        converted, values = eight_bits(image, self._mode, self._longest_side, turn)
        if converted.size == self._size_as_it_is:
            # Nothing to resize or crop, which the transform takes as long to find out as the file to be decoded.
            pixels: Pixels = np.asarray(converted).reshape(*self.shape[1:], -1).transpose(2, 0, 1)
        else:
            pixels = self._transform(converted)
        if stored == 1 and (values is None or values.highest == 0):
            # Nothing to be said; a black image is black however it is scaled.
            return Decoded(pixels)
        treatment = Treatment(oriented=stored != 1) if values is None else values.treatment(stored != 1)
        return Decoded(pixels, treatment)

    def _refuse_slivers(self, width: int, height: int) -> None:
        """Refuse a picture, small enough in itself, that becomes huge when its shorter side grows to the wanted one."""
        ratio = max(width, height) / min(width, height)
        if self._longest_side**2 * ratio > (_MOST_RESIZED if ratio <= _USUAL_RATIO else _MOST_RESIZED_SLIVER):
            raise Image.DecompressionBombError(f"{width} x {height} pixels are too narrow to be resized")

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
    size = header_size(path)
    return None if size is None else max(size)


def header_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image file in pixels, by its header; `None` where that cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_image(path) as image:
                return image.size
        except Exception:  # as of damaged files above
            return None


@dataclass(frozen=True)
class GreyValues:
    """How grey values of one image become 0 to 255: `(value - offset) * factor`, rounded.

    Attributes:
        scaling: The way in words.
        offset: Of the values.
        factor: Of what is above the offset.
        highest: The highest value.
    """

    scaling: Scaling
    offset: float
    factor: float
    highest: float

    def applied(self, image: Image.Image) -> Image.Image:
        """The image, or a part of it, with 8 bits."""
        values = np.asarray(image)
        scaled = np.empty(values.shape, np.uint8)
        rows = max(_SCALED_AT_ONCE // image.width, 1)
        for top in range(0, image.height, rows):
            part = (values[top : top + rows] - np.float64(self.offset)) * self.factor
            scaled[top : top + rows] = np.rint(part, out=part)
        return Image.fromarray(scaled)

    def treatment(self, oriented: bool) -> Treatment:
        """What is said of the image."""
        return Treatment(self.scaling, self.highest, oriented)


def eight_bits(
    image: Image.Image, mode: str, longest_side: float, turn: int = 1
) -> tuple[Image.Image, GreyValues | None]:
    """A decoded image in a mode of 8 bits, and how its values were scaled if it had more.

    Pillow's own conversion of greys of more bits cuts off all that is brighter than 255, and what lies between 0 and 1.
    How the values are meant is not in the file, so their range decides: what needs 8 bits was stored in more than it
    needs, what needs more is scaled as 16 bits are, and floats up to 1 are shares of white.

    Where a copy would take much memory, the result is smaller by the largest whole number with which its shorter side
    still is twice the size that it is resized to.

    Args:
        image: The image.
        mode: Pillow's name of the mode.
        longest_side: The size that it is resized to afterwards.
        turn: The EXIF orientation that it was stored with, to be turned upright.

    Raises:
        ValueError: There is a NaN or an infinity.
    """
    if image.mode == mode and turn == 1:
        return image, None
    found = _grey_values(image) if image.mode in (*_INTEGERS, _FLOATS) else None

    def converted(part: Image.Image) -> Image.Image:
        grey = part if found is None else found.applied(part)
        return grey if grey.mode == mode else grey.convert(mode)

    if image.width * image.height <= _NO_COPY:
        return upright(converted(image), turn), found
    scale = max(int(min(image.size) / (_TIMES_THE_SIZE * longest_side)), 1)
    result = Image.new(mode, (math.ceil(image.width / scale), math.ceil(image.height / scale)))
    top = 0
    for strip in _strips(image, scale):
        small = converted(strip).reduce(scale)
        result.paste(small, (0, top))
        top += small.height
    return upright(result, turn), found


def _grey_values(image: Image.Image) -> GreyValues:
    """How the values of a grey image of more than 8 bits are meant."""
    floats = image.mode == _FLOATS
    lowest, highest = math.inf, -math.inf
    for strip in _strips(image):
        values = np.asarray(strip)
        if floats and not np.isfinite(values).all():
            raise ValueError("its values are no numbers: there is a NaN or an infinity")
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
    if lowest < 0 or highest > _MOST_OF_SIXTEEN_BITS:
        return GreyValues(Scaling.OWN_RANGE, lowest, 255 / max(highest - lowest, math.ulp(highest)), highest)
    if floats and highest <= 1:
        return GreyValues(Scaling.UNIT, 0, 255, highest)
    if highest <= _MOST_OF_EIGHT_BITS:
        return GreyValues(Scaling.AS_THEY_ARE, 0, 1, highest)
    return GreyValues(Scaling.SIXTEEN_BITS, 0, _MOST_OF_EIGHT_BITS / _MOST_OF_SIXTEEN_BITS, highest)


def _strips(image: Image.Image, multiple: int = 1) -> Iterator[Image.Image]:
    """The image from top to bottom in parts of its width; the height of all but the last is a multiple of a number."""
    rows = max(_STRIP // image.width // multiple, 1) * multiple
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _reason(error: Exception) -> str:
    """In one line, why an image cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "an empty file, or no image format that Pillow knows"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
