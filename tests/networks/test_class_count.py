"""Tests of the number of classes that shapes tell."""

from __future__ import annotations

import pytest

from sapcli.networks.class_count import PROBED_COUNTS, ClassDimension, Shapes, at_count, class_dimensions, count_classes


def shapes_at(classes: int) -> dict[str, tuple[int, ...]]:
    return {
        "conv.weight": (8, 3, 3, 3),
        "head.weight": (classes, 8),
        "head.bias": (classes,),
        "tokens": (1, 3 * classes + 1, 8),
    }


DIMENSIONS = class_dimensions(*(shapes_at(count) for count in PROBED_COUNTS))


def test_the_dimensions_that_follow_the_classes_are_found() -> None:
    assert (
        ClassDimension("head.bias", 0, 1, 0),
        ClassDimension("head.weight", 0, 1, 0),
        ClassDimension("tokens", 1, 3, 1),
    ) == DIMENSIONS
    assert class_dimensions({"a": (1, 2)}, {"a": (1, 2), "b": (3,)}) == ()


@pytest.mark.parametrize(
    ("found", "count"),
    [
        (shapes_at(1), 1),
        (shapes_at(1000), 1000),
        ({"head.bias": (5,)}, 5),
        ({}, None),
        ({"head.bias": ()}, None),
        ({"tokens": (1, 9, 8)}, None),
        ({**shapes_at(5), "head.bias": (6,)}, None),
        ({"head.weight": (0, 8)}, None),
    ],
)
def test_the_count_is_what_all_shapes_agree_on(found: Shapes, count: int | None) -> None:
    assert count_classes(DIMENSIONS, found) == count


def test_shapes_are_known_at_any_count() -> None:
    assert at_count(shapes_at(PROBED_COUNTS[0]), DIMENSIONS, 41) == shapes_at(41)
