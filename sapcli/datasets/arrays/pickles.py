"""Pickles of NumPy arrays and plain values, read without running code: CIFAR's batches, label files of studies.

Nothing that a pickle names is imported. The few functions that arrays are written with have stand-ins here, which
check sizes against the bytes that are there; all else is an error. It is Python's own unpickler, the one in Python,
whose memory is bounded by the number of instructions.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from sapcli.errors import DatasetError

MOST_BYTES = 224 << 20
"""Of a pickle that is read, of which there may be two copies at a time; CIFAR-100's training images have 148 MiB."""
# CIFAR-100 has some 400,000; each leaves some 140 bytes at most, beside what the pickle itself holds.
_MOST_INSTRUCTIONS = 2_500_000
_DEEPEST = 16
_MOST_DIMENSIONS = 8
_DTYPE = re.compile(r"[<>|=]?([biufSUO]\d{0,6}|\?)")
_STORAGES = {
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
}
_FAULTS = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, ImportError, UnicodeError, MemoryError, struct.error),
)

Storages = Callable[[str], bytes]


def read_arrays(content: bytes | IO[bytes], source: str, storages: Storages | None = None) -> object:
    """The value that a pickle holds: dictionaries, lists, texts, numbers and arrays.

    Texts that Python 2 has written are bytes where they are values, and texts where they are keys.

    Args:
        content: The pickle, or the file in which it begins here and is all that is left.
        source: What messages call it.
        storages: The bytes of a tensor's storage by its key, in a file of PyTorch's.

    Raises:
        DatasetError: If it is damaged, too large, or holds anything else.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        return _resolved(_Reader(file, storages).load(), 0)
    except _ForeignError as error:
        raise DatasetError(
            f"{source} holds {error}, where only arrays, texts and numbers are read",
            "Save the arrays alone: numpy.savez(FILE, images=..., labels=...).",
        ) from error
    except _FAULTS as error:
        raise DatasetError(
            f"{source}: not a whole pickle of arrays: {' '.join(str(error).split()) or type(error).__name__}",
            "Get the file again.",
        ) from error


class _ForeignError(Exception):
    """A pickle names what no array needs."""


class _Instructions(dict[int, Callable[[Any], None]]):
    """What each instruction does, handed out a bounded number of times."""

    def __init__(self, known: Mapping[int, Callable[[Any], None]]) -> None:
        super().__init__(known)
        self._left = _MOST_INSTRUCTIONS

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it has more than {_MOST_INSTRUCTIONS:,} instructions")
        return super().__getitem__(code)


class _Dtype:
    """The type of an array's elements."""

    def __init__(self, name: object, *_copied: object) -> None:
        text = name.decode("ascii") if isinstance(name, bytes) else name
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise _ForeignError(f"an array of {text!r:.40}")
        self.value: np.dtype[Any] = np.dtype(text)

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        order = order.decode("ascii") if isinstance(order, bytes) else order
        if order == ">":
            self.value = self.value.newbyteorder(">")


class _Array:
    """An array, empty until its state comes."""

    def __init__(self) -> None:
        self.value: object = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array has another state than NumPy writes")
        _version, shape, dtype, is_fortran, content = state
        self.value = _array(content, dtype, shape, "F" if is_fortran else "C")


def _array(content: object, dtype: object, shape: object, order: object) -> object:
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError("an array has no type or no shape")
    if dtype.value.kind == "O":
        # An array of objects is the list of them; that of a single one, as numpy.save makes of a dictionary, is it.
        if not isinstance(content, list):
            raise ValueError("an array of objects has none")
        return content[0] if shape == () and len(content) == 1 else content
    if isinstance(content, str):
        content = content.encode("latin-1")
    if not isinstance(content, bytes | bytearray):
        raise ValueError("an array has no content")
    if not content:
        return np.empty(0, dtype.value).reshape(shape)
    # It looks at the bytes that are there, and copies none; a shape that they do not fill is an error.
    return np.frombuffer(content, dtype.value).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: object, content: object = b"") -> object:
    value = _array(content, dtype, (1,), "C")
    return value[0].item() if isinstance(value, np.ndarray) else value


def _refused(what: str) -> Callable[[Any], None]:
    def refuse(_reader: object) -> None:
        raise _ForeignError(what)

    return refuse


class _Reader(pickle._Unpickler):
    """Python's unpickler, restricted."""

    # Of Python's own, which typeshed does not tell of.
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, file: IO[bytes], storages: Storages | None) -> None:
        begin = file.tell()
        size = file.seek(0, os.SEEK_END) - begin
        file.seek(begin)
        super().__init__(file, encoding="bytes")
        self._storages = storages
        self._left_to_encode = size
        cls = _Reader
        self.dispatch = _Instructions(  # type: ignore[misc]
            {
                **pickle._Unpickler.dispatch,
                pickle.BUILD[0]: cls._build,
                pickle.SETITEM[0]: cls._set_item,
                pickle.SETITEMS[0]: cls._set_items,
                pickle.BYTEARRAY8[0]: cls._byte_array,
                pickle.NEXT_BUFFER[0]: _refused("a buffer that is not in it"),
                pickle.EMPTY_SET[0]: _refused("a set"),
                pickle.FROZENSET[0]: _refused("a set"),
                pickle.EXT1[0]: _refused("an extension"),
                pickle.EXT2[0]: _refused("an extension"),
                pickle.EXT4[0]: _refused("an extension"),
            }
        )

    def find_class(self, module: str, name: str) -> Any:
        """What stands here for the few functions and types that arrays are written with."""
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): _ndarray,
            ("numpy", "dtype"): _Dtype,
            ("_codecs", "encode"): self._encode,
            ("builtins", "bytes"): _no_bytes,
            ("collections", "OrderedDict"): _ordered,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
        }
        for place in ("numpy.core", "numpy._core"):
            known[f"{place}.multiarray", "_reconstruct"] = _reconstruct
            known[f"{place}.multiarray", "scalar"] = _scalar
            known[f"{place}.numeric", "_frombuffer"] = _array
        if module == "torch" and name in _STORAGES:
            return _Dtype(_STORAGES[name])
        if (module, name) not in known:
            raise _ForeignError(f"{module}.{name}"[:100])
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """A storage of PyTorch's, which the file keeps apart."""
        if self._storages is None or not isinstance(pid, tuple) or len(pid) != 5 or not isinstance(pid[1], _Dtype):
            raise _ForeignError("an object that is not in it")
        key = pid[2].decode("ascii") if isinstance(pid[2], bytes) else str(pid[2])
        return np.frombuffer(self._storages(key), pid[1].value)

    def _tensor(self, storage: object, offset: object, size: object, stride: object, *_rest: object) -> object:
        if not isinstance(storage, np.ndarray) or not isinstance(offset, int) or not isinstance(size, tuple):
            raise ValueError("a tensor has no storage")
        count, expected = 1, []
        for extent in reversed(size):
            expected.append(count)
            count *= int(extent)
        if count > 1 and tuple(reversed(expected)) != stride:
            raise _ForeignError("a tensor whose elements do not follow each other")
        if not 0 <= offset <= len(storage) - count:
            raise ValueError("a tensor is larger than its storage")
        return storage[offset : offset + count].reshape(size)

    def _encode(self, text: object, encoding: object = b"") -> bytes:
        name = encoding.decode("ascii") if isinstance(encoding, bytes) else encoding
        if not isinstance(text, str) or name not in ("latin1", "latin-1"):
            raise _ForeignError("a text in another encoding")
        self._left_to_encode -= len(text)
        if self._left_to_encode < 0:
            raise ValueError("it asks for more bytes than it has")
        return text.encode("latin-1")

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Array | _Dtype):
            target.__setstate__(state)
        elif not isinstance(target, dict):  # PyTorch hangs versions onto a dictionary, which are of no use here
            raise _ForeignError("the state of an object")

    def _byte_array(self) -> None:
        # Python's own reserves the memory before it looks whether the bytes are there.
        length = int.from_bytes(self.read(8), "little")
        if length > MOST_BYTES:
            raise ValueError("it claims more bytes than it has")
        self.stack.append(self.read(length))

    def _set_item(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._put([key, value])

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._put(items)

    def _put(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError("items of no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys can take for ever to be hashed.
            if not isinstance(key, str | bytes | int | float):
                raise _ForeignError("a dictionary with keys that are no texts")
            target[key.decode("utf-8", "replace") if isinstance(key, bytes) else key] = value


def _ndarray(*_arguments: object) -> object:
    raise _ForeignError("an array that is written in an unusual way")


def _no_bytes(*arguments: object) -> bytes:
    if arguments:
        raise _ForeignError("bytes that are written in an unusual way")
    return b""


def _reconstruct(*_arguments: object) -> _Array:
    return _Array()


def _ordered(*arguments: object) -> dict[object, object]:
    if arguments:
        raise _ForeignError("a dictionary that is written in an unusual way")
    return {}


def _resolved(value: object, depth: int) -> object:
    """A value with arrays in the place of what stood for them."""
    if depth > _DEEPEST:
        raise _ForeignError(f"values more than {_DEEPEST} deep in each other")
    if isinstance(value, _Array):
        return _resolved(value.value, depth + 1)
    if isinstance(value, dict):
        return {key: _resolved(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, _Array | dict | list) for item in value[:64]):
        return [_resolved(item, depth + 1) for item in value]
    return value


def as_array(value: object) -> npt.NDArray[Any] | None:
    """An array, or a list of numbers or of texts, as an array; None for all else."""
    if isinstance(value, np.ndarray):
        return cast("npt.NDArray[Any]", value)
    if isinstance(value, list) and value and all(isinstance(item, int | float | str) for item in value):
        return np.asarray(value)
    return None
