"""Metrics of a classifier on a dataset, and the comparison of two classifiers on the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sapcli.activations.scoring import Outcomes

# Two-sided 95% quantile of the normal distribution.
_Z95 = 1.959963984540054
_CALIBRATION_BINS = 15
# What makes a gain convincing: standard errors, the gain that must not be missed, and how rarely it may be (one-sided).
_STANDARD_ERRORS = 1.0
_WORTH_HAVING = 0.02
_ONE_IN_TWENTY = 1.6448536269514722


@dataclass(frozen=True)
class ClassAccuracy:
    """How one class fared: `accuracy` in percent, `None` for a class without images."""

    name: str
    images: int
    accuracy: float | None


@dataclass(frozen=True)
class Metrics:
    """A classifier on a dataset.

    Attributes:
        images: Number of readable images.
        top1: Percent whose label is the prediction: the most probable class, of equally probable ones the first.
        top5: Percent whose label is among the five most probable, or all of them where there are fewer; a label that is
            exactly as probable as others counts by its chance to be among the five when these stand in random order.
        loss: Mean cross-entropy in nats.
        ece: Expected calibration error, in [0, 1]: 15 bins of equal width (Guo et al., ICML 2017).
        classes: Accuracy of each class.
    """

    images: int
    top1: float
    top5: float
    loss: float
    ece: float
    classes: tuple[ClassAccuracy, ...]


@dataclass(frozen=True)
class Gain:
    """A difference in top-1 accuracy, in percentage points, with its 95% interval from paired outcomes.

    Attributes:
        points: The plain difference.
        low: Where the interval begins, -100 or above.
        high: Where it ends, 100 or below.
    """

    points: float
    low: float
    high: float


def measure(outcomes: Outcomes, classes: Sequence[str]) -> Metrics:
    """The metrics of `outcomes`; of no outcomes, all NaN."""
    correct = outcomes.correct.double()
    per_class = []
    for position, name in enumerate(classes):
        members = correct[outcomes.labels == position]
        per_class.append(ClassAccuracy(name, len(members), 100 * float(members.mean()) if len(members) else None))
    return Metrics(
        images=len(outcomes),
        top1=100 * float(correct.mean()),
        top5=100 * float(((5 - outcomes.ranks).double() / outcomes.ties).clamp(0, 1).mean()),
        loss=float(outcomes.losses.double().mean()),
        ece=expected_calibration_error(outcomes.confidences, outcomes.correct),
        classes=tuple(per_class),
    )


def expected_calibration_error(confidences: Tensor, correct: Tensor) -> float:
    """`sum_b n_b / n |accuracy_b - confidence_b|` over bins of equal width (Guo et al., ICML 2017, eq. 3).

    Args:
        confidences: Probability of the predicted class, `[n]`.
        correct: Whether the prediction is right, bool `[n]`.
    """
    if not len(confidences):
        return math.nan
    bins = (confidences.double() * _CALIBRATION_BINS).ceil().long().clamp(1, _CALIBRATION_BINS) - 1
    gaps = torch.zeros(_CALIBRATION_BINS, dtype=torch.float64)
    gaps.index_add_(0, bins, correct.double() - confidences.double())
    return float(gaps.abs().sum() / len(confidences))


def convincing_gain(won: int, lost: int, images: int) -> float:
    """The least gain in accuracy, in [-1, 1], that is believed of a candidate compared with another on the same images.

    One standard error of the paired difference, so that chance alone seldom passes; but where the images are so few
    that this would turn away more than one in twenty candidates that are two points better, less, down to a loss that
    such a candidate may show by chance.

    Args:
        won: How many images the candidate alone has right.
        lost: How many the other one alone has right.
        images: How many there are.
    """
    if not images:
        return 0.0
    error = math.sqrt(won + lost) / images
    return min(_STANDARD_ERRORS * error, _WORTH_HAVING - _ONE_IN_TWENTY * error)


def discordant(before: Outcomes, after: Outcomes) -> tuple[int, int, int]:
    """How many samples only `after` has right, how many only `before`, and how many both have seen."""
    shared_before = torch.isin(before.indices, after.indices)
    shared_after = torch.isin(after.indices, before.indices)
    right_before, right_after = before.correct[shared_before], after.correct[shared_after]
    won, lost = int((right_after & ~right_before).sum()), int((right_before & ~right_after).sum())
    return won, lost, len(right_after)


def paired_gain(before: Outcomes, after: Outcomes) -> Gain:
    """The gain in accuracy from `before` to `after`, over the samples that both have.

    The interval is the adjusted Wald interval for a difference of matched proportions: Wald's after half a sample is
    added to each of the four cells, cut where it leaves the range (Agresti and Min, Statistics in Medicine 24, 2005,
    "Wald+2"). Without any sample in which the two differ it still tells how few there are.
    """
    won, lost, count = discordant(before, after)
    if not count:
        return Gain(math.nan, math.nan, math.nan)
    adjusted = count + 2
    middle = (won - lost) / adjusted
    error = _Z95 * math.sqrt((won + lost + 1) / adjusted - middle**2) / math.sqrt(adjusted)
    return Gain(100 * (won - lost) / count, 100 * max(middle - error, -1.0), 100 * min(middle + error, 1.0))
