"""Several processes that train together, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from sapcli.errors import UsageError

Value = TypeVar("Value")

# The others wait while the first one repairs the model.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, of which this is one; the first of them speaks and writes.

    Attributes:
        rank: The number of this one, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one speaks and writes."""
        return self.rank == 0

    def share(self, tensor: Tensor) -> Tensor:
        """The tensor of the first process, in all of them; in place."""
        if self.count > 1:
            distributed.broadcast(tensor, 0)
        return tensor

    def share_object(self, value: Value) -> Value:
        """What the first process has, in all of them."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, 0)
        return box[0]

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of the tensors of all processes, in all of them; in place."""
        if self.count > 1:
            distributed.all_reduce(tensor)
            tensor /= self.count
        return tensor


def are_several() -> bool:
    """Whether `torchrun` has started this process beside others."""
    return os.environ.get("WORLD_SIZE", "1").isdigit() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(name: str) -> str:
    """The device of this process: of several GPUs, each process has its own."""
    if not are_several() or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """This process among those that `torchrun` has started, or alone.

    Args:
        device: Where the network runs.

    Raises:
        UsageError: They cannot find each other.
    """
    if not are_several():
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"the processes cannot find each other: {error}", "start them with torchrun") from error
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
