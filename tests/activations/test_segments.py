"""Tests of dividing the windows of a weight that is used in several pieces."""

from __future__ import annotations

import torch

from sapcli.activations.rows import WeightView
from sapcli.activations.segments import Segment, disjoint_segments

# Windows into a weight of 8 outputs and 6 inputs.
WHOLE = WeightView((1, 8, 6), (0, 6, 1))
FIRST = WeightView((1, 4, 6), (0, 6, 1))
SECOND = WeightView((1, 4, 6), (0, 6, 1), 24)
MIDDLE = WeightView((1, 3, 6), (0, 6, 1), 12)
GROUPED = WeightView((2, 4, 6), (24, 6, 1))
EVEN = WeightView((1, 4, 6), (0, 12, 1))
LEFT = WeightView((1, 8, 3), (0, 6, 1))
RIGHT = WeightView((1, 8, 3), (0, 6, 1), 3)
TRANSPOSED = WeightView((1, 6, 8), (0, 1, 6))


def outputs(segment: Segment) -> list[int]:
    """The outputs of the weight that a segment holds."""
    elements = segment.view.elements()
    assert torch.equal(elements[0] - elements[0, :, :1], torch.arange(6).expand(elements.shape[1], 6))
    return (elements[0, :, 0] // 6).tolist()


def test_windows_apart_stay_as_they_are():
    for views in ([WHOLE], [GROUPED], [FIRST, SECOND], [LEFT, RIGHT]):
        assert disjoint_segments(views) == tuple(Segment(view, ((view, None),)) for view in views)


def test_a_part_inside_the_whole():
    segments = disjoint_segments([WHOLE, MIDDLE])
    assert [(outputs(segment), segment.sources) for segment in segments] == [
        ([0, 1], ((WHOLE, 0),)),
        ([5, 6, 7], ((WHOLE, 0),)),
        ([2, 3, 4], ((WHOLE, 0), (MIDDLE, 0))),
    ]


def test_groups_inside_the_whole():
    segments = disjoint_segments([WHOLE, GROUPED])
    assert [(outputs(segment), segment.sources) for segment in segments] == [
        ([0, 1, 2, 3], ((WHOLE, 0), (GROUPED, 0))),
        ([4, 5, 6, 7], ((WHOLE, 0), (GROUPED, 1))),
    ]


def test_every_other_output():
    segments = disjoint_segments([FIRST, EVEN])
    assert [outputs(segment) for segment in segments] == [[0, 2], [1, 3], [4, 6]]


def test_rows_that_only_meet_in_part_cannot_be_divided():
    assert disjoint_segments([WHOLE, LEFT]) == ()
    assert disjoint_segments([WHOLE, TRANSPOSED]) == ()
    # The same form of rows, but shifted against each other.
    assert disjoint_segments([FIRST, WeightView((1, 4, 6), (0, 6, 1), 3)]) == ()
