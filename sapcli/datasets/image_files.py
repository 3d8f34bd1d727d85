"""Opening an image file: in which formats, of which size at most, and nothing but a regular file.

Every bound here is on what the file says of itself, so that nothing of a hostile file is decoded.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import numpy as np
from PIL import Image

from sapcli.datasets.containers.members import read_member
from sapcli.datasets.formats import image_formats, image_suffixes, open_regular

__all__ = [
    "MOST_BYTES",
    "MOST_PIXELS",
    "decode",
    "image_formats",
    "image_suffixes",
    "open_image",
    "open_regular",
    "orientation",
    "upright",
]

# What a decoder takes beside the picture that it makes, in bytes a pixel and channel, as measured: libraries that
# decode a whole picture before they hand it over, and decoders of Pillow that collect their output in Python.
_BYTES_BESIDE = {"WEBP": 4, "AVIF": 3, "JPEG2000": 5, "PPM": 8, "QOI": 2, "SGI": 2, "RUNS": 40}
_BYTES_OF_COEFFICIENTS = 2  # of a progressive JPEG file, whose picture comes together in several passes
_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_BYTES_OF_OTHER_MODES = 4
MOST_PIXELS = 178_956_970
"""Pixels of a picture, beyond which Pillow takes it for a decompression bomb, whatever else its limit was set to."""
MOST_BYTES = 400_000_000
"""Bytes that decoding a picture may take."""
_ORIENTATION = 0x0112
_READ_WHOLE = 1 << 16
# What is read of a file beside its pixels: profiles, texts, small pictures. Some formats are read as a whole at once,
# and have no larger files; of what TIFF has there are Python's objects, hundreds of bytes for each strip.
_SMALL_FILE, _MOST_BESIDE, _MOST_BESIDE_IN_TIFF = 1 << 20, 32 << 20, 4 << 20
_TIFF = (b"II", b"MM")
# Bytes of a pixel that is stored as it is, or by a code that makes it longer.
_MOST_BYTES_OF_PIXEL = 8
# So many bytes a call counts as at least: some readers take one byte after the other, which takes its time.
_LEAST_READ = 16
# Of formats whose pixels are read so.
_MOST_BYTES_OF_RUNS = 128
_TILE_WIDTH, _TILE_LENGTH, _SAMPLES, _BITS = 322, 323, 277, 258
_ROWS, _STRIP_BYTES, _TILE_BYTES, _PLANES = 278, 279, 325, 284
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file: its header is read, its pixels are not.

    Args:
        path: The file; or a file that holds several images, and below it the name of one.

    Raises:
        OSError: It cannot be opened, or no format knows it.
        Image.DecompressionBombError: It says that it has more pixels than any picture.
    """
    try:
        opened = _opened(path)
    except NotADirectoryError:
        content = read_member(os.fspath(path))
        if isinstance(content, np.ndarray):
            yield Image.fromarray(content)
            return
        opened = io.BytesIO(content)
    with opened as file, Image.open(_bounded(file), formats=image_formats()) as image:
        _check_pixels(image)
        yield image


def _opened(path: str | os.PathLike[str]) -> IO[bytes]:
    """A regular file; a small one as its bytes, of which readers of headers take a few at a time."""
    descriptor = open_regular(path)
    try:
        start = os.read(descriptor, _READ_WHOLE)
    except OSError:
        os.close(descriptor)
        raise
    if len(start) < _READ_WHOLE:
        os.close(descriptor)
        return io.BytesIO(start)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.fdopen(descriptor, "rb")


class _Bounded:
    """A file of which a reader gets no more than an image can need, in whatever pieces it asks for.

    Attributes:
        size: Its bytes.
        beside: How many of them may be read beside the pixels.
    """

    def __init__(self, file: IO[bytes], size: int, beside: int) -> None:
        self._file = file
        self.size = size
        self.beside = self._left = beside

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def is_in_memory(self) -> bool:
        """Whether its bytes are there already, as those of a member of a file."""
        return isinstance(self._file, io.BytesIO)

    def allow(self, count: int) -> None:
        """Have so many bytes be read from now on."""
        self._left = count

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes; all for none."""
        # One more than there may be, by which it shows.
        wanted = self._left + 1 if size is None or size < 0 else min(size, self._left + 1)
        content = self._file.read(wanted)
        self._left -= max(len(content), _LEAST_READ)
        if self._left < 0:
            raise Image.DecompressionBombError(f"more than {self.beside:,} bytes beside its pixels")
        return content


def _bounded(file: IO[bytes]) -> IO[bytes]:
    """A file within bounds; a small one as it is."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size <= _SMALL_FILE:
        return file
    start = file.read(2)
    file.seek(0)
    return cast("IO[bytes]", _Bounded(file, size, _MOST_BESIDE_IN_TIFF if start in _TIFF else _MOST_BESIDE))


def decode(image: Image.Image, header: tuple[int, int]) -> None:
    """Decode an image that was opened, if that takes no more memory than is allowed.

    Args:
        image: The image; a JPEG file may have been told to come in a smaller size.
        header: The size that its file says.

    Raises:
        Image.DecompressionBombError: It would take more memory, or is larger than it said.
        OSError: The file is damaged; other errors mean the same.
    """
    file = getattr(image, "fp", None)
    needed = (
        math.prod(image.size) * _BYTES_PER_PIXEL.get(image.mode, _BYTES_OF_OTHER_MODES)
        + math.prod(header) * _bytes_beside(image)
        + _bytes_of_part(image)
        + (file.size if isinstance(file, _Bounded) and file.is_in_memory() else 0)
    )
    if needed > MOST_BYTES:
        raise Image.DecompressionBombError(
            f"{header[0]} x {header[1]} pixels take {needed / 1e6:,.0f} MB to decode, which exceeds limit of"
            f" {MOST_BYTES / 1e6:,.0f} MB"
        )
    expected = math.prod(image.size)
    if isinstance(file, _Bounded):
        by_byte = image.format == "QOI" or _has_runs(image)
        _load(image, file, math.prod(header) * (_MOST_BYTES_OF_RUNS if by_byte else _MOST_BYTES_OF_PIXEL))
    else:
        image.load()
    if math.prod(image.size) > expected:
        _check_pixels(image)


def _load(image: Image.Image, file: _Bounded, pixels: int) -> None:
    """Decode the pixels, which have so many bytes at most, and then read what follows them."""
    finish = getattr(image, "load_end", lambda: None)

    def read_rest() -> None:
        file.allow(file.beside)
        finish()

    file.allow(pixels + file.beside)
    image.load_end = read_rest  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        del image.load_end  # type: ignore[attr-defined]


def _check_pixels(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels, which exceeds limit of {MOST_PIXELS:,}")


def _bytes_beside(image: Image.Image) -> int:
    """What each pixel of the file takes while it is decoded, beside the picture that comes out."""
    channels = len(image.getbands())
    if "progressive" in image.info:
        return _BYTES_OF_COEFFICIENTS * channels
    if image.format == "PPM" and all(tile[0] == "raw" for tile in getattr(image, "tile", ())):
        return 0  # the pixels lie there as they are, and nothing is collected
    return _BYTES_BESIDE.get("RUNS" if _has_runs(image) else image.format or "", 0) * channels


def _has_runs(image: Image.Image) -> bool:
    """Whether it is a BMP file of runs of pixels, of which Pillow takes one after the other in Python."""
    return any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", ()))


def _bytes_of_part(image: Image.Image) -> int:
    """What a part of a TIFF file takes, compressed and not, which is decoded whole however small the picture is."""
    tags = getattr(image, "tag_v2", None)
    if tags is None or all(tile[0] != "libtiff" for tile in getattr(image, "tile", ())):
        return 0
    is_tiled = _TILE_WIDTH in tags and _TILE_LENGTH in tags
    width = tags[_TILE_WIDTH] if is_tiled else image.width
    rows = tags[_TILE_LENGTH] if is_tiled else min(tags.get(_ROWS, image.height), image.height)
    samples = 1 if tags.get(_PLANES) == 2 else tags.get(_SAMPLES, 1)
    bits, compressed = tags.get(_BITS, 1), tags.get(_TILE_BYTES if is_tiled else _STRIP_BYTES, 0)
    bits, compressed = (max(value) if isinstance(value, tuple) else value for value in (bits, compressed))
    return int(width * rows * samples * bits / 8 + compressed)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a decoded image, 1 where it has none that makes sense.

    Pillow's reader of TIFF turns the picture itself, and then has none.
    """
    # EXIF data can be damaged in any way, and the usual loaders do not read it.
    with contextlib.suppress(Exception):
        value = image.getexif().get(_ORIENTATION, 1)
        if value in _TURNS:
            return int(value)
    return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """A picture that was stored with this EXIF orientation, as it is to be shown."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
