"""From a polish that was just done to its report."""

from __future__ import annotations

from collections.abc import Mapping

from sapcli.polishing.pipeline import Polish
from sapcli.repairs.session import Session
from sapcli.reports.repair_report import loss_histogram, measurement_of, provenance_of, suspicion_of
from sapcli.reports.schema import EpochLine, Measurement, PolishReport, Skipped


def report_polish(session: Session, polish: Polish, facts: Mapping[str, str], command: str) -> PolishReport:
    """The report of a polish; runs both models over the training images and the test images.

    Args:
        session: What was polished, its network as the judgement left it; it is left like that again.
        polish: What was done.
        facts: The same in words, by name.
        command: The command line, for the record.
    """
    test = session.test
    test_images = None if test is None else session.images(test)
    losses_after = test_after = None
    if polish.changed:
        losses_after = session.score(session.training_images, "scoring training images afterwards", exact=False)
        if test_images is not None:
            test_after = session.score(test_images, "testing the model that is written")
    polish.network.put()
    losses_before = session.training_outcomes()
    test_before = None if test_images is None else session.score(test_images, "testing the unchanged model")
    polish.network.put(polish.tensors)

    measurement = None
    if test is not None and test_before is not None:
        measurement = measurement_of(test, test_before, test_after or test_before, noisy=False)
    elif session.validation is not None and polish.outcomes_before is not None:
        after = polish.outcomes_after or polish.outcomes_before
        measurement = measurement_of(session.validation, polish.outcomes_before, after, noisy=True)
    return PolishReport(
        format="sap.polish/1",
        title=session.checkpoint.source,
        changed=polish.changed,
        verdict=_verdict(polish, measurement),
        facts=dict(facts),
        epochs=tuple(EpochLine(epoch.number, epoch.loss, epoch.learning_rate) for epoch in polish.course.epochs),
        measurement=measurement,
        losses=loss_histogram(losses_before, losses_after, ()),
        suspicion=None if losses_after is None else suspicion_of(session.training, losses_after),
        skipped_images=tuple(
            Skipped(images.dataset.paths[index], reason)
            for images in filter(None, (session.training_images, session.validation_images))
            for index, reason in sorted(images.unreadable.items())
        ),
        provenance=provenance_of(session, command),
        weak_points=polish.weak_points,
    )


def _verdict(polish: Polish, measurement: Measurement | None) -> str:
    if not polish.changed:
        return "The model was left as it was: " + polish.judgement.reason
    name = polish.judgement.result.value
    if measurement is None:
        return f"The {name} model was written; there were no held-out images to measure the gain on"
    places = f"from {measurement.before.top1:.2f}% to {measurement.after.top1:.2f}%"
    if measurement.gain.low > 0:
        return f"The {name} model raised accuracy {places}, a gain of {measurement.gain.value:.2f} points"
    if measurement.gain.high < 0:
        return f"The {name} model lowered accuracy {places}: do not use it"
    return f"The {name} model made no clear difference: accuracy went {places}"
