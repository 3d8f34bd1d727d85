"""This process becomes one of the run's, once: the group of `torch.distributed`, and the watch over it."""

from __future__ import annotations

import functools
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore  # noqa: PLC2701 - see `watch`
from torch.distributed.rendezvous import rendezvous

from sapcli.errors import DeviceError, SapError
from sapcli.machine.parallel import membership
from sapcli.machine.parallel.ranks import PATIENCE, ProcessRanks, Ranks
from sapcli.machine.parallel.watch import Watch

_SECONDS_TO_MEET = 300

_watch: Watch | None = None


def join(device: torch.device) -> Ranks:
    """The processes of this run; a single one where `torchrun` has not started it.

    Tensors of a GPU go by NCCL, all others by gloo.

    Args:
        device: What this process computes on.

    Raises:
        DeviceError: The processes do not find each other.
    """
    return Ranks() if membership.world_size() == 1 else _joined(device)


@functools.cache
def _joined(device: torch.device) -> Ranks:
    global _watch
    rank, world = membership.rank(), membership.world_size()
    try:
        store, rank, world = next(rendezvous("env://", timeout=timedelta(seconds=_SECONDS_TO_MEET)))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("sap", store),
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
        )
        own = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        _watch = Watch(own, rank, world)
        dist.barrier()
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise DeviceError(
            f"rank {rank} of {world} does not find the others: {(str(error) or type(error).__name__).splitlines()[0]}",
            "start all of them with torchrun, and look at MASTER_ADDR, MASTER_PORT and the network between machines",
        ) from error
    _watch.begin()
    return ProcessRanks(_watch.explain)


def leave(error: SapError | None = None) -> bool:
    """Tell the others, if there are any, that this process ends: with its part done, or with an error.

    Returns:
        Whether there are others.
    """
    if _watch is None:
        return False
    if error is None:
        _watch.done()
    else:
        _watch.failed(error)
    return True
