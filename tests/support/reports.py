"""A report of a repair that never was, its texts as hostile as files can make them."""

from __future__ import annotations

from sapcli.repairs.alpha_search import Evidence
from sapcli.reports.schema import (
    Attempt,
    ClassChange,
    Confusion,
    Estimate,
    Layer,
    LossHistogram,
    Measurement,
    Picture,
    Provenance,
    RepairReport,
    Scores,
    Search,
    Skipped,
    Suspicion,
)

HOSTILE = "<script>alert('$x_1$')</script>"


def hostile_report(image: str | None = "data:image/jpeg;base64,AAAA") -> RepairReport:
    """Every text in it that comes from files or from the user holds markup."""
    names = (HOSTILE, "cat|dog", "`code`")
    return RepairReport(
        format="sap.report/1",
        title=HOSTILE,
        changed=True,
        verdict="The repair raised accuracy from 60.00% to 70.00%, a gain of 10.00 points",
        search=Search(
            alpha=1000.0,
            evidence=Evidence.VALIDATION,
            explanation="Alpha is 1000, the best of 2",
            samples=100,
            attempts=(Attempt(100.0, Estimate(40, 30, 50), 50), Attempt(1000.0, Estimate(70, 60, 80), 100)),
            unchanged=Estimate(60, 50, 70),
            log_scale=True,
        ),
        measurement=Measurement(
            images=100,
            where=HOSTILE,
            noisy=True,
            before=Scores(60, 90, 1.5, 0.2),
            after=Scores(70, 95, 1.0, 0.1),
            gain=Estimate(10, 5, 15),
            classes=tuple(ClassChange(name, 30, 60.0, 70.0) for name in names),
            confusion=Confusion(names, names, ((20, 5, 5),) * 3, ((25, 5, 0),) * 3),
        ),
        trusted=50,
        batchnorm_images=100,
        layers=(Layer(HOSTILE, 4, 27, 1, 1000, 5.0, (0.5, 0.9, 1.0), 0.25),),
        skipped_weights=(Skipped("other.weight", HOSTILE),),
        skipped_images=(Skipped(HOSTILE, "broken"),),
        losses=LossHistogram((0.01, 0.1, 1.0), (3, 4), (1, 0), (2, 5)),
        suspicion=Suspicion(100, 7, (Picture(f"train/{HOSTILE}.png", HOSTILE, "dog", 3.5, image),)),
        provenance=Provenance(f"sap project {HOSTILE}", {"torch": "2"}, {"architecture": HOSTILE}, {"weights": "ab"}),
    )
