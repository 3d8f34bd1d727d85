"""Outcomes of several processes, put together again."""

from __future__ import annotations

import random

import pytest
import torch

from sapcli.activations.scoring import Outcomes
from sapcli.activations.shared.shares import in_order


def outcomes(indices: list[int]) -> Outcomes:
    """Outcomes whose every column says which image they are of."""
    column = torch.tensor(indices, dtype=torch.int64)
    return Outcomes(column, column, column.double(), column, column.float(), column, column)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 23])
def test_outcomes_come_in_the_order_that_was_asked_for(world: int, count: int) -> None:
    generator = random.Random(world * 100 + count)
    asked = generator.sample(range(1000), count)
    unreadable = set(asked[::7])
    parts = [outcomes([index for index in asked[rank::world] if index not in unreadable]) for rank in range(world)]
    found = in_order(parts, asked)
    expected = [index for index in asked if index not in unreadable]
    for column in vars(found).values():
        assert column.tolist() == expected
