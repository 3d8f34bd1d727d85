"""The windows of a weight that is used in several pieces, divided so that no element lies in two of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from sapcli.activations.rows import WeightView


@dataclass(frozen=True)
class Segment:
    """Outputs of a weight that are used together, wherever they are used.

    Attributes:
        view: Their window.
        sources: The windows of the uses that they belong to, each with the number of the matrix inside it, or `None`
            where the segment is the whole of that window and of no other one.
    """

    view: WeightView
    sources: tuple[tuple[WeightView, int | None], ...]


def disjoint_segments(views: Iterable[WeightView]) -> tuple[Segment, ...]:
    """Divide the windows of one weight's uses into segments that share no element.

    Windows may share outputs, as when a packed weight is used as a whole at one place and in part at another: such
    outputs multiply the rows of both. Empty where windows overlap in other ways: one use multiplies the columns of
    what is rows to another, or only a part of each row.
    """
    windows = list(views)
    if _disjoint(windows):
        return tuple(Segment(view, ((view, None),)) for view in windows)
    if len({(view.size[2:], view.stride[2:]) for view in windows}) > 1:
        return ()
    sources: dict[int, list[tuple[WeightView, int]]] = {}
    for view in windows:
        for group in range(view.groups):
            for output in range(view.outputs):
                start = view.offset + group * view.stride[0] + output * view.stride[1]
                sources.setdefault(start, []).append((view, group))
    together: dict[tuple[tuple[WeightView, int], ...], list[int]] = {}
    for start, of_start in sorted(sources.items()):
        together.setdefault(tuple(of_start), []).append(start)
    row = windows[0]
    segments = [
        Segment(WeightView((1, len(run), *row.size[2:]), (0, step, *row.stride[2:]), run[0]), of_segment)
        for of_segment, starts in together.items()
        for run, step in _runs(starts)
    ]
    return tuple(segments) if _disjoint([segment.view for segment in segments]) else ()


def _runs(starts: Sequence[int]) -> list[tuple[list[int], int]]:
    """Ascending positions as runs of one and the same step, and the step, 0 in a run of one."""
    step = min((after - before for before, after in pairwise(starts)), default=0)
    runs = [[starts[0]]]
    for before, after in pairwise(starts):
        if after - before == step:
            runs[-1].append(after)
        else:
            runs.append([after])
    return [(run, step if len(run) > 1 else 0) for run in runs]


def _disjoint(views: Sequence[WeightView]) -> bool:
    """Whether no element lies in two windows, each of which names its elements once."""
    if len(views) == 1:
        return True
    elements = torch.cat([view.elements().flatten() for view in views]).sort().values
    return not bool((elements.diff() == 0).any())
