"""Tests of which model is written."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sapcli.activations.scoring import Outcomes
from sapcli.polishing.judging import Result, by_signs, by_validation, is_believable


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
    # 50 images won and 40 lost: the standard error of the difference is 9.5.
    assert by_validation(outcomes(600), None, outcomes(610, first=40)).result is Result.UNCHANGED
    # 60 won and 30 lost.
    assert by_validation(outcomes(600), None, outcomes(630, first=30)).result is Result.POLISHED


@pytest.mark.parametrize(("images", "least", "most"), [(60, 0.3, 1.2), (1000, 1.4, 2.2), (20_000, 2.2, 5.0)])
def test_how_much_is_believed_follows_the_number_of_images(images: int, least: float, most: float) -> None:
    differing = round(0.12 * images)
    believed = next(
        won - (differing - won)
        for won in range(differing // 2, differing + 1)
        if is_believable(won, differing - won, images)
    )
    assert least <= believed / math.sqrt(differing) <= most


def test_how_often_the_judgement_is_wrong_on_a_thousand_images() -> None:
    """Of models with nothing to repair, and of those that gain; a tenth of the answers are others than before."""
    generator = np.random.default_rng(0)

    def passes(gain: float) -> float:
        won, lost = 0.05 + gain / 200, 0.05 - gain / 200
        draws = generator.multinomial(1000, [won, lost, 1 - won - lost], 4000)
        return float(np.mean([is_believable(int(row[0]), int(row[1]), 1000) for row in draws]))

    assert passes(-0.5) < 0.02
    assert passes(0.0) < 0.06
    assert passes(2.0) > 0.5
    assert passes(4.0) > 0.95


def test_signs_of_harm_without_validation_images() -> None:
    given, repaired = outcomes(198, 200), outcomes(190, 200)
    assert by_signs(given, repaired, outcomes(150, 200), 1.5, 1.2).result is Result.POLISHED
    assert by_signs(given, repaired, outcomes(80, 200), 1.5, 1.2).result is Result.REPAIRED
    assert by_signs(given, None, outcomes(80, 200), 1.5, 1.2).result is Result.UNCHANGED
    assert by_signs(given, repaired, outcomes(150, 200), 1.5, 1.7).result is Result.REPAIRED
    assert by_signs(given, repaired, outcomes(150, 200), 1.5, float("nan")).result is Result.REPAIRED
    assert by_signs(given, repaired, None, 0.0, 0.0).result is Result.REPAIRED
