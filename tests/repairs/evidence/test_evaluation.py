"""Tests of metrics and of the comparison of two classifiers, against counting by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.samples import outcomes_of

from sapcli.repairs.evidence.evaluation import Gain, expected_calibration_error, measure, paired_gain


def test_metrics_by_hand():
    outcomes = outcomes_of([0, 0, 1, 1, 1], [0, 1, 1, 1, 0])
    outcomes = replace(outcomes, losses=torch.tensor([0.1, 2.0, 0.2, 0.3, 1.4]), ranks=torch.tensor([0, 4, 0, 0, 5]))
    metrics = measure(outcomes, ["cat", "dog", "owl"])
    assert metrics.images == 5
    assert metrics.top1 == pytest.approx(60)
    assert metrics.top5 == pytest.approx(80)
    assert metrics.loss == pytest.approx(0.8)
    found = [(row.name, row.images, row.accuracy) for row in metrics.classes]
    assert found == [("cat", 2, 50.0), ("dog", 3, pytest.approx(200 / 3)), ("owl", 0, None)]


def test_metrics_of_nothing():
    metrics = measure(outcomes_of([], []), ["cat"])
    assert metrics.images == 0
    assert all(math.isnan(value) for value in (metrics.top1, metrics.top5, metrics.loss, metrics.ece))


def test_calibration_error_by_hand():
    # Two bins: 3 samples of confidence 0.9 of which 2 are right, 1 of confidence 0.5 that is wrong.
    confidences = torch.tensor([0.9, 0.9, 0.9, 0.5])
    correct = torch.tensor([True, True, False, False])
    expected = 3 / 4 * abs(2 / 3 - 0.9) + 1 / 4 * 0.5
    assert expected_calibration_error(confidences, correct) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("confidence", [1 / 15, 1.0, 1e-9, 0.0])
def test_confidences_at_the_bins_borders(confidence):
    found = expected_calibration_error(torch.tensor([confidence]), torch.tensor([False]))
    assert found == pytest.approx(confidence, abs=1e-6)


def in_pairs(both: int, won: int, lost: int, neither: int) -> Gain:
    """The gain where so many samples are right in both models, only after, only before, and in none."""
    right_before = [1] * both + [0] * won + [1] * lost + [0] * neither
    right_after = [1] * both + [1] * won + [0] * lost + [0] * neither
    # The label is always 1.
    labels = [1] * len(right_before)
    return paired_gain(outcomes_of(labels, right_before), outcomes_of(labels, right_after))


@pytest.mark.parametrize(
    ("cells", "points", "interval"),
    [
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, 2017, chapter 8: complete response
        # before and after consolidation therapy (Cavo et al. 2012), with the adjustment of Agresti and Min.
        ((59, 6, 16, 80), -6.21, (-11.82, -0.45)),
        # The example of `diffpropci.mp` in R's PropCIs, by the authors of the interval.
        ((100, 20, 40, 0), -12.5, (-21.6017, -3.0896)),
        # Agresti, Categorical Data Analysis, section 10.1: the approval of a prime minister; here all intervals agree.
        ((794, 86, 150, 570), -4.0, (-5.87, -2.1)),
    ],
)
def test_intervals_of_the_literature(cells, points, interval):
    gain = in_pairs(*cells)
    digits = 2 if interval[0] != round(interval[0], 2) else 1
    assert gain.points == pytest.approx(points, abs=0.006)
    assert (gain.low, gain.high) == (
        pytest.approx(interval[0], abs=0.06 if digits == 1 else 1e-3),
        pytest.approx(interval[1], abs=0.06 if digits == 1 else 1e-3),
    )


def test_the_interval_is_near_newcombes():
    # The same table by Newcombe's method 10 (Statistics in Medicine 17, 1998): -0.1186 to -0.0046.
    gain = in_pairs(59, 6, 16, 80)
    assert (gain.low, gain.high) == (pytest.approx(-11.86, abs=0.05), pytest.approx(-0.46, abs=0.05))


def test_intervals_hold_the_gain_and_stay_within_their_range():
    for count in (1, 2, 3, 7, 40):
        for won in range(count + 1):
            for lost in range(count - won + 1):
                gain = in_pairs(0, won, lost, count - won - lost)
                assert gain.points == pytest.approx(100 * (won - lost) / count)
                assert -100 <= gain.low <= gain.points <= gain.high <= 100
                assert gain.low < gain.high


@pytest.mark.parametrize(("won", "lost"), [(0.002, 0.002), (0.05, 0.01), (0.2, 0.1), (0.0, 0.03)])
@pytest.mark.parametrize("count", [20, 60])
def test_intervals_cover_the_true_gain_as_often_as_they_say(won, lost, count):
    """The chance of all tables of so many samples in which the interval holds the truth."""
    covered = 0.0
    for first in range(count + 1):
        for second in range(count - first + 1):
            rest = count - first - second
            ways = math.comb(count, first) * math.comb(count - first, second)
            chance = ways * won**first * lost**second * (1 - won - lost) ** rest
            if chance > 1e-12:
                gain = in_pairs(0, first, second, rest)
                covered += chance * (gain.low <= 100 * (won - lost) <= gain.high)
    assert covered > 0.93


def test_two_models_that_agree_on_few_images_may_still_differ():
    few, many = in_pairs(5, 0, 0, 5), in_pairs(500, 0, 0, 500)
    assert few.points == many.points == 0
    # By hand: 1.96 sqrt(1) / (n + 2).
    assert (few.low, few.high) == (pytest.approx(-16.333, abs=1e-2), pytest.approx(16.333, abs=1e-2))
    assert (many.low, many.high) == (pytest.approx(-0.1956, abs=1e-3), pytest.approx(0.1956, abs=1e-3))


def test_only_samples_that_both_have_are_compared():
    before = outcomes_of([0, 0, 0], [1, 1, 0], indices=[1, 5, 7])
    after = outcomes_of([0, 0, 0], [0, 0, 1], indices=[5, 7, 9])
    assert paired_gain(before, after).points == pytest.approx(50)


def test_no_samples_in_common():
    gain = paired_gain(outcomes_of([0], [0], indices=[1]), outcomes_of([0], [0], indices=[2]))
    assert math.isnan(gain.points)


@pytest.mark.parametrize(
    ("ranks", "ties", "expected"),
    [
        ([0, 4, 5, 9], [1, 1, 1, 1], 50.0),  # nobody is tied
        ([0] * 4, [10] * 4, 50.0),  # ten equal classes
        ([3], [4], 50.0),  # two places for four
        ([4, 4], [6, 1], 100 * (1 / 6 + 1) / 2),
        ([5, 8], [3, 2], 0.0),
        ([0, 2], [3, 3], 100.0),
    ],
)
def test_ties_count_by_their_chance_to_be_among_the_five(ranks, ties, expected):
    outcomes = outcomes_of([0] * len(ranks), [0] * len(ranks))
    outcomes = replace(outcomes, ranks=torch.tensor(ranks), ties=torch.tensor(ties))
    assert measure(outcomes, ["cat"]).top5 == pytest.approx(expected)
