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
        top1: Percent whose label is the most probable class.
        top5: Percent whose label is among the five most probable, or all of them where there are fewer.
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
    """A difference in top-1 accuracy, in percentage points, with its 95% interval from paired outcomes."""

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
        top5=100 * float((outcomes.ranks < 5).double().mean()),
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


def paired_gain(before: Outcomes, after: Outcomes) -> Gain:
    """The gain in accuracy from `before` to `after`, over the samples that both have.

    The interval is Wald's for a difference of paired proportions: the standard error is that of the mean of the
    per-sample differences, which are -1, 0 or 1.
    """
    shared_before = torch.isin(before.indices, after.indices)
    shared_after = torch.isin(after.indices, before.indices)
    difference = after.correct[shared_after].double() - before.correct[shared_before].double()
    if not len(difference):
        return Gain(math.nan, math.nan, math.nan)
    mean = float(difference.mean())
    error = _Z95 * math.sqrt(float(difference.var(correction=0)) / len(difference))
    return Gain(100 * mean, 100 * (mean - error), 100 * (mean + error))
