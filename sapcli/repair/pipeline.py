"""A repair: the stages in order, from bases to a choice of alpha and what the corrected checkpoint says of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from sapcli import __version__
from sapcli.architecture import Architecture
from sapcli.bases import Bases
from sapcli.calibration import BATCHNORM_BATCH, BATCHNORM_IMAGES, FEW_BATCHNORM_IMAGES, batchnorm_layers, reestimate
from sapcli.contents import find_contents, from_text, to_text
from sapcli.correction import Correction, LayerPlan
from sapcli.errors import UsageError
from sapcli.evaluation import Gain, Metrics, measure, paired_gain
from sapcli.evidence import guessing, weak_points
from sapcli.saving import written_digest
from sapcli.scoring import Outcomes
from sapcli.search import (
    FIRST_LOOK,
    WORTH_A_FIRST_LOOK,
    Choice,
    Evidence,
    FirstLooks,
    best_on_validation,
    knee,
)
from sapcli.session import Samples, Session
from sapcli.settings import (
    BatchNorm,
    Importance,
    ProjectionSettings,
)

TRUSTED_IMAGES = "sap.trusted_images"
"""The metadata's key for the contents of all images that a checkpoint was repaired with, by this or earlier repairs."""


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        choice: Which alpha, and why; its `alpha` is `None` where the model stays as it was.
        plan: The weights that were projected and those that were not.
        removed: Per projected weight, `||W - W M|| / ||W||`.
        batchnorm_images: How many images the BatchNorm statistics were re-estimated on; 0 where they were kept.
        trusted: How many samples were trusted.
        validation: How many validation images there were.
        before: The metrics on the validation images of the model as it was; `None` without any.
        after: The same of the repaired model.
        gain: The difference, from paired outcomes.
        outcomes_before: What the model as it was made of the validation images; `None` without any.
        outcomes_after: The same of the repaired model.
        weak_points: What is to be said against the evidence.
    """

    choice: Choice
    plan: LayerPlan
    removed: Mapping[str, float]
    batchnorm_images: int
    trusted: int
    validation: int
    before: Metrics | None = None
    after: Metrics | None = None
    gain: Gain | None = None
    outcomes_before: Outcomes | None = None
    outcomes_after: Outcomes | None = None
    weak_points: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the corrected checkpoint differs from the input."""
        return self.choice.alpha is not None


def run_repair(
    session: Session, settings: ProjectionSettings, bases: Bases, trusted: Samples | None, forget: Bases | None = None
) -> tuple[Repair, Correction]:
    """Choose alpha and leave the network as the choice says: repaired, or as it was.

    Args:
        session: The checkpoint and the data.
        settings: How the weights are changed.
        bases: Of the trusted samples.
        trusted: The trusted samples, which alpha is chosen on where there is no validation data.
        forget: Bases of the forget set.

    Raises:
        UsageError: Alpha is to be searched, and there is neither validation data nor a trusted set.
    """
    stage = "choosing alpha" if settings.alpha is None else f"projecting with alpha {settings.alpha:g}"
    # One stage to those who listen: what is inside it shows only while it runs.
    with session.progress.stage(stage, None, "alphas") as advance:
        return _repair(session, settings, bases, trusted, forget, advance)


def _repair(
    session: Session,
    settings: ProjectionSettings,
    bases: Bases,
    trusted: Samples | None,
    forget: Bases | None,
    advance: Callable[[int], None],
) -> tuple[Repair, Correction]:
    plan = session.plan(bases, settings)
    correction = _correction(session, settings, bases, plan, forget)
    judges = _judges(session, bases)
    validation = session.validation_images if judges else None
    before = None if validation is None else session.validation_outcomes(validation, judges)
    outcomes: dict[float, Outcomes] = {}
    tried: set[float] = set()

    def count(alpha: float) -> None:
        if alpha not in tried and settings.alpha is None:
            advance(1)
        tried.add(alpha)

    def accuracy(alpha: float) -> float:
        assert validation is not None
        count(alpha)
        correction.apply(alpha)
        outcomes[alpha] = session.score(validation, f"validating alpha {alpha:g}", judges, exact=False)
        return outcomes[alpha].accuracy

    def right(alpha: float, begin: int, end: int) -> npt.NDArray[np.bool_]:
        assert validation is not None
        count(alpha)
        if begin == 0:
            correction.apply(alpha, FEW_BATCHNORM_IMAGES)
        stage = f"looking at alpha {alpha:g}"
        found: npt.NDArray[np.bool_] = session.score(
            validation, stage, some_judges[begin:end], exact=False
        ).correct.numpy()
        return found

    energies = settings.importance is Importance.GPM
    if settings.alpha is not None:
        choice = Choice(settings.alpha, Evidence.FIXED, ())
        if validation is not None:
            accuracy(settings.alpha)
    elif before is not None and len(before):
        some_judges = _shuffled(judges, session.settings.seed)[:FIRST_LOOK]
        choice = best_on_validation(
            accuracy,
            before.accuracy,
            energies,
            len(before),
            FirstLooks(right) if len(judges) >= WORTH_A_FIRST_LOOK else None,
        )
        choice = replace(choice, samples=len(before))
    elif trusted is not None:
        choice = _knee(session, correction, trusted, energies, count)
    else:
        raise UsageError(
            "--alpha auto needs validation images or trusted samples to choose on",
            "give --val DATA, --trusted, or a value for --alpha",
        )
    removed: Mapping[str, float] = {}
    if choice.alpha is None:
        correction.restore()
    else:
        correction.apply(choice.alpha)
        removed = correction.removed(choice.alpha)
    after = before if choice.alpha is None else outcomes.get(choice.alpha)
    classes = session.training.classes
    gain = None if before is None or after is None else paired_gain(before, after)
    repair = Repair(
        choice=choice,
        plan=plan,
        removed=removed,
        batchnorm_images=len(batchnorm_indices(session, settings)) if choice.alpha is not None else 0,
        trusted=0 if trusted is None else len(trusted.indices),
        validation=0 if before is None else len(before),
        before=None if before is None else measure(before, classes),
        after=None if after is None else measure(after, classes),
        gain=gain,
        outcomes_before=before,
        outcomes_after=after,
        weak_points=(
            *guessing(1.0 if before is None else before.accuracy, len(classes)),
            *weak_points(choice, gain, 0 if before is None else len(before), bases.facts, classes),
        ),
    )
    return repair, correction


def _judges(session: Session, bases: Bases) -> Sequence[int]:
    """The validation images that are not, by their content, among the samples that the bases were made of."""
    if session.validation is None:
        return ()
    trusted = find_contents(session.validation, from_text(bases.facts.contents))
    if trusted:
        session.progress.note(f"{len(trusted)} validation images are trusted samples too and do not judge")
    return [index for index in range(len(session.validation.paths)) if index not in trusted]


def _correction(
    session: Session, settings: ProjectionSettings, bases: Bases, plan: LayerPlan, forget: Bases | None
) -> Correction:
    indices = batchnorm_indices(session, settings)
    batch_size = BATCHNORM_BATCH

    def calibrate(first: int | None) -> None:
        nonlocal batch_size
        batch_size = reestimate(
            session.classifier,
            session.training_images,
            indices[:first],
            session.progress,
            "re-estimating BatchNorm",
            batch_size,
        )

    return Correction(
        session.classifier,
        session.checkpoint,
        bases,
        plan,
        settings.importance,
        forget=forget,
        forget_mode=settings.forget_mode,
        calibrate=calibrate if indices else None,
    )


def batchnorm_indices(session: Session, settings: ProjectionSettings) -> list[int]:
    """The training images that BatchNorm is re-estimated on; none where it is kept or there is none.

    They are shuffled: in the order of the folders each batch would hold one class, whose own statistics are narrower
    than those of all (a quarter of a nat more test loss on noisy CIFAR-10).
    """
    if settings.batchnorm is BatchNorm.KEEP or not batchnorm_layers(session.classifier.module):
        return []
    return _shuffled(range(len(session.training.paths)), session.settings.seed)[:BATCHNORM_IMAGES]


def _shuffled(indices: Sequence[int], seed: int) -> list[int]:
    """The indices in a random order."""
    generator = torch.Generator().manual_seed(seed)
    return [indices[position] for position in torch.randperm(len(indices), generator=generator).tolist()]


def _knee(
    session: Session, correction: Correction, trusted: Samples, energies: bool, count: Callable[[float], None]
) -> Choice:
    before = session.score(trusted.images, "scoring the trusted samples", trusted.indices, exact=False)
    right = before.indices[before.correct].tolist()
    if not right:
        return Choice(None, Evidence.KNEE, ())

    def kept_right(alpha: float) -> float:
        count(alpha)
        correction.apply(alpha)
        return session.score(trusted.images, f"trying alpha {alpha:g}", right, exact=False).accuracy

    return replace(knee(kept_right, energies), samples=len(right))


def repair_metadata(
    session: Session,
    repair: Repair,
    correction: Correction,
    settings: ProjectionSettings,
    bases: Bases,
    forget: Bases | None = None,
) -> dict[str, str]:
    """The corrected checkpoint's metadata: the input's own, and how it came to be under `sap.*` keys."""
    choice = repair.choice
    trusted_images = from_text(bases.facts.contents)
    changed = correction.changed_entries() if repair.changed else {}
    projected = {entry: name for entry, name in changed.items() if name in {*repair.plan.projected, *bases.gains}}
    replacements = {} if choice.alpha is None else correction.replacements(choice.alpha)
    described = {
        "sap.version": __version__,
        "sap.torch": torch.__version__,
        "sap.precision": str(session.fast_dtype or torch.float32).removeprefix("torch."),
        "sap.input": session.checkpoint.digest,
        "sap.output": written_digest(session.checkpoint, replacements),
        "sap.repaired": "true" if repair.changed else "false",
        "sap.alpha": "" if choice.alpha is None else f"{choice.alpha:.12g}",
        "sap.evidence": choice.evidence.value,
        "sap.importance": settings.importance.value,
        "sap.trusted": bases.samples,
        TRUSTED_IMAGES: to_text(from_text(session.checkpoint.metadata.get(TRUSTED_IMAGES, "")) | trusted_images),
        "sap.projected": json.dumps(projected),
        "sap.batchnorm": json.dumps(sorted(changed.keys() - projected.keys())),
        "sap.batchnorm_images": str(repair.batchnorm_images),
        "sap.validation_images": str(repair.validation),
    }
    if repair.gain is not None:
        gain = repair.gain
        described["sap.gain"] = json.dumps({"points": gain.points, "interval": [gain.low, gain.high]})
    if forget is not None:
        described |= {"sap.forget": forget.samples, "sap.forget_mode": settings.forget_mode.value}
    kept = {key: text for key, text in session.checkpoint.metadata.items() if not key.startswith("sap.")}
    return kept | _with_class_names(session).to_metadata() | described


def _with_class_names(session: Session) -> Architecture:
    """The architecture with the classes' names as they were matched with the data, for whatever comes after.

    Numbers in their own order tell nothing.
    """
    names = session.training.classes
    if session.architecture.label_names is not None or names == tuple(map(str, range(len(names)))):
        return session.architecture
    return replace(session.architecture, label_names=names)
