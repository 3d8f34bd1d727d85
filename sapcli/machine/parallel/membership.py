"""What the environment says of the processes of a run, in the words of `torchrun`; nothing here imports torch."""

from __future__ import annotations

import os

LAUNCHED = "SAP_LAUNCHED"
"""Set where `sap --devices` has started the processes, and tells itself of one that was killed."""
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", LAUNCHED)


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else otherwise


def world_size() -> int:
    """How many processes work on this run, 1 without `torchrun`."""
    return max(_number("WORLD_SIZE", 1), 1) if "RANK" in os.environ else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return _number("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine this is, from 0: the number of its GPU."""
    return _number("LOCAL_RANK", rank()) if world_size() > 1 else 0


def local_world_size() -> int:
    """How many of them run on this machine."""
    return max(_number("LOCAL_WORLD_SIZE", world_size()), 1) if world_size() > 1 else 1


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


def stand_alone() -> None:
    """Take this process, and those that it starts, out of the group: its command is not for several."""
    for name in _VARIABLES:
        os.environ.pop(name, None)
