"""Checkpoints as they are found and as they are written back: one safetensors file, shards, or PyTorch's own files."""

from __future__ import annotations

import hashlib
import json
import math
import stat
import sys
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch

from sapcli.checkpoints.entry_names import TRAINING_STATE, without_inner_wrappers
from sapcli.checkpoints.locating import (
    PICKLED_INDEX_SUFFIX,
    checkpoint_in,
    is_transformers_folder,
    referenced_path,
)
from sapcli.checkpoints.module_versions import versions_as_metadata
from sapcli.checkpoints.other_formats import HEAD, adapter_alone, by_content
from sapcli.checkpoints.pytorch_file import is_pickled, read_pickled
from sapcli.checkpoints.safetensors_file import DTYPE_NAMES, QUANTISED_HINT, Entry, SafetensorsFile, save_tensors
from sapcli.errors import CheckpointError
from sapcli.machine.files import spool, spool_pipe, temporary_copy
from sapcli.machine.json_text import MAX_HEADER, read_json_file, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from sapcli.checkpoints.safetensors_file import Buffer
    from sapcli.checkpoints.training_file import TrainingFile

STANDARD_INPUT = "-"
_GIT_LFS = b"version https://git-lfs"

_FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


class Form(Enum):
    """How a checkpoint is stored."""

    SINGLE = "one safetensors file"
    SHARDED = "safetensors shards with an index"
    PICKLE = "a PyTorch file"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An open checkpoint: what it holds, and its tensors when they are asked for.

    Attributes:
        source: What the user typed, for messages.
        path: The file, the index file of shards, or None for standard input and pipes.
        form: How it is stored.
        entries: Every tensor, by its name in the file, in the file's order (shards in the order of their names).
        metadata: The free texts of the header; of shards, those of the index and of all shards.
        files: The open files by their names; of a PyTorch file, the temporary one that its tensors were copied to.
        index: The content of the shards' index; empty without one.
        training: What is known of a PyTorch file beside its tensors; None of others.
        remarks: What is to be said of how it was opened, a sentence each.
        names_in_files: From an entry's name to that in the file, where they differ.
        known_as: From the network's names to the entries, where they are known by others than those in the file.
        folder: The folder that it was given as, where that is a model of transformers'; None of others.
    """

    source: str
    path: Path | None
    form: Form
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    files: Mapping[str, SafetensorsFile] = field(repr=False)
    index: Mapping[str, object] = field(repr=False, default_factory=dict)
    training: TrainingFile | None = None
    remarks: tuple[str, ...] = ()
    names_in_files: Mapping[str, str] = field(repr=False, default_factory=dict)
    known_as: Mapping[str, str] = field(repr=False, default_factory=dict)
    folder: Path | None = None

    def read(self, name: str) -> Tensor:
        """Read one tensor into memory of its own.

        Args:
            name: One of `entries`.

        Returns:
            The tensor, of the entry's dtype and shape, on the CPU.

        Raises:
            CheckpointError: The file was changed or cannot be read.
        """
        name = self.names_in_files.get(name, name)
        return self._file_of[name].read(name)

    def chunks(self, name: str) -> Iterable[Buffer]:
        """The bytes of one tensor, in pieces of bounded size; arguments and errors as in `read`."""
        name = self.names_in_files.get(name, name)
        return self._file_of[name].chunks(name)

    def narrowed(self, names: Mapping[str, str]) -> Checkpoint:
        """Some of the entries, under other names: from the new names to this checkpoint's."""
        entries = {new: replace(self.entries[name], name=new) for new, name in names.items()}
        in_files = {new: self.names_in_files.get(name, name) for new, name in names.items()}
        return replace(self, entries=entries, names_in_files=in_files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the name, dtype, shape and bytes of every tensor, in the order of their names.

        The same weights have the same digest in every form and with any metadata.
        """
        digest = hashlib.sha256()
        for name, entry in sorted(self.entries.items()):
            update_digest(digest, entry, self.chunks(name))
        return digest.hexdigest()

    @cached_property
    def config(self) -> Mapping[str, object] | None:
        """The content of `config.json` beside the file; None without one.

        Raises:
            CheckpointError: The file is there, but cannot be read as a JSON object.
        """
        path = self.path and self.path.with_name("config.json")
        return read_json_file(path) if path and path.is_file() else None

    @cached_property
    def unwrapped_names(self) -> Mapping[str, str]:
        """The entries that may be the network's, without what wrappers of submodules put in the middle of their names.

        So `layer1._orig_mod.conv` is `layer1.conv`. What stands at the beginning remains; see `candidate_prefixes`. Two
        entries that would get one name keep theirs.
        """
        if self.known_as:
            return self.known_as
        own = [name for name in self.entries if name not in self.beside]
        names = {without_inner_wrappers(name): name for name in own}
        return names if len(names) == len(own) else {name: name for name in own}

    @cached_property
    def beside(self) -> frozenset[str]:
        """The entries that lie beside the state dict of a training file, and so are never the network's."""
        return frozenset(self.training.beside if self.training is not None else ())

    @cached_property
    def _file_of(self) -> Mapping[str, SafetensorsFile]:
        return {name: file for file in self.files.values() for name in file.entries}


def update_digest(digest: hashlib._Hash, entry: Entry, data: Iterable[Buffer]) -> None:
    """Add one tensor to a checkpoint's digest; the tensors have to come in the order of their names."""
    digest.update(json.dumps([entry.name, DTYPE_NAMES[entry.dtype], entry.shape]).encode())
    for piece in data:
        digest.update(piece)


def open_checkpoint(source: str | Path, *, weights: str | None = None, keep_extra: bool = False) -> Checkpoint:
    """Open a checkpoint and check its headers; no tensor is read yet.

    Args:
        source: A safetensors file; an index of shards; a folder with `model.safetensors`, its index, or a single
            other checkpoint; a PyTorch file (`.pt`, `.pth`, `.bin`), loaded without running code and copied to a
            temporary safetensors file; a reference to the Hub; a pipe; or "-" for standard input.
        weights: Which of the state dicts in a training file: `ema` for an average, else a key; None for the usual one.
        keep_extra: Whether tensors that lie beside the state dict of a training file are entries, too.

    Returns:
        The checkpoint. Its files stay open as long as it lives.

    Raises:
        SapError: The source cannot be read, is damaged, holds no tensors or quantised weights, or not those weights.
    """
    choice = _Choice(weights, keep_extra)
    try:
        checkpoint = _standard_input(choice) if str(source) == STANDARD_INPUT else _open_named(source, choice)
    except (OSError, ValueError) as error:  # A path with a null character is a ValueError.
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"Cannot read {source}: {reason}", "Check the path and its permissions.") from error
    if not checkpoint.entries:
        raise CheckpointError(f"{checkpoint.source} holds no tensors", "Name a checkpoint with a model's weights.")
    adapter = adapter_alone(checkpoint.entries)
    if adapter is not None:
        raise adapter.error(checkpoint.source)
    _refuse_mostly_quantised(checkpoint)
    if weights is not None and checkpoint.training is None:
        remark = f"--weights {weights}: {checkpoint.source} holds one set of weights, and that is used"
        return replace(checkpoint, remarks=(*checkpoint.remarks, remark))
    return checkpoint


@dataclass(frozen=True)
class _Choice:
    """What is taken of a training file; see `open_checkpoint`."""

    weights: str | None
    keep_extra: bool


def _standard_input(choice: _Choice) -> Checkpoint:
    if sys.stdin is None or sys.stdin.isatty():
        raise CheckpointError("Standard input is a terminal, expected a checkpoint", "Pipe one in, or name a file.")
    return _open_file(spool(sys.stdin.buffer, "standard input"), None, "standard input", choice)


def _open_named(source: str | Path, choice: _Choice) -> Checkpoint:
    local = referenced_path(str(source))
    return _open_path(Path(source), choice) if local is None else replace(_open_path(local, choice), source=str(source))


def _open_path(path: Path, choice: _Choice) -> Checkpoint:
    source = str(path)
    if path.is_dir():
        file = checkpoint_in(path)
        found = replace(_open_path(file, choice), source=source)
        return replace(found, folder=path) if file.parent == path and is_transformers_folder(path) else found
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode):
        return _open_file(spool_pipe(path), None, source, choice)
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{source} is a device or a socket, expected a checkpoint", "Name a file.")
    if path.name.endswith(PICKLED_INDEX_SUFFIX):
        return _open_pickled_shards(path, source)
    if path.name.endswith(".json"):
        return _open_shards(path, source)
    return _open_file(path.open("rb"), path, source, choice)


def _open_file(handle: IO[bytes], path: Path | None, source: str, choice: _Choice) -> Checkpoint:
    """Open what is no index: by its content, since names are often wrong."""
    name, suffix = (path.name, path.suffix) if path else ("", "")
    head = handle.read(HEAD)
    handle.seek(0)
    if not is_pickled(head):
        if head.startswith(_GIT_LFS):
            handle.close()
            raise CheckpointError(f"{source} is a Git LFS pointer, not the file itself", "Run `git lfs pull` first.")
        other = by_content(head, name) if head[8:9] != b"{" else None
        if other is not None:
            handle.close()
            raise other.error(source)
        file = SafetensorsFile(handle, source)
        return Checkpoint(source, path, Form.SINGLE, file.entries, file.metadata, {name: file})
    with handle:
        if suffix == ".safetensors":
            raise CheckpointError(
                f"{source} is a pickle or a zip archive, as PyTorch writes them, not a safetensors file",
                "If it is PyTorch's, rename it to .pt: it is then loaded without running its code.",
            )
        found = read_pickled(handle, path, source, wanted=choice.weights, keep_extra=choice.keep_extra)
    file = _converted(found.tensors, source, found.metadata)
    training = found.training
    return Checkpoint(
        source, path, Form.PICKLE, file.entries, file.metadata, {name: file}, {}, training, training.remarks
    )


def _open_pickled_shards(path: Path, source: str) -> Checkpoint:
    """Open shards in PyTorch's own form, as one file."""
    index, shards = _listed_shards(path, ".bin")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        with path.with_name(shard).open("rb") as handle:
            if not is_pickled(handle.read(HEAD)):
                raise CheckpointError(f"{path.with_name(shard)} is none of PyTorch's files", "Download it again.")
            handle.seek(0)
            tensors |= read_pickled(handle, path.with_name(shard), str(path.with_name(shard))).tensors
    _check_index(path, index, {(name, shard) for name, shard in index.items() if name in tensors})
    file = _converted(tensors, source, {})
    return Checkpoint(source, path, Form.PICKLE, file.entries, file.metadata, {path.name: file})


def _converted(tensors: Mapping[str, Tensor], source: str, metadata: Mapping[str, str]) -> SafetensorsFile:
    """The tensors in a temporary safetensors file, so that neither they nor a mapping of their file stay in memory."""
    with temporary_copy(source) as copy:
        save_tensors(copy, tensors, {"format": "pt", **versions_as_metadata(tensors), **metadata})
    return SafetensorsFile(copy, source)


def _open_shards(path: Path, source: str) -> Checkpoint:
    weight_map, shards = _listed_shards(path, ".safetensors")
    index = read_json_file(path)
    files = _open_all_shards(path, shards)
    _check_index(path, weight_map, {(name, shard) for shard, file in files.items() for name in file.entries})
    about = index.get("metadata")
    metadata = {name: text for name, text in about.items() if isinstance(text, str)} if isinstance(about, dict) else {}
    for file in files.values():
        metadata |= file.metadata
    entries = {name: entry for file in files.values() for name, entry in file.entries.items()}
    return Checkpoint(source, path, Form.SHARDED, entries, metadata, files, index)


def _listed_shards(path: Path, suffix: str) -> tuple[dict[str, str], list[str]]:
    """The shard of every tensor, as an index names them, and the shards in the order of their names; all are there."""
    weight_map = read_json_file(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map and so is no index of shards", "Name the checkpoint's index.")
    # An index names files beside it; anything else would let it read where the user did not point.
    bad = next((s for s in weight_map.values() if not (isinstance(s, str) and _is_shard_name(s, suffix))), None)
    if bad is not None:
        raise CheckpointError(
            f"{path} names the shard {shown(bad)}, expected the name of a {suffix} file beside it",
            "Save the checkpoint again where it was made.",
        )
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not path.with_name(shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{path} names {len(shards)} shards, of which {len(missing)} are missing: {shown(missing)}",
            "Copy or download the missing files into the same folder.",
        )
    return weight_map, shards


def _check_index(path: Path, weight_map: Mapping[str, str], found: set[tuple[str, str]]) -> None:
    """Refuse an index that does not name the very tensors that are in its shards."""
    listed = set(weight_map.items())
    for name, shard in sorted(listed ^ found):
        fault = "is not in the shard" if (name, shard) in listed else "is not in the index, but in the shard"
        raise CheckpointError(
            f"{path} does not fit its shards: tensor {shown(name)} {fault} {shown(shard)}",
            "Copy or download index and shards again, from the same place.",
        )


def _is_shard_name(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and not set(name) & set("/\\\0")


def _open_all_shards(path: Path, shards: Iterable[str]) -> dict[str, SafetensorsFile]:
    """The shards of an index, whose headers together are no larger than that of one file may be."""
    files = {}
    size = 0
    for shard in shards:
        files[shard] = _open_shard(path.with_name(shard))
        size += files[shard].header_size
        if size > MAX_HEADER:
            raise CheckpointError(
                f"the headers of the shards of {path} have more than {MAX_HEADER} bytes",
                "Save the checkpoint again where it was made.",
            )
    return files


def _open_shard(path: Path) -> SafetensorsFile:
    handle = path.open("rb")
    if is_pickled(handle.read(32)):
        handle.close()
        raise CheckpointError(
            f"{path} is a pickle or a zip archive, not a safetensors file", "Name shards of safetensors."
        )
    return SafetensorsFile(handle, str(path))


def _refuse_mostly_quantised(checkpoint: Checkpoint) -> None:
    """Refuse packed integers as weights, before their odd names make the file look like a wrong architecture."""
    floating = packed = 0
    example = None
    for name, entry in checkpoint.entries.items():
        if len(entry.shape) < 2 or name.partition(".")[0] in TRAINING_STATE:
            continue
        if entry.dtype in _FLOATING or entry.dtype.is_complex:
            floating += math.prod(entry.shape)
        elif entry.dtype not in {torch.bool, torch.int64}:
            packed += math.prod(entry.shape)
            example = example or name
    if example and packed > floating:
        refuse_quantised(checkpoint, [example])


def refuse_quantised(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Refuse weights that are not stored as plain floating point numbers.

    Args:
        checkpoint: The checkpoint.
        names: The entries that fill floating point parameters of the network.

    Raises:
        CheckpointError: One of them is stored as integers or in 8 bits.
    """
    for name in names:
        entry = checkpoint.entries[name]
        if entry.dtype not in _FLOATING:
            raise CheckpointError(
                f"{checkpoint.source} is quantised: weight {shown(name)} is stored as {DTYPE_NAMES[entry.dtype]}, "
                "whose steps are too coarse for a projection",
                QUANTISED_HINT,
            )
