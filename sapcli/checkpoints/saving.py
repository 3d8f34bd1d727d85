"""Writing: a checkpoint in the form in which it came, with some tensors replaced, and safetensors files of our own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

import torch

from sapcli.checkpoints.checkpoint import Form, update_digest
from sapcli.checkpoints.locating import CACHED_REPOSITORY, INDEX_SUFFIX, PICKLED_INDEX_SUFFIX
from sapcli.checkpoints.safetensors_file import DTYPE_NAMES, lay_out, save_tensors, tensor_bytes, write_tensors
from sapcli.errors import CheckpointError, NumericsError, UsageError
from sapcli.machine.files import atomic_write, pending_files, write_error
from sapcli.machine.json_text import read_json_file, shown
from sapcli.machine.text import encodable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.checkpoints.safetensors_file import Buffer

# So many hexadecimal digits of the SHA-256 of a shard's bytes stand before the ending of its name.
_DIGITS = 12
_CONTENT_NAME = re.compile(rf"\.[0-9a-f]{{{_DIGITS}}}\.safetensors$")
# Shards that no index names are left by a killed run, unless another one is just writing them.
_STALE_SECONDS = 3600.0


def write_checkpoint(
    checkpoint: Checkpoint,
    destination: Path | BinaryIO,
    replacements: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    replace: bool = True,
) -> None:
    """Write a checkpoint with some of its tensors replaced: the names, order, shapes, dtypes and data layout stay.

    The tensors are written one by one; those that are not replaced keep every bit. Nothing appears under the final
    names before all is written. The names of shards tell their content, so that none takes the place of another one
    that the index still names; the index is replaced last, and the shards of the one before are removed then.

    Args:
        checkpoint: What is to be written.
        destination: A path, as explained at `output_files`, or an open file, which gets the single-file form.
        replacements: New tensors for some entries, of the same shapes, each asked for once; they are cast to the
            entries' dtypes.
        metadata: The texts for the header (of every shard, and for the index), in place of the checkpoint's own.
        replace: Whether a file that has the name by then is replaced.

    Raises:
        CheckpointError: It cannot be written, would replace what is not to be replaced or what it is read from, or its
            file was changed.
        NumericsError: A replacement is not finite in its entry's dtype.
        ValueError: A replacement has no entry, or another shape.
    """
    metadata = {encodable(name): encodable(text) for name, text in metadata.items()}
    unknown = replacements.keys() - checkpoint.entries.keys()
    if unknown:
        raise ValueError(f"no entry {min(unknown)} to replace")

    def data(name: str) -> Iterable[Buffer]:
        return _data(checkpoint, replacements, name)

    if not isinstance(destination, Path):
        try:
            _write_single(destination, checkpoint, metadata, data)
            destination.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise write_error("to the output stream", error, CheckpointError) from error
        return

    outputs = output_files(checkpoint, destination)
    _refuse_own_files(checkpoint, outputs[-1:])
    if len(outputs) == 1:
        with atomic_write(outputs[0], CheckpointError, replace=replace) as handle:
            _write_single(handle, checkpoint, metadata, data)
        return
    before = _named_shards(outputs[-1])
    not_named_yet = [output.with_name(_content_name(output.name, "0" * _DIGITS)) for output in outputs[:-1]]
    with pending_files([*not_named_yet, outputs[-1]], CheckpointError, replace=replace) as pending:
        for file, plain, output in zip(checkpoint.files.values(), outputs, pending, strict=False):
            hashing = _Hashing(output.handle)
            write_tensors(cast("IO[bytes]", hashing), file.entries.values(), file.spans, metadata, data)
            output.name_by_content(_content_name(plain.name, hashing.digest.hexdigest()))
        shards = [output.path for output in pending[:-1]]
        _refuse_own_files(checkpoint, shards)
        pending[-1].handle.write(_index(checkpoint, shards, metadata))
    _remove_old_shards(checkpoint, shards, before)


def written_digest(checkpoint: Checkpoint, replacements: Mapping[str, Tensor]) -> str:
    """The digest that the checkpoint has once it is written with these replacements, before it is.

    Each replacement is asked for once, and none is kept.
    """
    digest = hashlib.sha256()
    for name in sorted(checkpoint.entries):
        update_digest(digest, checkpoint.entries[name], _data(checkpoint, replacements, name))
    return digest.hexdigest()


def write_safetensors(
    destination: Path | BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as one safetensors file.

    Args:
        destination: The file to make or to replace, or an open one.
        tensors: The tensors by name, in the order that the header shall have.
        metadata: The header's free texts.

    Raises:
        SapError: The file cannot be written.
    """
    if isinstance(destination, Path):
        with atomic_write(destination) as handle:
            save_tensors(handle, tensors, metadata or {})
        return
    try:
        save_tensors(destination, tensors, metadata or {})
    except BrokenPipeError:
        raise
    except OSError as error:
        raise write_error("to the output stream", error) from error


def default_output(checkpoint: Checkpoint, mark: str = "sap") -> Path:
    """Where a corrected checkpoint goes without a word from the user: beside the input, with a mark in its name.

    Args:
        checkpoint: The input.
        mark: What stands in the name beside that of the input.

    One from the cache of `huggingface_hub` goes into the working folder, under its repository's name.

    Raises:
        UsageError: The checkpoint came through a pipe and so lies nowhere.
    """
    if checkpoint.path is None:
        raise UsageError(f"{checkpoint.source} has no place for an output beside it", "Name the output with -o FILE.")
    name = checkpoint.path.name
    cached = CACHED_REPOSITORY.search(str(checkpoint.path.parent.absolute()))
    if cached is not None and checkpoint.form is not Form.SHARDED:
        # A cache is no place for results, and the names in it tell nothing.
        return Path(f"{cached['name']}.{mark}.safetensors")
    if checkpoint.form is Form.SHARDED:
        return checkpoint.path.with_name(f"{_index_stem(name)}.{mark}{INDEX_SUFFIX}")
    return checkpoint.path.with_name(f"{_stem(name)}.{mark}.safetensors")


def output_files(checkpoint: Checkpoint, destination: Path) -> tuple[Path, ...]:
    """The files that `write_checkpoint` makes.

    A destination that is a folder takes the checkpoint's own file name. Shards become shards again when the
    destination is a folder or an index (`*.json`); they keep their names, or where the index gets another name, change
    theirs alike (`model-1-of-2` beside `model`, `fixed-1-of-2` beside `fixed`), and a part of a hash of their content
    is put before the ending once that is written. A destination called `*.safetensors` gets one file, in whatever form
    the checkpoint came.

    Args:
        checkpoint: What is to be written.
        destination: The path that the user gave, or `default_output`.

    Returns:
        The files; the last one is that by which the checkpoint is opened.

    Raises:
        CheckpointError: It does not follow from the destination how shards are to be written, or it is out of reach.
    """
    name = checkpoint.path.name if checkpoint.path else "model.safetensors"
    try:
        is_folder = destination.is_dir()
    except OSError as error:
        raise write_error(str(destination), error, CheckpointError) from error
    if checkpoint.form is not Form.SHARDED:
        return (destination / f"{_stem(name)}.safetensors" if is_folder else destination,)
    if is_folder:
        destination = destination / name
    if destination.name.endswith(".json"):
        shards = _shard_names(checkpoint, name, destination.name)
        return (*(destination.with_name(shard) for shard in shards), destination)
    if destination.name.endswith(".safetensors"):
        return (destination,)
    raise CheckpointError(
        f"{checkpoint.source} consists of shards, and {destination} is no existing folder, index or .safetensors file",
        f"Create the folder first, or name an output that ends in {INDEX_SUFFIX} or in .safetensors.",
    )


def _write_single(
    handle: IO[bytes], checkpoint: Checkpoint, metadata: Mapping[str, str], data: Callable[[str], Iterable[Buffer]]
) -> None:
    entries = checkpoint.entries.values()
    spans = [file.spans for file in checkpoint.files.values()]
    places = spans[0] if len(spans) == 1 and spans[0].keys() == checkpoint.entries.keys() else lay_out(entries)
    write_tensors(handle, entries, places, metadata, data)


def _data(checkpoint: Checkpoint, replacements: Mapping[str, Tensor], name: str) -> Iterable[Buffer]:
    """The bytes of one entry as they are written."""
    if name in replacements:
        return [tensor_bytes(cast_entry(checkpoint, name, replacements[name]))]
    return checkpoint.chunks(name)


def cast_entry(checkpoint: Checkpoint, name: str, tensor: Tensor) -> Tensor:
    """The replacement as the file stores it: in half precision, large values turn into infinities.

    Raises:
        NumericsError: They do.
        ValueError: It has another shape than the entry.
    """
    if tensor.shape != checkpoint.entries[name].shape:
        raise ValueError(f"no entry {name} of shape {tuple(tensor.shape)} to replace")
    stored = tensor.detach().to(device="cpu", dtype=checkpoint.entries[name].dtype)
    if not torch.isfinite(stored).all():
        raise NumericsError(
            f"The new {shown(name)} has NaN or infinite values as {DTYPE_NAMES[stored.dtype]}",
            "Keep this layer as it is (--skip-layers), or repair the checkpoint in a wider dtype.",
        )
    return stored


def _stem(name: str) -> str:
    """The name of a file without its ending; that of an index of PyTorch's shards has three."""
    return name.removesuffix(PICKLED_INDEX_SUFFIX) if name.endswith(PICKLED_INDEX_SUFFIX) else Path(name).stem


def _index_stem(name: str) -> str:
    return name.removesuffix(".json").removesuffix(".index").removesuffix(".safetensors")


def _shard_names(checkpoint: Checkpoint, old_index: str, new_index: str) -> list[str]:
    """The shards' new names, in the order of `checkpoint.files`."""
    old, new = _index_stem(old_index), _index_stem(new_index)
    shards = [_CONTENT_NAME.sub(".safetensors", shard) for shard in checkpoint.files]
    if len(set(shards)) < len(shards):
        shards = list(checkpoint.files)
    if all(shard.startswith(old) for shard in shards):
        return [new + shard.removeprefix(old) for shard in shards]
    return shards


class _Hashing:
    """A file that is written to, and the hash of all that was."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.digest = hashlib.sha256()

    def write(self, data: Buffer) -> int:
        """Write and remember."""
        self.digest.update(data)
        return self._handle.write(data)


def _content_name(shard: str, digest: str) -> str:
    """The name of a shard with this content."""
    return f"{shard.removesuffix('.safetensors')}.{digest[:_DIGITS]}.safetensors"


def _named_shards(index: Path) -> frozenset[str]:
    """The shards that an index names which is there already; none where it cannot be read."""
    named: object = None
    with contextlib.suppress(CheckpointError):
        named = read_json_file(index).get("weight_map") if index.is_file() else None
    return frozenset(map(str, named.values())) if isinstance(named, dict) else frozenset()


def _remove_old_shards(checkpoint: Checkpoint, shards: Sequence[Path], before: frozenset[str]) -> None:
    """Remove the shards of the checkpoint that was replaced, and those that a killed run has left.

    Only what has the name of one of the new shards but for its content's hash, and never what is being read.
    """
    plain = {_CONTENT_NAME.sub(".safetensors", shard.name) for shard in shards}
    kept = {shard.name for shard in shards}
    folder = shards[0].parent
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            is_ours = _CONTENT_NAME.sub(".safetensors", path.name) in plain
            if not is_ours or path.name in kept or path.is_symlink() or not path.is_file():
                continue
            is_stale = bool(_CONTENT_NAME.search(path.name)) and time.time() - path.stat().st_mtime > _STALE_SECONDS
            own = checkpoint.path is not None and any(
                _is_same_file(path, checkpoint.path.with_name(name)) for name in checkpoint.files
            )
            if not own and (path.name in before or is_stale):
                path.unlink()


def _index(checkpoint: Checkpoint, outputs: Sequence[Path], metadata: Mapping[str, str]) -> bytes:
    """The index of the written shards: the checkpoint's own, with the new names, size and texts."""
    new_names = {shard: path.name for shard, path in zip(checkpoint.files, outputs, strict=False)}
    weight_map = cast("Mapping[str, str]", checkpoint.index["weight_map"])
    about = checkpoint.index.get("metadata")
    kept = (
        {name: value for name, value in about.items() if not isinstance(value, str)} if isinstance(about, dict) else {}
    )
    size = sum(entry.nbytes for entry in checkpoint.entries.values())
    index = {
        **checkpoint.index,
        "metadata": {**kept, "total_size": size, **dict(sorted(metadata.items()))},
        "weight_map": {name: new_names[shard] for name, shard in weight_map.items()},
    }
    return (json.dumps(index, ensure_ascii=False, indent=2) + "\n").encode()


def _refuse_own_files(checkpoint: Checkpoint, outputs: Sequence[Path]) -> None:
    if checkpoint.path is None:
        return
    own = [checkpoint.path, *(checkpoint.path.with_name(name) for name in checkpoint.files)]
    for output in outputs:
        if any(_is_same_file(output, path) for path in own):
            raise CheckpointError(
                f"{output} is the checkpoint that is being read, or a part of it",
                "Name another output with -o; the input stays as it is.",
            )


def _is_same_file(output: Path, path: Path) -> bool:
    """Whether both are one existing file; one out of reach is none, and opening it will say why."""
    try:
        return output.samefile(path)
    except OSError:
        return False
