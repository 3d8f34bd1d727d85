"""What is said of a model that a projection does little for."""

from __future__ import annotations

import pytest

from sapcli.repairs.alpha_search import Choice, Evidence
from sapcli.repairs.evidence.evaluation import Metrics
from sapcli.repairs.layer_plan import LayerPlan
from sapcli.repairs.pipeline import Repair
from sapcli.reports.what_else import what_else


def repair(alpha: float | None, evidence: Evidence, top1: float | None) -> Repair:
    before = None if top1 is None else Metrics(1000, top1, 100.0, 1.0, 0.1, ())
    return Repair(Choice(alpha, evidence, ()), LayerPlan(("fc",), {}), {}, 0, 100, 1000, before)


@pytest.mark.parametrize(
    ("alpha", "evidence", "top1", "fitted", "said"),
    [
        (3000.0, Evidence.VALIDATION, 60.0, 0.99, None),
        (3000.0, Evidence.VALIDATION, 60.0, None, None),
        (3000.0, Evidence.KNEE, None, 0.61, None),
        (3000.0, Evidence.FIXED, 60.0, 0.61, None),
        (3000.0, Evidence.VALIDATION, 60.0, 0.61, "hardly memorised its labels (the model agrees with 61.0% of its"),
        (
            None,
            Evidence.VALIDATION,
            60.0,
            0.99,
            "with 99.0% of its training labels and 60.0% of the validation labels)",
        ),
        (None, Evidence.VALIDATION, 60.0, None, "no projection helps (the model agrees with 60.0% of the validation"),
        (None, Evidence.KNEE, None, None, "no projection helps: a few epochs"),
    ],
)
def test_what_is_found_and_what_else_there_is(
    alpha: float | None, evidence: Evidence, top1: float | None, fitted: float | None, said: str | None
) -> None:
    found = what_else(repair(alpha, evidence, top1), fitted)
    assert found is None if said is None else found is not None and said in found and "sap polish" in found
