"""Second moments that several processes have parts of: summed on the one that decomposes each, its basis sent to all.

What is reduced is a float64 sum, or the rows themselves where they are fewer than the columns; what is sent is the
basis, in half of the bytes. So collectives move 1.5 times the bytes of the second moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sapcli.activations.capture import Usage
from sapcli.activations.moments import Basis, SecondMoment
from sapcli.activations.rows import WeightView
from sapcli.machine.parallel.packing import assign_owners
from sapcli.machine.parallel.ranks import Ranks, device_of_tensors

MOMENTS, BASES = "second moments", "bases"
"""What collectives move, as `Ranks.moved` calls it."""


@dataclass(frozen=True)
class Part:
    """What a process has of one second moment.

    Attributes:
        count: How many rows it has seen, per group.
        is_summing: Whether it has their sum.
        kept: What rows it keeps otherwise; see `SecondMoment.kept_rows`.
    """

    count: int
    is_summing: bool
    kept: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, moment: SecondMoment) -> Part:
        """That of a second moment."""
        return cls(moment.count, moment.is_summing, moment.kept_rows)


@dataclass(frozen=True)
class Parts:
    """What a process has seen of all weights.

    Attributes:
        moments: Its second moments, by weight and window, in the order of execution.
        gains: Per weight, the parameters that gave it its size.
        usages: What else was seen of every weight.
    """

    moments: Mapping[str, Mapping[WeightView, Part]]
    gains: Mapping[str, frozenset[str | None]]
    usages: Mapping[str, Usage]


def all_windows(parts: Sequence[Parts]) -> dict[str, list[WeightView]]:
    """The windows of each weight that any process has seen, those of the first one first."""
    found: dict[str, dict[WeightView, None]] = {}
    for part in parts:
        for name, moments in part.moments.items():
            found.setdefault(name, {}).update(dict.fromkeys(moments))
    return {name: list(views) for name, views in found.items()}


def merge_usage(usages: Iterable[Usage]) -> Usage:
    """What was seen of a weight by any process."""
    merged = Usage()
    for usage in usages:
        merged.consumers |= usage.consumers
        merged.transformed_by |= usage.transformed_by
        merged.rows_depend_on_images |= usage.rows_depend_on_images
    return merged


def decomposition_cost(view: WeightView, rows: int) -> float:
    """The operations of decomposing a second moment, without their constant: `d^3` a group, or by its fewer rows."""
    side = min(view.row_length, max(rows, 1))
    return float(view.groups) * side**3


def owners_of(windows: Mapping[str, Sequence[WeightView]], parts: Sequence[Parts], world: int) -> dict[str, int]:
    """Which process decomposes each weight's second moments."""
    costs = [
        sum(decomposition_cost(view, _count(parts, name, view)) for view in views) for name, views in windows.items()
    ]
    return dict(zip(windows, assign_owners(costs, world), strict=True))


def reduce_moment(
    moment: SecondMoment,
    view: WeightView,
    parts: Sequence[Part | None],
    owner: int,
    device: torch.device,
    ranks: Ranks,
) -> None:
    """Bring the parts of one second moment together on its owner; what the others have is of no use afterwards.

    Args:
        moment: This process' part.
        view: The window.
        parts: What every process has.
        owner: The process that gets all.
        device: Where the network runs.
        ranks: The processes.
    """
    count = sum(part.count for part in parts if part is not None)
    place = device_of_tensors(device)
    if any(part is not None and part.is_summing for part in parts) or count >= view.row_length:
        total = moment.summed(device)
        moved = total.to(place)
        ranks.reduce(moved, owner, MOMENTS)
        if moved is not total and ranks.rank == owner:
            total.copy_(moved)
        if ranks.rank == owner:
            moment.take_over(count)
        return
    batches = [(*batch, rank) for rank, part in enumerate(parts) if part is not None for batch in part.kept]
    held = [sum(rows for _, _, rows, of in batches if of == rank) for rank in range(ranks.world)]
    rows = ranks.gather(moment.rows().to(place), owner, held, MOMENTS)
    if rows is None:
        return
    sizes = [[size for _, _, size, of in batches if of == rank] for rank in range(ranks.world)]
    pieces = [piece for part, cuts in zip(rows, sizes, strict=True) for piece in torch.split(part, cuts, dim=1)]
    # In the order in which a single process would have met them.
    order = sorted(range(len(pieces)), key=lambda number: batches[number][:2])
    moment.take_over(count, [pieces[number] for number in order])


Windows = tuple[tuple[WeightView, Basis], ...]


def exchange(
    mine: Mapping[str, Windows], owners: Mapping[str, int], device: torch.device, ranks: Ranks
) -> dict[str, Windows]:
    """The bases of all weights, from those that decomposed them.

    Args:
        mine: Those that this process made.
        owners: The process that made each, in the order that all agree on.
        device: Where the network runs.
        ranks: The processes.
    """
    facts = ranks.together(lambda: {name: [_facts(*window) for window in windows] for name, windows in mine.items()})
    found: dict[str, Windows] = {}
    for name, owner in owners.items():
        windows = []
        for number, (view, rows, kept, on_gpu) in enumerate(facts[owner][name]):
            place = device if on_gpu else torch.device("cpu")
            if ranks.rank == owner:
                basis = mine[name][number][1]
            else:
                vectors = torch.empty(view.groups, view.row_length, kept, dtype=torch.float32, device=place)
                basis = Basis(vectors, torch.empty(view.groups, kept, dtype=torch.float64, device=place), rows)
            for tensor in (basis.vectors, basis.values):
                _broadcast(tensor, owner, ranks)
            windows.append((view, basis))
        found[name] = tuple(windows)
    return found


def _facts(view: WeightView, basis: Basis) -> tuple[WeightView, int, int, bool]:
    return view, basis.rows, basis.values.shape[1], basis.vectors.device.type == "cuda"


def _broadcast(tensor: Tensor, owner: int, ranks: Ranks) -> None:
    if tensor.numel():
        ranks.broadcast(tensor, owner, BASES)


def _count(parts: Sequence[Parts], name: str, view: WeightView) -> int:
    found = (part.moments.get(name, {}).get(view) for part in parts)
    return sum(part.count for part in found if part is not None)
