"""Tests of metrics and of the comparison of two classifiers, against counting by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.samples import outcomes_of

from sapcli.repairs.evidence.evaluation import expected_calibration_error, measure, paired_gain


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


def test_a_gain_with_its_interval():
    before = outcomes_of([0] * 100, [1] * 50 + [0] * 50)
    after = outcomes_of([0] * 100, [0] * 20 + [1] * 30 + [0] * 40 + [1] * 10)
    gain = paired_gain(before, after)
    assert gain.points == pytest.approx(10)
    # 30 samples changed, 20 up and 10 down: the variance of the mean difference is (0.3 - 0.1^2) / 100.
    half = 100 * 1.959964 * math.sqrt((0.3 - 0.01) / 100)
    assert (gain.low, gain.high) == (pytest.approx(10 - half, abs=1e-3), pytest.approx(10 + half, abs=1e-3))


def test_only_samples_that_both_have_are_compared():
    before = outcomes_of([0, 0, 0], [1, 1, 0], indices=[1, 5, 7])
    after = outcomes_of([0, 0, 0], [0, 0, 1], indices=[5, 7, 9])
    assert paired_gain(before, after).points == pytest.approx(50)


def test_no_samples_in_common():
    gain = paired_gain(outcomes_of([0], [0], indices=[1]), outcomes_of([0], [0], indices=[2]))
    assert math.isnan(gain.points)


def test_equal_models_have_no_gain():
    same = outcomes_of([0, 1, 1], [0, 1, 0])
    gain = paired_gain(same, same)
    assert (gain.points, gain.low, gain.high) == (0, 0, 0)
