"""The same numbers from the same seed, in whichever process, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic

from sapcli.machine.progress import Progress

_NO_SUCH_WAY = "does not have a deterministic implementation"


def seed_of(*numbers: int) -> int:
    """One seed of several numbers, another for each other of them (a linear congruence, with Knuth's multiplier)."""
    found = 0
    for number in numbers:
        found = (found + number + 1) * 6364136223846793005 % (1 << 63)
    return found


def seed_all(seed: int) -> None:
    """Seed the generators that PyTorch's functions draw from, and NumPy's, from which timm's mixup does."""
    torch.manual_seed(seed)
    np.random.seed(seed >> 31)


@contextlib.contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Draw from the global generators, those of the device as well, and leave them as they were."""
    before = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(before)


@contextlib.contextmanager
def deterministic(progress: Progress) -> Iterator[None]:
    """The same sums in the same order every time, where an operator knows such a way; where one does not, say so."""
    filling: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        filling.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It is for finding faults, and takes time.
    filling.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    try:
        with _telling(progress):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        filling.fill_uninitialized_memory = before[2]
        torch.backends.cudnn.benchmark = before[3]


@contextlib.contextmanager
def _telling(progress: Progress) -> Iterator[None]:
    """Say in a line what PyTorch warns of in five: which operators may sum otherwise the next time."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message: Any, *details: Any, **named: Any) -> None:
            name, found, _ = str(message).partition(_NO_SUCH_WAY)
            if found:
                progress.note(f"{name.strip()} may round otherwise in another run: the last digits are not the same")
            else:
                show(message, *details, **named)

        warnings.showwarning = tell
        yield
