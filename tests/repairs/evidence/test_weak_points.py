"""Which weak points of a repair are named."""

from __future__ import annotations

import pytest

from sapcli.activations.bases import SampleFacts
from sapcli.repairs.alpha_search import Choice, Evidence
from sapcli.repairs.evidence.evaluation import Gain
from sapcli.repairs.evidence.weak_points import weak_points

SOLID = SampleFacts((100, 100), 0)
CLASSES = ("cat", "dog")
VALIDATED = Choice(3000.0, Evidence.VALIDATION, ())
GAIN = Gain(5.0, 2.0, 8.0)


def test_solid_evidence_has_no_weak_points() -> None:
    assert weak_points(VALIDATED, GAIN, 1000, SOLID, CLASSES) == ()


@pytest.mark.parametrize(
    ("choice", "gain", "validation", "facts", "says"),
    [
        (VALIDATED, GAIN, 199, SOLID, "only 199 validation images"),
        (VALIDATED, Gain(1.0, -0.5, 2.5), 1000, SOLID, "contains 0"),
        (Choice(3000.0, Evidence.KNEE, ()), None, 0, SOLID, "alpha is chosen on the trusted samples alone"),
        (Choice(3000.0, Evidence.FIXED, ()), None, 0, SOLID, "the gain is not measured"),
        (VALIDATED, GAIN, 1000, SampleFacts((29, 100), 0), "1 classes have less than 30 trusted samples: cat (29)"),
        (VALIDATED, GAIN, 1000, SampleFacts((100, 100), 7), "contradicts the labels of 7 of 200 trusted samples"),
    ],
)
def test_weak_points(choice: Choice, gain: Gain | None, validation: int, facts: SampleFacts, says: str) -> None:
    (point,) = weak_points(choice, gain, validation, facts, CLASSES)
    assert says in point


def test_an_unchanged_model_has_no_gain_to_doubt() -> None:
    assert weak_points(Choice(None, Evidence.VALIDATION, ()), Gain(0.0, 0.0, 0.0), 1000, SOLID, CLASSES) == ()


def test_many_classes_are_not_all_named() -> None:
    facts = SampleFacts((1,) * 100, 0)
    (point,) = weak_points(VALIDATED, GAIN, 1000, facts, tuple(f"class{number}" for number in range(100)))
    assert point.startswith("100 classes")
    assert point.endswith("class4 (1), ...")
