"""Small pictures of images, as text that a page can hold."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from sapcli.datasets.folders import image_formats

_SIDE = 96
_JPEG_QUALITY = 80


def thumbnail(file: Path) -> str | None:
    """The image as a `data:` address, at most 96 pixels a side; `None` where it cannot be read."""
    # Damaged files make Pillow's readers raise nearly everything, and a page is worth having without a picture.
    try:
        with warnings.catch_warnings(), Image.open(file, formats=image_formats()) as image:
            warnings.simplefilter("ignore")
            image.draft("RGB", (_SIDE, _SIDE))
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
    except Exception:
        return None
    content = io.BytesIO()
    small.save(content, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
