"""Random orders that depend on nothing but the seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def shuffled(indices: Sequence[int], seed: int) -> list[int]:
    """The indices in a random order."""
    generator = torch.Generator().manual_seed(seed)
    return [indices[position] for position in torch.randperm(len(indices), generator=generator).tolist()]
