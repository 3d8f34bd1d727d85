"""Which files are images by their endings, and how a file is opened that may be anything."""

from __future__ import annotations

import errno
import functools
import os
import stat

from PIL import Image

_READ_AT_ONCE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# Pillow's formats that hold their pixels themselves. It knows others that hand what is inside to another reader (IPTC
# to any at all, ICO and ICNS to PNG), run another program (EPS: Ghostscript), unpack without a bound (FITS), or only
# name a file's kind. Those with a signature come before those that have none and take a whole attempt to open. A JPEG
# file of several pictures (MPO) is read as its first one, by the reader of JPEG.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI", "SGI", "SUN", "DIB", "PCX", "TGA",
)  # fmt: skip


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, in the order in which to try them."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@functools.cache
def image_suffixes() -> tuple[str, ...]:
    """The file name endings, in lower case and with their dot, that make a file an image."""
    formats = {*image_formats(), "MPO"}
    return tuple(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading, as a descriptor; what lies in its place is not waited for.

    Raises:
        OSError: It cannot be opened, or is a pipe, a device or a folder.
    """
    descriptor = os.open(path, _READ_AT_ONCE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor
