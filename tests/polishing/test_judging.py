"""Tests of which model is written."""

from __future__ import annotations

import pytest
import torch

from sapcli.activations.scoring import Outcomes
from sapcli.polishing.judging import Result, by_signs, by_validation


def outcomes(right: int, of: int = 1000, first: int = 0) -> Outcomes:
    """Images of which those from number `first` on are right, so many."""
    labels = torch.zeros(of, dtype=torch.int64)
    predictions = torch.ones(of, dtype=torch.int64)
    predictions[first : first + right] = 0
    numbers = torch.zeros(of)
    return Outcomes(torch.arange(of), labels, numbers.double(), predictions, numbers, labels, labels)


@pytest.mark.parametrize(
    ("given", "repaired", "polished", "expected"),
    [
        (600, 680, 760, Result.POLISHED),
        (600, 680, 680, Result.POLISHED),
        (600, 680, 650, Result.REPAIRED),
        (600, 680, None, Result.REPAIRED),
        (600, None, 580, Result.UNCHANGED),
        (600, 600, 600, Result.UNCHANGED),
        (600, None, None, Result.UNCHANGED),
        (600, 590, None, Result.UNCHANGED),
    ],
)
def test_the_best_on_validation_images(
    given: int, repaired: int | None, polished: int | None, expected: Result
) -> None:
    others = (None if right is None else outcomes(right) for right in (repaired, polished))
    assert by_validation(outcomes(given), *others).result is expected


def test_a_gain_that_may_be_chance_changes_nothing() -> None:
    # 43 images won and 40 lost: with a standard error of 9.1, two points may show as half a point.
    assert by_validation(outcomes(600), None, outcomes(603, first=40)).result is Result.UNCHANGED
    # 50 won and 40 lost.
    assert by_validation(outcomes(600), None, outcomes(610, first=40)).result is Result.POLISHED


def test_signs_of_harm_without_validation_images() -> None:
    given, repaired = outcomes(198, 200), outcomes(190, 200)
    assert by_signs(given, repaired, outcomes(150, 200), 1.5, 1.2).result is Result.POLISHED
    assert by_signs(given, repaired, outcomes(80, 200), 1.5, 1.2).result is Result.REPAIRED
    assert by_signs(given, None, outcomes(80, 200), 1.5, 1.2).result is Result.UNCHANGED
    assert by_signs(given, repaired, outcomes(150, 200), 1.5, 1.7).result is Result.REPAIRED
    assert by_signs(given, repaired, outcomes(150, 200), 1.5, float("nan")).result is Result.REPAIRED
    assert by_signs(given, repaired, None, 0.0, 0.0).result is Result.REPAIRED
