"""Work divided over processes, against every division there is."""

from __future__ import annotations

import itertools
import random

import pytest

from sapcli.machine.parallel.packing import assign_owners, whole_batches


def longest(costs: list[float], owners: tuple[int, ...] | list[int], world: int) -> float:
    return max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(world))


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_load_is_near_the_best(seed: int) -> None:
    generator = random.Random(seed)
    world = generator.choice([2, 3])
    costs = [float(generator.choice([27, 576, 1152, 2304]) ** 3) for _ in range(generator.randint(1, 8))]
    best = min(longest(costs, owners, world) for owners in itertools.product(range(world), repeat=len(costs)))
    found = assign_owners(costs, world)
    assert set(found) <= set(range(world))
    # Graham's bound for the longest first.
    assert longest(costs, found, world) <= best * (4 / 3 - 1 / (3 * world)) * (1 + 1e-12)


def test_equal_pieces_are_dealt_out_in_turn() -> None:
    assert assign_owners([1.0] * 5, 2) == [0, 1, 0, 1, 0]
    assert assign_owners([], 2) == []


@pytest.mark.parametrize(("count", "size", "world"), [(0, 4, 2), (1, 4, 3), (8, 4, 2), (21, 4, 2), (2000, 128, 4)])
def test_shares_of_batches_are_the_batches_of_one_process(count: int, size: int, world: int) -> None:
    batches = [list(range(count))[start : start + size] for start in range(0, count, size)]
    for rank in range(world):
        assert whole_batches(count, size, rank, world) == [place for batch in batches[rank::world] for place in batch]
