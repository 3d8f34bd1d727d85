"""Small pictures of images, as text that a page can hold."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

from sapcli.datasets.decoding import eight_bits
from sapcli.datasets.image_files import decode, open_image, orientation, upright

_SIDE = 96
_JPEG_QUALITY = 80


def thumbnail(file: Path) -> str | None:
    """The image as a `data:` address, upright, at most 96 pixels a side; `None` where it cannot be read."""
    # Damaged files make Pillow's readers raise nearly everything, and a page is worth having without a picture.
    try:
        with warnings.catch_warnings(), open_image(file) as image:
            warnings.simplefilter("ignore")
            header = image.size
            image.draft("RGB", (_SIDE, _SIDE))
            decode(image, header)
            turn = orientation(image)
            small, _values = eight_bits(image, "RGB", _SIDE)
            small.thumbnail((_SIDE, _SIDE))
            small = upright(small, turn)
    except Exception:
        return None
    content = io.BytesIO()
    small.save(content, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
