"""NumPy's own files, `.npy` and `.npz`: sizes are held against the bytes that are there, and objects are not made."""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from sapcli.datasets.arrays.pickles import MOST_BYTES, as_array, read_arrays
from sapcli.datasets.formats import open_regular
from sapcli.errors import DatasetError

Array = npt.NDArray[Any]

_LONGEST_HEADER = 10_000
_MOST_MEMBERS = 1000
# The arrays of a dataset are looked into one by one, and each is in memory as a whole.
_MOST_ARRAY_BYTES = 64 << 30
# Pixels hardly compress; drawings of few colours do, up to some thirty times.
_TIMES_COMPRESSED, _SMALL = 32, 64 << 20
_READ_AT_ONCE = 1 << 20
_AGAIN = "Write it again: numpy.savez(FILE, train_images=..., train_labels=...)."


def read_npy(file: Path) -> Array | dict[str, object]:
    """The array of labels in a `.npy` file; the dictionary where it holds one, of a pickle that runs no code.

    Raises:
        DatasetError: If it is damaged, larger inside than outside, or holds other objects.
        OSError: If it cannot be opened.
    """
    with os.fdopen(open_regular(file), "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        if size > MOST_BYTES:
            raise DatasetError(f"{file} is larger than {MOST_BYTES >> 20} MiB, expected labels", "Name the right file.")
        return _array(handle, size, str(file))


def _array(handle: IO[bytes], size: int, source: str) -> Array | dict[str, object]:
    """The array that a stream of `size` bytes holds."""
    shape, is_fortran, dtype = _header(handle, source)
    left = size - handle.tell()
    if dtype.hasobject:
        if dtype != np.dtype(object) or left > MOST_BYTES:
            raise DatasetError(f"{source} holds Python objects", _AGAIN)
        value = read_arrays(handle, source)
        if isinstance(value, dict):
            return cast("dict[str, object]", value)
        array = as_array(value)
        if array is None:
            raise DatasetError(f"{source} holds Python objects", _AGAIN)
        return array
    count = math.prod(shape)
    if min(shape, default=0) < 0 or dtype.itemsize == 0 or count * dtype.itemsize != left:
        raise DatasetError(f"{source} says that it has {count:,} elements, and has {left:,} bytes", _AGAIN)
    content = np.empty(count * dtype.itemsize, np.uint8)
    filled = content.data
    while filled and (read := cast("io.BufferedIOBase", handle).readinto(filled[:_READ_AT_ONCE])):
        filled = filled[read:]
    if filled:
        raise DatasetError(f"{source}: it ends in the middle of an array", "Get the file again.")
    return content.view(dtype).reshape(shape, order="F" if is_fortran else "C")


def _header(handle: IO[bytes], source: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array."""
    # NumPy's reader looks at how long a header says that it is only when it has read it.
    begin, start = handle.tell(), io.BytesIO(handle.read(_LONGEST_HEADER))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = np.lib.format.read_magic(start)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read(start, max_header_size=_LONGEST_HEADER)
    except (ValueError, OSError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DatasetError(f"{source}: not a whole array of NumPy's: {reason}", _AGAIN) from error
    handle.seek(begin + start.tell())
    return shape, is_fortran, dtype


class NpzFile:
    """The arrays of a `.npz` file, each read when it is asked for.

    Attributes:
        file: Where it lies.
        names: The names of the arrays.

    Raises:
        DatasetError: If it is no such file, or what it says of itself cannot be.
        OSError: If it cannot be opened.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with self._opened() as archive:
            members = archive.infolist()
        if len(members) > _MOST_MEMBERS:
            raise DatasetError(f"{file} has {len(members):,} arrays", _AGAIN)
        self._members = {member.filename.removesuffix(".npy"): member for member in members}
        self.names = tuple(self._members)

    def array(self, name: str) -> Array:
        """An array.

        Raises:
            DatasetError: If it is damaged, holds objects, or is larger inside than it says.
        """
        member = self._members[name]
        source = f"{self.file}, {name}"
        try:
            with self._opened() as archive, archive.open(member) as handle:
                # Reading ends where the archive says that the array ends, whatever comes.
                found = _array(handle, member.file_size, source)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, MemoryError) as error:
            raise DatasetError(f"{source}: damaged: {error}", "Get the file again.") from error
        if isinstance(found, dict):
            raise DatasetError(f"{source} holds Python objects", _AGAIN)
        return found

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape and the type of an array, by its header alone."""
        source = f"{self.file}, {name}"
        try:
            with self._opened() as archive, archive.open(self._members[name]) as handle:
                shape, _is_fortran, dtype = _header(io.BytesIO(handle.read(_LONGEST_HEADER)), source)
                return shape, dtype
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, MemoryError) as error:
            raise DatasetError(f"{source}: damaged: {error}", "Get the file again.") from error

    def _opened(self) -> zipfile.ZipFile:
        try:
            handle = os.fdopen(open_regular(self.file), "rb")
            archive = zipfile.ZipFile(handle)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
            raise DatasetError(f"{self.file}: not a whole .npz file: {error}", "Get the file again.") from error
        size = os.fstat(handle.fileno()).st_size
        for member in archive.infolist():
            # NumPy writes no others, and what they unpack to is known only by unpacking it.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DatasetError(f"{self.file}, {member.filename[:100]!r} is compressed in an unusual way", _AGAIN)
            if member.file_size > min(_MOST_ARRAY_BYTES, _TIMES_COMPRESSED * size + _SMALL):
                raise DatasetError(
                    f"{self.file}, {member.filename[:100]!r} says that it has {member.file_size:,} bytes", _AGAIN
                )
        return archive
