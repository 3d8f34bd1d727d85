"""Candidates for the trusted set, counted class by class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sapcli.machine.progress import SilentProgress
from sapcli.repairs.candidates import candidates_of, draw_candidates, enough_candidates
from sapcli.settings import SelectionSettings


def dataset(*sizes: int) -> Any:
    """So many images of each class, mixed."""
    labels = [label for number in range(max(sizes)) for label, size in enumerate(sizes) if number < size]
    return SimpleNamespace(
        labels=tuple(labels), classes=tuple(map(str, range(len(sizes)))), paths=("",) * len(labels), root=Path()
    )


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [((100, 100, 100), 60, (20, 20, 20)), ((100, 5, 100), 60, (28, 5, 27)), ((30, 30), 7, (4, 3))],
)
def test_as_many_of_each_class(sizes: tuple[int, ...], count: int, expected: tuple[int, ...]) -> None:
    data = dataset(*sizes)
    chosen = draw_candidates(data, count, 0)
    assert chosen == sorted(set(chosen))
    counted = Counter(data.labels[index] for index in chosen)
    assert tuple(counted[label] for label in range(len(sizes))) == expected


def test_the_draw_follows_the_seed_alone() -> None:
    data = dataset(200, 200)
    assert draw_candidates(data, 50, 3) == draw_candidates(data, 50, 3)
    assert draw_candidates(data, 50, 3) != draw_candidates(data, 50, 4)
    # Every image has its chance: of 100 draws of a quarter, hardly one is never drawn.
    drawn = {index for seed in range(100) for index in draw_candidates(data, 100, seed)}
    assert drawn == set(range(400))


def test_small_data_are_scored_whole() -> None:
    assert enough_candidates(1000, 10) == 20_000
    assert enough_candidates(100, 1000) == 50_000
    data = dataset(50, 50)
    settings = SelectionSettings(5)
    assert candidates_of(data, settings, 0, SilentProgress()) == range(100)
    assert len(candidates_of(dataset(80, 80), settings, 0, SilentProgress())) == 100
    assert len(candidates_of(data, SelectionSettings(5, candidates=10), 0, SilentProgress())) == 10
