"""PyTorch's own files (`.pt`, `.pth`, `.bin`): their tensors, without ever running code from the file."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor

from sapcli.checkpoints.class_names import saved_class_names, sorts_folders_as_timm
from sapcli.checkpoints.harmless_types import Substitutes, harmless_types_allowed
from sapcli.checkpoints.other_formats import by_archive, by_objects
from sapcli.checkpoints.pickle_limits import MAX_PICKLE, PickleLimits
from sapcli.checkpoints.safetensors_file import DTYPE_NAMES, QUANTISED_HINT
from sapcli.checkpoints.training_file import (
    LIGHTNING,
    TrainingFile,
    choose_state_dict,
    plain_values,
    what_else,
    without_weights,
)
from sapcli.checkpoints.zip_records import read_records
from sapcli.errors import CheckpointError
from sapcli.machine.json_text import MAX_HEADER, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LABEL_NAMES_KEY = "sap.label_names_key"
"""The metadata's key for where in a training file the classes' names stand."""
FOLDER_ORDER_KEY = "sap.folder_order"
"""The metadata's key for who sorted the class folders in the training: `timm`, where a training file tells so."""

_ZIP = b"PK\x03\x04"
_PICKLE_PROTOCOLS = tuple(bytes([0x80, version]) for version in range(2, 6))
# Before the tensors' data: a magic number, a version, facts about the system, the content, the storages' keys.
_LEGACY_PICKLES = 5
# Tensors that share a storage are written once each. A file may well hold one network under two or three names.
_TIMES_THE_FILE = 8
_SMALL_FILE = 64 << 20
_MAX_NESTING = 100
_SAVE_HINT = (
    "Where you trust the file, save its state dict alone: torch.save("
    "torch.load(FILE, weights_only=False)['state_dict'], 'model.pt'), or under whichever key it has."
)


def is_pickled(head: bytes) -> bool:
    """Whether a file that begins with these 9 bytes or more is a pickle or a zip archive, as PyTorch writes them."""
    # A safetensors file can begin alike, by the length of its header, but goes on with the header's brace.
    return len(head) > 8 and head[8:9] != b"{" and head.startswith((_ZIP, *_PICKLE_PROTOCOLS))


@dataclass(frozen=True)
class Pickled:
    """What was read of a file that PyTorch has saved.

    Attributes:
        tensors: The tensors by name, of which those of a mapped file keep the mapping alive.
        metadata: What the file tells of the classes, in the terms of a safetensors file's metadata.
        training: What else is known of it.
    """

    tensors: OrderedDict[str, Tensor]
    metadata: Mapping[str, str]
    training: TrainingFile


def read_pickled(
    handle: IO[bytes], path: Path | None, source: str, *, wanted: str | None = None, keep_extra: bool = False
) -> Pickled:
    """Read the tensors of a file that PyTorch has saved.

    The weights of a training checkpoint (`{"state_dict": ..., "optimizer": ...}`) get the names that they have in
    their own dictionary; other tensors are left out, or follow under the dotted path of their keys. What is no tensor
    is left out.

    Args:
        handle: The file, open.
        path: Its path, by which it can be mapped instead of being read into memory as a whole; None without one.
        source: What messages call it.
        wanted: Which of several state dicts in it; see `choose_state_dict`.
        keep_extra: Whether tensors that lie beside the state dict are read, too.

    Raises:
        CheckpointError: The file is damaged, needs code to be read, or holds tensors that no safetensors file can hold.
        UsageError: It does not hold what is wanted.
    """
    content = load_content(handle, path, source)
    chosen = choose_state_dict(content, source, wanted)
    if not chosen.key and (without := without_weights(content)):
        raise CheckpointError(f"{source} {without.what}", without.way_out)
    size = os.fstat(handle.fileno()).st_size
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    # The versions of the modules, where PyTorch's own state dicts have them.
    tensors._metadata = getattr(chosen.versions, "_metadata", None)  # type: ignore[attr-defined]
    beside: list[str] = []
    written = named = 0
    for name, tensor, is_beside in itertools.chain(
        ((name, tensor, False) for name, tensor in tensors_in(chosen.tensors, source)),
        ((name, tensor, True) for name, tensor in tensors_in(chosen.beside, source)),
    ):
        named += len(name)
        if named > MAX_HEADER:
            raise CheckpointError(f"{source} has names of more than {MAX_HEADER} bytes", _SAVE_HINT)
        if is_beside:
            beside.append(name)
            if not keep_extra:
                continue
        if name in tensors:
            raise CheckpointError(f"{source} holds two tensors that are called {shown(name)}", _SAVE_HINT)
        _check_storable(name, tensor, size, source)
        tensors[name] = tensor
        written += tensor.numel() * tensor.dtype.itemsize
        if written > _TIMES_THE_FILE * size + _SMALL_FILE:
            raise CheckpointError(
                f"{source} has views of its data that claim more than {_TIMES_THE_FILE} times its {size} bytes",
                _SAVE_HINT,
            )
    training = TrainingFile(
        chosen.key, tuple(beside), plain_values(content), chosen.remarks, is_lightning=LIGHTNING in content
    )
    return Pickled(tensors, _described(content), training)


def load_content(handle: IO[bytes], path: Path | None, source: str, *, restored: bool = False) -> dict[object, object]:
    """What a file holds, loaded without running code.

    Args:
        handle: The file, open.
        path: Its path, by which it can be mapped; None to read it into memory of its own.
        source: What messages call it.
        restored: Whether containers that PyTorch's loader cannot fill are made what they were; see `harmless_types`.

    Raises:
        CheckpointError: It is damaged, needs code to be read, or holds no dictionary.
    """
    content, substitutes = _load(handle, path, source)
    if restored:
        try:
            content = substitutes.restored(content)
        except (TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{source} cannot be written again as it is: {error}",
                "Leave out --format: the network's weights are then written as safetensors.",
            ) from error
    if not isinstance(content, dict):
        found, way_out = what_else(content)
        raise CheckpointError(f"{source} holds {found}, expected a state dict", way_out)
    return content


def _load(handle: IO[bytes], path: Path | None, source: str) -> tuple[object, Substitutes]:
    try:
        is_zip = handle.read(4) == _ZIP
        _check_limits(handle, source, is_zip)
        handle.seek(0)
        # timm and many others save their command line with the weights, and metrics as NumPy's numbers.
        with harmless_types_allowed() as substitutes, warnings.catch_warnings():
            # What PyTorch warns of before it gives up is said in the error.
            warnings.simplefilter("ignore")
            if path is not None and is_zip:
                content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
            else:
                content = torch.load(handle if is_zip else _plain(handle), map_location="cpu", weights_only=True)
        return content, substitutes
    except CheckpointError:
        raise
    except Exception as error:
        # torch raises nearly every kind on damaged files. Its own text advises to run the pickle's code and stays out
        # of the message; the error that it was made from says what is wrong.
        other = by_archive(handle, "" if path is None else path.name) or by_objects(_pickle_of(handle))
        if other is not None:
            raise other.error(source) from error
        cause = error.__context__ if isinstance(error, UnpicklingError) and error.__context__ else error
        if _is_damage(error):
            raise CheckpointError(
                f"{source} is damaged or cut off", "Copy or download it again, or save it anew where it was made."
            ) from error
        raise CheckpointError(
            f"Cannot read {source} as weights without running code: {_in_plain_words(cause)}", _SAVE_HINT
        ) from error


def _pickle_of(handle: IO[bytes]) -> bytes:
    """The pickle in a file of PyTorch's; nothing where it cannot be found."""
    with contextlib.suppress(Exception):  # of a damaged file, anything
        handle.seek(0)
        if handle.read(4) == _ZIP:
            with zipfile.ZipFile(handle) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(name) as member:
                    return member.read(MAX_PICKLE)
        handle.seek(0)
        whole = handle.read(MAX_PICKLE)
        # Before it stand a magic number, a version and facts about the system.
        return whole[next(iter(list(re.finditer(rb"\.\x80\x02", whole))[2:3])).end() - 2 :]
    return b""


def _in_plain_words(error: BaseException) -> str:
    """What stopped PyTorch from reading a file, without its advice to run the file's code."""
    first = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
    held = re.match(r"Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)", first)
    if held:
        return f"it holds an object of {shown(held[1])}, and is no plain state dict"
    if first.startswith("Unsupported operand"):
        return "it was saved with another pickle protocol than torch.save's own (2)"
    return shown(first)


def _check_limits(handle: IO[bytes], source: str, is_zip: bool) -> None:
    """Refuse a file that asks for more than it holds, before PyTorch does what it says."""
    size = os.fstat(handle.fileno()).st_size
    if is_zip:
        records = read_records(handle, source)
        if not records.is_program:  # which PyTorch refuses before it reads anything
            PickleLimits(size, source, records.storages).check(records.pickle)
        return
    handle.seek(0)
    head = handle.read(MAX_PICKLE)
    limits = PickleLimits(size, source)
    start = 0
    for _ in range(_LEGACY_PICKLES):
        end = limits.check(head, start)
        if end is None:
            if size > len(head):
                raise CheckpointError(
                    f"{source} is damaged, or describes its tensors in more than {MAX_PICKLE} bytes", _SAVE_HINT
                )
            return  # PyTorch stops there
        start = end


def _plain(handle: IO[bytes]) -> IO[bytes]:
    """The same file without a descriptor: of one with a descriptor PyTorch tries first whether it is a tar archive."""
    return io.BufferedReader(_WithoutDescriptor(handle))


class _WithoutDescriptor(io.RawIOBase):
    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._handle.seek(offset, whence)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._handle.readinto(buffer)  # type: ignore[attr-defined,no-any-return]


def _is_damage(error: Exception) -> bool:
    """Whether a file that was begun as PyTorch's cannot be read to its end."""
    return isinstance(error, (EOFError, zipfile.BadZipFile)) or "PytorchStreamReader" in str(error)


def _described(content: Mapping[object, object]) -> dict[str, str]:
    """What a training script has saved of the classes: their names and where they stand, or how folders were sorted."""
    saved = saved_class_names(content)
    if saved:
        return {"label_names": json.dumps(saved[0].names), LABEL_NAMES_KEY: saved[0].key}
    return {FOLDER_ORDER_KEY: "timm"} if sorts_folders_as_timm(content) else {}


def tensors_in(content: Mapping[object, object], source: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested containers, each with the dotted path of its keys, every container once."""
    seen = {id(content)}
    # A name is made when its turn comes: those of all items at once can be a thousand times as long as the file.
    stack: list[tuple[str, Iterator[tuple[object, object]]]] = [("", iter(content.items()))]
    while stack:
        path, items = stack[-1]
        for key, value in items:
            name = f"{path}.{key}" if path else str(key)
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
                if len(stack) == _MAX_NESTING:
                    raise CheckpointError(
                        f"The content of {source} is nested more than {_MAX_NESTING} deep", _SAVE_HINT
                    )
                seen.add(id(value))
                stack.append((name, iter(value.items() if isinstance(value, Mapping) else enumerate(value))))
                break
        else:
            stack.pop()


def _check_storable(name: str, tensor: Tensor, file_size: int, source: str) -> None:
    """Refuse what a safetensors file cannot hold, and views that claim more data than the file has."""
    hint = _SAVE_HINT
    if tensor.is_quantized:
        fault = f"is quantised ({tensor.dtype}), whose steps are too coarse for a projection"
        hint = QUANTISED_HINT
    elif tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        fault = f"is not a plain dense tensor ({tensor.layout}, on {tensor.device})"
    elif tensor.dtype not in DTYPE_NAMES:
        fault = f"has the dtype {tensor.dtype}, which safetensors files cannot hold"
    elif tensor.numel() * tensor.dtype.itemsize > file_size:
        fault = f"claims {tensor.numel()} elements, more than a file of {file_size} bytes can hold"
    elif any(0xD800 <= ord(character) < 0xE000 for character in name):
        fault = "has a name that is not valid Unicode"
    else:
        return
    raise CheckpointError(f"{source}: tensor {shown(name)} {fault}", hint)
