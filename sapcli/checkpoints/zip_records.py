"""The directory of a zip archive as PyTorch writes them, checked before anything in it is read.

PyTorch stores its records as they are, so that they can be mapped. A record that is compressed is not PyTorch's, and
can be a thousand times larger than the file.
"""

from __future__ import annotations

import os
import struct
import zipfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from sapcli.checkpoints.pickle_limits import MAX_PICKLE
from sapcli.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Some 100,000 records of storages with their names.
MAX_DIRECTORY = 8 << 20
_HINT = "Save it again where it was made, with torch.save."

_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")


@dataclass(frozen=True)
class ZipRecords:
    """What a PyTorch archive holds.

    Attributes:
        pickle: The pickle that describes the tensors.
        storages: The sizes of the storages' records by their keys.
        is_program: Whether the archive is TorchScript's, which holds code.
    """

    pickle: bytes
    storages: Mapping[str, int]
    is_program: bool


def read_records(handle: IO[bytes], source: str) -> ZipRecords:
    """Read the directory and the pickle of an archive.

    Args:
        handle: The file.
        source: What messages call it.

    Raises:
        CheckpointError: Records are compressed, overlap, or are too many.
        EOFError: The directory is not where and what it should be.
        OSError: The file cannot be read.
        BadZipFile: The directory is damaged.
    """
    size = os.fstat(handle.fileno()).st_size
    length = _directory_length(handle, size)
    if length > MAX_DIRECTORY:
        raise CheckpointError(f"{source} has a directory of {length} bytes (at most {MAX_DIRECTORY})", _HINT)
    with zipfile.ZipFile(handle) as archive:
        members = archive.infolist()
        roots = {member.filename.partition("/")[0] for member in members}
        if len(roots) != 1 or len({member.filename.lower() for member in members}) != len(members):
            raise EOFError("the archive's names are not PyTorch's")
        (root,) = roots
        by_name = {member.filename.removeprefix(f"{root}/"): member for member in members}
        is_program = "constants.pkl" in by_name
        # The code of a TorchScript archive is compressed, and not read.
        read = {name: it for name, it in by_name.items() if not (is_program and name.startswith("code/"))}
        for name, member in read.items():
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                raise CheckpointError(
                    f"{source} has a compressed record, {name!a:.80}, which PyTorch never writes", _HINT
                )
        storages = {
            name.removeprefix("data/"): member.file_size for name, member in read.items() if name.startswith("data/")
        }
        others = sum(member.file_size for name, member in read.items() if not name.startswith("data/"))
        if sum(storages.values()) + others > size:
            raise CheckpointError(f"{source} has records of more bytes than the {size} that it has", _HINT)
        if others > MAX_PICKLE:
            raise CheckpointError(
                f"{source} describes its tensors in {others} bytes (at most {MAX_PICKLE})",
                "Where you trust the file, load it and save its state dict alone, best with safetensors' save_file.",
            )
        if "data.pkl" not in by_name:
            raise EOFError("the archive has no data.pkl")
        pickle = b"" if is_program else archive.read(by_name["data.pkl"])
    return ZipRecords(pickle, storages, is_program)


def _directory_length(handle: IO[bytes], size: int) -> int:
    """The length of the directory, which has to end where the records about its end begin, at the end of the file.

    There are several ways to look for it, and in a file that is made for it they find different ones. This is where
    all of them look first.
    """
    tail_size = min(size, _END.size + _LOCATOR64.size + _END64.size)
    handle.seek(size - tail_size)
    tail = handle.read(tail_size)
    end = size - _END.size
    signature, disk, first_disk, here, total, length, start, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\5\6" or comment or disk or first_disk or here != total:
        raise EOFError("the archive's directory, which stands at its end, is missing")
    locator = tail[-_END.size - _LOCATOR64.size : -_END.size]
    if locator[:4] == b"PK\6\7":
        _, _, place, _ = _LOCATOR64.unpack(locator)
        end -= _LOCATOR64.size + _END64.size
        signature, rest, *_, here, total, length, start = _END64.unpack(tail[: _END64.size])
        if signature != b"PK\6\6" or rest != _END64.size - 12 or place != end or here != total:
            raise EOFError("the archive's directory is not where it says")
    if start + length != end:
        raise EOFError("the archive's directory does not end at its end")
    return int(length)
