"""Small pictures of images, as text that a page can hold."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sapcli.datasets.decoding import eight_bits
from sapcli.datasets.image_files import decode, open_image, orientation, upright


@dataclass(frozen=True)
class ThumbnailSize:
    """How large a small picture is: its longest side in pixels, and the quality of its JPEG file, 1 to 95."""

    side: int = 96
    quality: int = 80


# From fine to coarse: the first with which many of them fit into what is allowed is taken.
_SIZES = (
    *(ThumbnailSize(160, 80), ThumbnailSize(128, 80), ThumbnailSize(96, 80), ThumbnailSize(96, 65)),
    *(ThumbnailSize(80, 65), ThumbnailSize(64, 65), ThumbnailSize(56, 50), ThumbnailSize(48, 45)),
    *(ThumbnailSize(40, 40), ThumbnailSize(32, 35), ThumbnailSize(24, 30)),
)
_TRIED = 40


def thumbnail(file: Path, size: ThumbnailSize = ThumbnailSize()) -> str | None:
    """The image as a `data:` address, upright and in JPEG; `None` where it cannot be read."""
    # Damaged files make Pillow's readers raise nearly everything, and a page is worth having without a picture.
    try:
        with warnings.catch_warnings(), open_image(file) as image:
            warnings.simplefilter("ignore")
            header = image.size
            image.draft("RGB", (size.side, size.side))
            decode(image, header)
            turn = orientation(image)
            small, _values = eight_bits(image, "RGB", size.side)
            small.thumbnail((size.side, size.side))
            small = upright(small, turn)
            content = io.BytesIO()
            small.save(content, "JPEG", quality=size.quality, optimize=True)
    except Exception:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def fitting_size(files: Sequence[Path], most_bytes: int) -> ThumbnailSize:
    """The finest size at which the small pictures of all these files take at most so many bytes, as some of them tell.

    Args:
        files: The images.
        most_bytes: For all pictures together, as text; a tenth is left for those that are larger than the ones tried.
    """
    tried = files[:: max(1, len(files) // _TRIED)][:_TRIED]
    for size in _SIZES[:-1]:
        lengths = [len(picture) for picture in (thumbnail(file, size) for file in tried) if picture is not None]
        if sum(lengths) / max(len(lengths), 1) * len(files) <= 0.9 * most_bytes:
            return size
    return _SIZES[-1]


def thumbnails(files: Sequence[Path], most_bytes: int) -> list[str | None]:
    """Small pictures of all these files that together take at most so many bytes of text, each as `thumbnail`."""
    first = _SIZES.index(fitting_size(files, most_bytes))
    for size in _SIZES[first:]:
        pictures = [thumbnail(file, size) for file in files]
        if sum(len(picture) for picture in pictures if picture is not None) <= most_bytes:
            break
    return pictures
