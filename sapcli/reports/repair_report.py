"""From a repair that was just done to its report: what the run has not measured for itself is measured here."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import torch
from torch import Tensor

from sapcli import __version__
from sapcli.activations.bases import Bases, Piece
from sapcli.activations.scoring import Outcomes
from sapcli.datasets.dataset import Dataset
from sapcli.repairs.alpha_search import KNEE, Choice, Evidence, Trial
from sapcli.repairs.correction import Correction
from sapcli.repairs.evidence.evaluation import Gain, Metrics, measure, paired_gain
from sapcli.repairs.evidence.suspects import rank_suspects
from sapcli.repairs.pipeline import Repair
from sapcli.repairs.session import Samples, Session
from sapcli.reports.pages import picture
from sapcli.reports.schema import (
    Attempt,
    ClassChange,
    Confusion,
    Estimate,
    Layer,
    LossHistogram,
    Measurement,
    Provenance,
    RepairReport,
    Scores,
    Search,
    Skipped,
    Suspicion,
)
from sapcli.settings import ProjectionSettings

# Two-sided 95% quantile of the normal distribution.
_Z95 = 1.959963984540054
_SHOWN_SUSPECTS = 48
_CONFUSED_CLASSES = 20
_SPECTRUM_POINTS = 33
# The bins of the losses: parts of the decades between these powers of ten.
_LOSS_DECADES = (-5, 2)
_BINS_PER_DECADE = 6


def report_repair(
    session: Session,
    repair: Repair,
    correction: Correction,
    bases: Bases,
    trusted: Samples | None,
    settings: ProjectionSettings,
    command: str,
) -> RepairReport:
    """The report of a repair; runs both models over the training images and the test images.

    Args:
        session: What was repaired, its network as `repair` left it; it is left like that again.
        repair: What was done.
        correction: By what.
        bases: Of the trusted samples.
        trusted: The trusted samples, where the run used them.
        settings: How the weights were changed.
        command: The command line, for the record.
    """
    alpha = repair.choice.alpha
    test = session.test
    test_images = None if test is None else session.images(test)
    losses_after = test_after = None
    if alpha is not None:
        stage = "scoring training images after the repair"
        # As `training_outcomes` before it, and as `sap suspects` will find them.
        losses_after = session.score(session.training_images, stage, exact=False)
        if test_images is not None:
            test_after = session.score(test_images, "testing the repaired model")
    correction.restore()
    losses_before = session.training_outcomes()
    test_before = None if test_images is None else session.score(test_images, "testing the unchanged model")
    if alpha is not None:
        correction.apply(alpha)

    measurement = None
    if test is not None and test_before is not None:
        measurement = measurement_of(test, test_before, test_after or test_before, noisy=False)
    elif session.validation is not None and repair.outcomes_before is not None:
        after = repair.outcomes_after or repair.outcomes_before
        measurement = measurement_of(session.validation, repair.outcomes_before, after, noisy=True)
    of_training = trusted is not None and trusted.images is session.training_images
    return RepairReport(
        format="sap.report/1",
        title=session.checkpoint.source,
        changed=repair.changed,
        verdict=_verdict(repair, measurement),
        search=_search(repair, settings),
        measurement=measurement,
        trusted=repair.trusted,
        batchnorm_images=repair.batchnorm_images,
        layers=tuple(_layer(name, bases.pieces[name], repair.removed.get(name, 0.0)) for name in repair.plan.projected),
        skipped_weights=tuple(Skipped(name, reason) for name, reason in repair.plan.skipped.items()),
        skipped_images=tuple(
            Skipped(images.dataset.paths[index], reason)
            for images in filter(None, (session.training_images, session.validation_images))
            for index, reason in sorted(images.unreadable.items())
        ),
        losses=loss_histogram(losses_before, losses_after, trusted.indices if of_training and trusted else ()),
        suspicion=None if losses_after is None else suspicion_of(session.training, losses_after),
        provenance=provenance_of(
            session, command, {"importance": settings.importance.value}, {"trusted set": bases.samples}
        ),
        weak_points=repair.weak_points,
    )


def wilson(share: float, samples: int) -> Estimate:
    """A share of `samples` in percent, with Wilson's 95% score interval (Wilson, JASA 1927)."""
    if not samples:
        return Estimate(100 * share, 0.0, 100.0)
    z2 = _Z95**2 / samples
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z95 / (1 + z2) * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples))
    return Estimate(100 * share, 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0))


def confusion(before: Outcomes, after: Outcomes, classes: Sequence[str]) -> Confusion:
    """Both confusion matrices; of many classes the 20 with the most errors, and the others as one column."""
    count = len(classes)
    wrong = torch.bincount(before.labels[~before.correct], minlength=count)
    wrong += torch.bincount(after.labels[~after.correct], minlength=count)
    shown = sorted(wrong.argsort(descending=True, stable=True)[:_CONFUSED_CLASSES].tolist())
    column = torch.full((count,), len(shown))
    column[shown] = torch.arange(len(shown))
    columns = len(shown) + (len(shown) < count)

    def matrix(outcomes: Outcomes) -> tuple[tuple[int, ...], ...]:
        listed = column[outcomes.labels] < len(shown)
        cells = column[outcomes.labels[listed]] * columns + column[outcomes.predictions[listed]]
        counts = torch.bincount(cells, minlength=len(shown) * columns)
        return tuple(map(tuple, counts.reshape(len(shown), columns).tolist()))

    names = tuple(classes[position] for position in shown)
    return Confusion(names, names + (("others",) if columns > len(shown) else ()), matrix(before), matrix(after))


def cumulative_energy(shares: Tensor) -> tuple[float, tuple[float, ...]]:
    """How many directions hold 99% of the energy, and what the leading ones hold.

    Args:
        shares: `s_i`, each direction's share of the energy, `[groups, k]`, descending.

    Returns:
        The number, as a mean over groups, and the energy of the first `n` directions for 33 values of `n` evenly spaced
        in its logarithm.
    """
    held = shares.cumsum(dim=1)
    needed = (held < 0.99 * held[:, -1:]).sum(dim=1) + 1
    counts = torch.logspace(0, math.log10(held.shape[1]), _SPECTRUM_POINTS, dtype=torch.float64).round().long()
    return float(needed.double().mean()), tuple(round(share, 4) for share in held.mean(dim=0)[counts - 1].tolist())


def _layer(name: str, pieces: Sequence[Piece], removed: float) -> Layer:
    """A weight; where it is used in several pieces, the spectrum is that of the widest."""
    piece = max(pieces, key=lambda piece: piece.basis.values.numel())
    directions, spectrum = cumulative_energy(piece.basis.energy_share)
    return Layer(
        name=name,
        outputs=sum(piece.view.outputs for piece in pieces),
        row_length=piece.view.row_length,
        groups=piece.view.groups,
        rows=piece.basis.rows,
        directions99=round(directions, 2),
        spectrum=spectrum,
        removed=round(removed, 4),
    )


def measurement_of(dataset: Dataset, before: Outcomes, after: Outcomes, *, noisy: bool) -> Measurement:
    """Two models on the same images.

    Args:
        dataset: The images.
        before: What the model as it was made of them.
        after: The same of the corrected one.
        noisy: Whether something was chosen on these images.
    """
    metrics_before, metrics_after = measure(before, dataset.classes), measure(after, dataset.classes)
    gain = paired_gain(before, after)
    return Measurement(
        images=metrics_before.images,
        where=str(dataset.where),
        noisy=noisy,
        before=_scores(metrics_before),
        after=_scores(metrics_after),
        gain=Estimate(gain.points, gain.low, gain.high),
        classes=tuple(
            ClassChange(first.name, first.images, first.accuracy, second.accuracy)
            for first, second in zip(metrics_before.classes, metrics_after.classes, strict=True)
        ),
        confusion=confusion(before, after, dataset.classes),
    )


def _scores(metrics: Metrics) -> Scores:
    return Scores(metrics.top1, metrics.top5, metrics.loss, metrics.ece)


def _search(repair: Repair, settings: ProjectionSettings) -> Search:
    choice = repair.choice
    # On trusted samples, the score is the part of what the unchanged model had right.
    unchanged = 1.0 if choice.evidence is Evidence.KNEE else choice.unchanged
    return Search(
        alpha=choice.alpha,
        evidence=choice.evidence,
        explanation=_explanation(repair),
        samples=choice.samples,
        attempts=tuple(_attempt(trial, trial.samples or choice.samples) for trial in choice.trials),
        unchanged=None if unchanged is None else wilson(unchanged, choice.samples),
        log_scale=not settings.importance.takes_fraction,
    )


def _attempt(trial: Trial, samples: int) -> Attempt:
    return Attempt(trial.alpha, wilson(trial.score, samples), samples)


def _explanation(repair: Repair) -> str:
    choice: Choice = repair.choice
    chosen = "None was good enough" if choice.alpha is None else f"Alpha is {choice.alpha:g}"
    if choice.evidence is Evidence.FIXED:
        return f"{chosen}, as given"
    if choice.evidence is Evidence.VALIDATION:
        among = f"{len(choice.trials)} tried on {choice.samples:,} validation images"
        looks = min((trial.samples or choice.samples for trial in choice.trials), default=0)
        if looks < choice.samples:
            best = f"the best of {len(choice.trials)} at a first look on {looks:,} validation images"
            return (
                f"{chosen}: {best} does not clearly beat the unchanged model on all {choice.samples:,}"
                if choice.alpha is None
                else f"{chosen}: {best}, and better than the unchanged model on all {choice.samples:,}"
            )
        return (
            f"{chosen}: nothing of {among} clearly beats the unchanged model"
            if choice.alpha is None
            else (f"{chosen}, the best of {among}; the unchanged model was a candidate")
        )
    if choice.alpha is None and repair.comparison is not None:
        return f"{chosen}: {repair.comparison.words}"
    return (
        f"{chosen}: the smallest at which {KNEE:.0%} of the {choice.samples:,} trusted samples that the model had right"
        " stay right, for want of validation images"
    )


def _verdict(repair: Repair, measurement: Measurement | None) -> str:
    if not repair.changed:
        return "Nothing that was tried clearly beats the model as it was, so its weights were left unchanged"
    if measurement is None:
        return (
            f"The model was repaired with alpha {repair.choice.alpha:g};"
            " there were no held-out images to measure the gain on"
        )
    gain = Gain(measurement.gain.value, measurement.gain.low, measurement.gain.high)
    places = f"from {measurement.before.top1:.2f}% to {measurement.after.top1:.2f}%"
    if gain.low > 0:
        return f"The repair raised accuracy {places}, a gain of {gain.points:.2f} points"
    if gain.high < 0:
        return f"The repair lowered accuracy {places}: do not use it"
    return f"The repair made no clear difference: accuracy went {places}"


def loss_histogram(before: Outcomes, after: Outcomes | None, trusted: Sequence[int]) -> LossHistogram:
    """The training samples by their loss, before and after, and those of them that were trusted."""
    first, last = _LOSS_DECADES
    edges = torch.logspace(first, last, (last - first) * _BINS_PER_DECADE + 1, dtype=torch.float64)

    def counts(losses: Tensor) -> tuple[int, ...]:
        inside = losses.double().clamp(float(edges[0]), float(edges[-1]))
        bins = torch.bucketize(inside, edges[1:-1], right=True)
        return tuple(torch.bincount(bins, minlength=len(edges) - 1).tolist())

    is_trusted = torch.isin(before.indices, torch.tensor(list(trusted), dtype=torch.int64))
    return LossHistogram(
        tuple(float(f"{edge:.4g}") for edge in edges.tolist()),
        counts(before.losses),
        counts(before.losses[is_trusted]),
        None if after is None else counts(after.losses),
    )


def suspicion_of(training: Dataset, outcomes: Outcomes) -> Suspicion:
    """The labels that a model contradicts, with pictures of the first of them."""
    found = rank_suspects(training, outcomes)
    pictures = tuple(picture(training.root, suspect) for suspect in found[:_SHOWN_SUSPECTS])
    return Suspicion(len(outcomes), len(found), pictures)


def provenance_of(
    session: Session, command: str, facts: Mapping[str, str] | None = None, digests: Mapping[str, str] | None = None
) -> Provenance:
    """What it takes to do again what a command did.

    Args:
        session: The checkpoint and the data.
        command: The command line.
        facts: What else decided the result, by name.
        digests: Of what else went in.
    """
    architecture, validation = session.architecture, session.validation
    return Provenance(
        command=command,
        versions={"sap": __version__, "Python": platform.python_version()}
        | {name: version(name) for name in ("torch", "timm", "torchvision")},
        facts={
            "architecture": f"{architecture.name} ({architecture.source}), {architecture.num_classes} classes",
            "preprocessing": f"{architecture.preprocessing} ({architecture.preprocessing.source})",
            "training": f"{len(session.training.paths):,} images of {session.source.folder}",
            "validation": "none" if validation is None else f"{len(validation.paths):,} images of {validation.root}",
            **(facts or {}),
            "device": str(session.settings.device),
        },
        digests={
            "checkpoint": session.checkpoint.digest,
            "training data": session.training.fingerprint,
            **(digests or {}),
        },
    )
