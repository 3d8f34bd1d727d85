"""What a polish keeps in the cache: what it begins with, and where its training has come to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sapcli.checkpoints.saving import write_safetensors
from sapcli.machine.cache import Cache
from sapcli.polishing.course import Snapshot
from sapcli.polishing.targets import Targets

# A snapshot takes the place of the one before the last, so that one is whole at any moment.
_SLOTS = 2
_NUMBERS = "numbers"


@dataclass(frozen=True)
class Prepared:
    """What a training begins with.

    Attributes:
        weights: The tensors of the network that are not the checkpoint's own, by name.
        targets: What the network is to answer.
        indices: The samples to train on.
        held_out: Those that judge instead, where there are no validation images.
        flip: Whether images are mirrored.
        alpha: Of the repair; `None` where there was none, or it changed nothing.
        trusted_images: The contents of the images that the repair trusted, as text.
    """

    weights: Mapping[str, Tensor]
    targets: Targets
    indices: tuple[int, ...]
    held_out: tuple[int, ...]
    flip: bool
    alpha: float | None = None
    trusted_images: str = ""


def write_prepared(prepared: Prepared, path: Path) -> None:
    """What a training begins with, as safetensors."""
    tensors = {f"weights.{name}": tensor.contiguous() for name, tensor in prepared.weights.items()}
    tensors |= {"targets.classes": prepared.targets.classes, "targets.weights": prepared.targets.weights}
    tensors |= {name: torch.tensor(getattr(prepared, name), dtype=torch.int64) for name in ("indices", "held_out")}
    numbers = {
        "num_classes": prepared.targets.num_classes,
        "flip": prepared.flip,
        "alpha": prepared.alpha,
        "trusted_images": prepared.trusted_images,
    }
    write_safetensors(path, tensors, {_NUMBERS: json.dumps(numbers)})


def read_prepared(path: Path) -> Prepared:
    """Read what `write_prepared` wrote; any exception, if it is something else."""
    tensors, numbers = _read(path)
    return Prepared(
        weights={
            name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name.startswith("weights.")
        },
        targets=Targets(tensors["targets.classes"], tensors["targets.weights"], int(numbers["num_classes"])),
        indices=tuple(tensors["indices"].tolist()),
        held_out=tuple(tensors["held_out"].tolist()),
        flip=bool(numbers["flip"]),
        alpha=None if numbers["alpha"] is None else float(numbers["alpha"]),
        trusted_images=str(numbers["trusted_images"]),
    )


class Snapshots:
    """Where the training of a run has come to, in the cache.

    Args:
        cache: The cache.
        parts: All that the training depends on.
    """

    def __init__(self, cache: Cache, parts: Mapping[str, object]) -> None:
        self._cache = cache
        self._parts = parts
        self._number = 0

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, in the place of the one before the last."""
        self._number += 1
        kept = Snapshot(snapshot.tensors, {**snapshot.numbers, "number": self._number})
        self._cache.keep("training", self._slot(self._number), kept, _write_snapshot)

    def last(self) -> Snapshot | None:
        """The last one that is whole; `None` where there is none."""
        found = [self._cache.find("training", self._slot(slot), _read_snapshot) for slot in range(_SLOTS)]
        last = max(filter(None, found), key=lambda snapshot: int(snapshot.numbers["number"]), default=None)
        self._number = 0 if last is None else int(last.numbers["number"])
        return last

    def _slot(self, number: int) -> dict[str, object]:
        return {**self._parts, "slot": number % _SLOTS}


def _write_snapshot(snapshot: Snapshot, path: Path) -> None:
    write_safetensors(path, snapshot.tensors, {_NUMBERS: json.dumps(dict(snapshot.numbers))})


def _read_snapshot(path: Path) -> Snapshot:
    tensors, numbers = _read(path)
    return Snapshot(tensors, numbers)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        numbers = json.loads(file.metadata()[_NUMBERS])
        # Copies, since the file may be replaced while it is in use.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, numbers  # noqa: SIM118
