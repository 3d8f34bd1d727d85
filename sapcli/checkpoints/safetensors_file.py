"""One safetensors file: its header, checked before anything else is read, and its tensors' bytes, one by one.

The format: eight bytes with the header's length, the header (JSON: name to type, shape and place), the tensors' data
without gaps. The library behind the format maps whole files into memory, which then stay resident; here a tensor's
bytes are read when they are asked for and belong to the caller alone.
"""

from __future__ import annotations

import json
import math
import os
import re
import weakref
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, NoReturn

import torch

from sapcli.errors import CheckpointError
from sapcli.machine.json_text import COPY_HINT, MAX_HEADER, parse_json_object, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

_CHUNK = 1 << 24
_METADATA = "__metadata__"
QUANTISED_HINT = "Repair the checkpoint from before the quantisation (F64, F32, F16 or BF16), then quantise the result."
"""What to do about weights of too few bits."""

# How the format calls its types: those that are not above came after this version, and are no damage.
_DTYPE = re.compile(r"(BF|F|I|U|C|Q)\d{1,3}(_[A-Z0-9]{1,16})*")

Span = tuple[int, int]
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint.

    Attributes:
        name: Its name in the file.
        dtype: The type of its elements.
        shape: Its shape; empty for a scalar.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFile:
    """An open safetensors file whose header is right; it stays open as long as the object lives.

    Attributes:
        entries: Its tensors, in the header's order.
        spans: Where each tensor's data begins and ends, in bytes after the header.
        metadata: The header's free texts.
    """

    def __init__(self, handle: IO[bytes], source: str) -> None:
        """Read and check the header.

        Args:
            handle: The file, which can be read anywhere.
            source: What messages call it.

        Raises:
            CheckpointError: The file is not a safetensors file, or is damaged.
        """
        weakref.finalize(self, handle.close)
        self._handle = handle
        self._source = source
        try:
            self._state = _state(handle)
            header, self._data_start = self._read_header()
        except OSError as error:
            raise self._unreadable(error) from error
        self.metadata: Mapping[str, str] = self._checked_metadata(header.pop(_METADATA, {}))
        self.spans: dict[str, Span] = {}
        self.entries: dict[str, Entry] = {}
        for name, description in header.items():
            self.entries[name], self.spans[name] = self._checked_entry(name, description)
        self._check_spans()

    @property
    def header_size(self) -> int:
        """The bytes of the header."""
        return self._data_start

    def chunks(self, name: str) -> Iterator[Buffer]:
        """The bytes of one tensor, in pieces of bounded size.

        Args:
            name: One of `entries`.

        Yields:
            The next piece.

        Raises:
            CheckpointError: The file was changed or cannot be read.
        """
        position, stop = (self._data_start + offset for offset in self.spans[name])
        while position < stop:
            piece = bytearray(min(_CHUNK, stop - position))
            self._fill(memoryview(piece), position)
            position += len(piece)
            yield piece

    def read(self, name: str) -> Tensor:
        """Read one tensor into memory of its own.

        Args:
            name: One of `entries`.

        Returns:
            The tensor, of the entry's dtype and shape, on the CPU.

        Raises:
            CheckpointError: The file was changed or cannot be read.
        """
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        self._fill(tensor_bytes(tensor), self._data_start + self.spans[name][0])
        return tensor

    def _fill(self, buffer: memoryview, position: int) -> None:
        try:
            if _state(self._handle) != self._state:
                self._fail("was changed while it was being read", "Run again when nothing else writes to it.")
            self._handle.seek(position)
            filled = self._handle.readinto(buffer)  # type: ignore[attr-defined]
        except OSError as error:
            raise self._unreadable(error) from error
        if filled != len(buffer):
            self._fail("ended before it should while it was being read", COPY_HINT)

    def _read_header(self) -> tuple[dict[str, object], int]:
        size = self._state[0]
        if size == 0:
            self._fail("is empty", COPY_HINT)
        self._handle.seek(0)
        start = self._handle.read(8)
        if len(start) < 8:
            self._fail(f"has only {size} bytes, too few for a safetensors file", COPY_HINT)
        length = int.from_bytes(start, "little")
        if length > MAX_HEADER:
            if length <= size - 8 and self._handle.read(1) == b"{":
                self._fail(
                    f"has a header of {length} bytes, of which at most {MAX_HEADER} are read",
                    "Save the network's weights alone, without what lies beside them.",
                )
            self._fail(
                "is not a safetensors file, nor one of PyTorch's: it begins with no header's length and no pickle",
                "Name a .safetensors, .pt or .pth file.",
            )
        if length > size - 8:
            self._fail(f"is cut off: its header of {length} bytes ends after {size - 8}", COPY_HINT)
        text = self._handle.read(length)
        if not text.startswith(b"{"):
            self._fail("is not a safetensors file: its header is not a JSON object", COPY_HINT)
        return parse_json_object(text, f"the header of {self._source}"), 8 + length

    def _checked_metadata(self, metadata: object) -> dict[str, str]:
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            self._fail(f"has a damaged header: {_METADATA} is {shown(metadata)}, not texts by name", COPY_HINT)
        return metadata

    def _checked_entry(self, name: str, description: object) -> tuple[Entry, Span]:
        match description:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop]}:
                pass
            case _:
                self._fail_at(name, f"is described by {shown(description)}, not by dtype, shape and data_offsets")
        if dtype not in DTYPES and _DTYPE.fullmatch(dtype):
            self._fail(
                f"cannot be read by this version: tensor {shown(name)} has the dtype {shown(dtype)}, "
                f"which is none of {', '.join(DTYPES)}",
                QUANTISED_HINT,
            )
        if dtype not in DTYPES:
            self._fail_at(name, f"has the dtype {shown(dtype)}, expected one of {', '.join(DTYPES)}")
        if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, start, stop)):
            self._fail_at(name, f"has the shape {shown(shape)} at {shown([start, stop])}, expected counts of 0 or more")
        entry = Entry(name, DTYPES[dtype], tuple(shape))
        # Beyond these, numpy gives up or strides overflow in torch, even if one extent is 0.
        if len(shape) > 64 or math.prod(max(extent, 1) for extent in shape) >= 2**59:
            self._fail_at(name, f"has the impossible shape {shown(shape)}")
        if stop - start != entry.nbytes:
            self._fail_at(
                name, f"has {stop - start} bytes of data, expected {entry.nbytes} for {dtype} of shape {shown(shape)}"
            )
        return entry, (start, stop)

    def _check_spans(self) -> None:
        available = self._state[0] - self._data_start
        end = 0
        for name, (start, stop) in sorted(self.spans.items(), key=lambda item: item[1]):
            if start != end:
                fault = "overlaps the data before it" if start < end else "leaves a gap in the data before it"
                self._fail_at(name, f"begins at byte {start} of the data and so {fault}, which ends at {end}")
            if stop > available:
                self._fail(
                    f"is cut off: tensor {shown(name)} ends at byte {stop} of the data, of which there are {available}",
                    COPY_HINT,
                )
            end = stop
        if end != available:
            self._fail(f"has {available - end} bytes after its last tensor that belong to none", COPY_HINT)

    def _unreadable(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"Cannot read {self._source}: {error.strerror or error}", "Check the file and its disk.")

    def _fail_at(self, name: str, what: str) -> NoReturn:
        self._fail(f"has a damaged header: tensor {shown(name)} {what}", COPY_HINT)

    def _fail(self, what: str, hint: str) -> NoReturn:
        raise CheckpointError(f"{self._source} {what}", hint)


def _state(handle: IO[bytes]) -> tuple[int, int]:
    """The file's size and time of change, by which a change is noticed."""
    status = os.fstat(handle.fileno())
    return status.st_size, status.st_mtime_ns


def lay_out(entries: Iterable[Entry]) -> dict[str, Span]:
    """Places for the tensors of a new file: without gaps, wide elements first, so that each is aligned to its size."""
    spans = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: -entry.dtype.itemsize):
        spans[entry.name] = (end, end + entry.nbytes)
        end += entry.nbytes
    return spans


def write_tensors(
    handle: IO[bytes],
    entries: Iterable[Entry],
    spans: Mapping[str, Span],
    metadata: Mapping[str, str],
    data: Callable[[str], Iterable[Buffer]],
) -> None:
    """Write a safetensors file, tensor by tensor.

    Args:
        handle: Where to; it is only appended to.
        entries: The tensors, in the order that the header shall have.
        spans: The place of each tensor's data, without gaps.
        metadata: The header's free texts, written in the order of their names.
        data: Gives the bytes of the tensor of a name, in pieces.

    Raises:
        CheckpointError: The header would be larger than can be read.
        OSError: Writing failed.
    """
    header: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    for entry in entries:
        header[entry.name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": spans[entry.name],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        # No file is made that could not be read again.
        raise CheckpointError(
            f"the header of the new file would have {len(text)} bytes (at most {MAX_HEADER})",
            "Leave out some of its metadata.",
        )
    handle.write(len(text).to_bytes(8, "little") + text)
    for name in sorted(spans, key=spans.__getitem__):
        for piece in data(name):
            handle.write(piece)


def save_tensors(handle: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors that are in memory as a safetensors file.

    Args:
        handle: Where to; it is only appended to, and flushed.
        tensors: The tensors by name, on any device; each is written on its own, also where several share memory.
        metadata: The header's free texts.

    Raises:
        OSError: Writing failed.
    """
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    write_tensors(handle, entries, lay_out(entries), metadata, lambda name: [tensor_bytes(tensors[name])])
    handle.flush()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; of a contiguous one on the CPU, they are a view of its memory."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    return plain.reshape(-1).view(torch.uint8).numpy().data
