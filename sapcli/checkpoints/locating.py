"""From what the user typed to the file of a checkpoint: folders are looked through."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from sapcli.checkpoints.other_formats import in_folder
from sapcli.errors import CheckpointError
from sapcli.machine.json_text import read_json_file, shown

INDEX_SUFFIX = ".safetensors.index.json"
PICKLED_INDEX_SUFFIX = ".bin.index.json"
"""The endings of indices of shards, of safetensors files and of PyTorch's own."""

CACHED_REPOSITORY = re.compile(r"[/\\]models--[^/\\]+?--(?P<name>[^/\\]+)[/\\]snapshots[/\\][^/\\]+[/\\]?$")
"""How a model's folder in the cache of `huggingface_hub` is called."""

# A repository of the Hub, with a revision and a path in it, as timm and huggingface_hub write it.
_REFERENCE = re.compile(
    r"(hf-hub:|hf_hub:|hf://)(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?/?(?P<inside>[^@]*)"
)
# What a checkpoint consists of; of weights in several forms, one is enough.
_ABOUT = ["*.json", "*.md", "*.txt"]
_DOWNLOADED = ([*_ABOUT, "*.safetensors"], [*_ABOUT, "*.bin"])

# As Hugging Face's libraries call the weights, whatever lies beside them.
_USUAL_FILES = (
    *("model.safetensors", f"model{INDEX_SUFFIX}", "pytorch_model.bin", f"pytorch_model{PICKLED_INDEX_SUFFIX}"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
_ENDINGS = (INDEX_SUFFIX, PICKLED_INDEX_SUFFIX, ".safetensors", ".pt", ".pth", ".ckpt", ".pth.tar", ".pt.tar", ".bin")
# What trainers save beside the weights in files of the same endings, to go on with the training.
_TRAINING_STATE = re.compile(
    r"(optimizer|optim|scheduler|lr_scheduler|scaler|rng_states?|random_states?|sampler|dl_state_dict"
    r"|custom_checkpoint|training_args|trainer_state)([_.-].*)?\.(pt|pth|bin|pkl|ckpt|safetensors)"
)
_LISTED = 8
# Where Lightning and others keep the checkpoints of a run, in its folder.
_INNER_FOLDER = "checkpoints"


def checkpoint_in(folder: Path) -> Path:
    """The checkpoint in a folder: the one with the usual name, else the only one.

    Raises:
        CheckpointError: There are several, which are named, or none.
    """
    for name in _USUAL_FILES:
        if (folder / name).is_file():
            return folder / name
    inner = folder / _INNER_FOLDER
    for place in (folder, inner) if inner.is_dir() else (folder,):
        found = list(_checkpoints(place))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(shown(path.name) for path in found[:_LISTED]) + (", ..." if len(found) > _LISTED else "")
            raise CheckpointError(f"{place} holds {len(found)} checkpoints: {names}", "Name one of the files.")
    other = in_folder(folder)
    if other is not None:
        raise other.error(str(folder))
    raise CheckpointError(
        f"{folder} is a folder without a .safetensors file or another checkpoint", "Name a checkpoint file."
    )


def referenced_path(source: str) -> Path | None:
    """The local copy of what a reference to the Hub names, from the cache of `huggingface_hub`; None of a plain path.

    What is not in the cache is downloaded into it, unless `HF_HUB_OFFLINE` says otherwise.

    Args:
        source: `hf-hub:OWNER/NAME` or `hf://OWNER/NAME`, perhaps with `@REVISION` and a path in the repository.

    Raises:
        CheckpointError: It is not in the cache and cannot be downloaded, or `huggingface_hub` is not installed.
    """
    match = _REFERENCE.fullmatch(source)
    if match is None:
        return None
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{source} is on the Hugging Face Hub, and huggingface_hub is not installed",
            "Install it with: pip install huggingface_hub.",
        ) from error
    failure: Exception | None = None
    for patterns in (None, *_DOWNLOADED):
        try:
            copy = snapshot_download(
                match["repository"],
                revision=match["revision"],
                local_files_only=patterns is None,
                allow_patterns=patterns,
            )
        except Exception as error:  # of the network, of the Hub, or of the cache
            failure = failure or error
            if patterns is not None:
                break
            continue
        folder = Path(copy)
        if _holds_weights(folder / match["inside"]):
            return folder / match["inside"]
    raise CheckpointError(
        f"{source} is not in the cache of huggingface_hub, and could not be downloaded",
        f"Where there is a connection: hf download {match['repository']}; else name a local folder.",
    ) from failure


def _holds_weights(place: Path) -> bool:
    if not place.is_dir():
        return place.exists()
    return any((place / name).is_file() for name in _USUAL_FILES) or any(_checkpoints(place))


def _checkpoints(folder: Path) -> Iterator[Path]:
    """All files in a folder that are checkpoints by their names; shards stand behind their index."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name.endswith(_ENDINGS))
    stems = [
        name.removesuffix(ending)
        for name in names
        for ending in (INDEX_SUFFIX, PICKLED_INDEX_SUFFIX)
        if name.endswith(ending)
    ]
    for name in names:
        is_shard = not name.endswith(".json") and any(
            name.startswith(f"{stem}-") and re.search(r"-of-\d+", name) for stem in stems
        )
        if not is_shard and not _TRAINING_STATE.fullmatch(name) and not name.startswith("."):
            yield folder / name


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder has a `config.json` of transformers'; one that cannot be read is told of elsewhere."""
    with contextlib.suppress(CheckpointError):
        config = read_json_file(folder / "config.json")
        return isinstance(config.get("model_type"), str) and isinstance(config.get("architectures"), list)
    return False
