"""Work that cannot be cut, divided over processes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def assign_owners(costs: Sequence[float], world: int) -> list[int]:
    """Which of `world` processes does each piece of work: the costliest first, each to the one with the least so far.

    The longest load is at most 4/3 of the best possible one (Graham, *Bounds on multiprocessing timing anomalies*,
    1969). Of equals the earlier piece and the lower process come first, so that every process finds the same.

    Args:
        costs: What each piece takes, in any unit.
        world: The number of processes.
    """
    loads = [(0.0, rank) for rank in range(world)]
    owners = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda piece: (-costs[piece], piece)):
        load, rank = heapq.heappop(loads)
        owners[piece] = rank
        heapq.heappush(loads, (load + costs[piece], rank))
    return owners


def whole_batches(count: int, batch_size: int, rank: int, world: int) -> list[int]:
    """The positions, of `count` in batches, of every `world`-th batch from that of number `rank` on.

    Where what is made of a batch depends on which images are in it, a share consists of the very batches that a single
    process would make.
    """
    starts = range(rank * batch_size, count, world * batch_size)
    return [position for start in starts for position in range(start, min(start + batch_size, count))]
