"""A repair: the stages in order, from bases to a choice of alpha and what the corrected checkpoint says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sapcli.activations.bases import Bases
from sapcli.activations.scoring import Outcomes
from sapcli.datasets.contents import find_contents, from_text
from sapcli.errors import UsageError
from sapcli.repairs.alpha_search import (
    Choice,
    Evidence,
)
from sapcli.repairs.batchnorm import (
    BATCHNORM_BATCH,
    BATCHNORM_IMAGES,
    Reestimation,
    may_reestimate,
    reestimate,
)
from sapcli.repairs.correction import Correction
from sapcli.repairs.evidence.evaluation import Gain, Metrics, measure, paired_gain
from sapcli.repairs.evidence.unfamiliar_views import Comparison
from sapcli.repairs.evidence.weak_points import guessing, weak_points
from sapcli.repairs.layer_plan import LayerPlan, is_part
from sapcli.repairs.projected_weights import ProjectedWeights
from sapcli.repairs.session import Samples, Session
from sapcli.repairs.shuffling import shuffled
from sapcli.repairs.trials import Trials
from sapcli.settings import (
    BatchNorm,
    ProjectionSettings,
)

_NAMED_AT_MOST = 5


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
        comparison: Without validation images, what strange views of the training images say of the repair.
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
    comparison: Comparison | None = None

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
        DatasetError: The classes are likely in another order.
    """
    session.check_forward(session.training, stop=True)
    # On training images, which the network knows best: a few validation images may not tell.
    session.ensure_order_checked()
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
    names = [*plan.projected, *plan.skipped]
    if parts := [word for word in settings.layers + settings.skip_layers if is_part(word, names)]:
        session.progress.note(
            f"{', '.join(parts)}: {len(plan.projected)} of {len(names)} weights, from {plan.projected[0]} on"
        )
    correction = _correction(session, settings, bases, plan, forget)
    indices = _validation_indices(session, bases)
    images = session.validation_images if indices else None
    before = None if images is None else session.validation_outcomes(images, indices)
    # A single alpha that is given is not counted: the stage's name tells it.
    count = advance if settings.alpha is None else lambda _done: None
    trials = Trials(session, correction, settings.importance.takes_fraction, count)
    comparison: Comparison | None = None
    on_validation = None if images is None else trials.on_validation(images, indices)
    if settings.alpha is not None:
        choice = Choice(settings.alpha, Evidence.FIXED, ())
        if on_validation is not None:
            on_validation.accuracy(settings.alpha)
    elif on_validation is not None and before is not None and len(before):
        choice = on_validation.best(before)
    elif trusted is not None:
        choice = trials.knee(trusted)
        if choice.alpha is not None:
            comparison = trials.on_strange_views(choice.alpha, trusted)
            if comparison is None:
                session.progress.note("whether there is anything to repair, so few training images cannot tell")
            else:
                session.progress.note(f"is there anything to repair? {comparison.words}")
                if not comparison.speaks_for_repair:
                    choice = replace(choice, alpha=None)
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
    after = before
    if choice.alpha is not None:
        after = None if on_validation is None else on_validation.outcomes.get(choice.alpha)
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
        comparison=comparison,
    )
    return repair, correction


def _validation_indices(session: Session, bases: Bases) -> Sequence[int]:
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
    last = Reestimation(BATCHNORM_BATCH)

    def calibrate(first: int | None) -> None:
        nonlocal last
        named = last.kept
        last = reestimate(
            session.classifier,
            session.training_images,
            indices[:first],
            session.progress,
            "re-estimating BatchNorm",
            last.batch_size,
            ranks=session.ranks,
        )
        if last.kept and last.kept != named:
            shown = ", ".join(last.kept[:_NAMED_AT_MOST]) + (", ..." if len(last.kept) > _NAMED_AT_MOST else "")
            session.progress.note(f"BatchNorm layers whose forward nothing went through keep their statistics: {shown}")

    classifier = session.classifier
    weights = ProjectedWeights(
        session.checkpoint,
        classifier.loaded.entry_names,
        bases,
        settings.importance,
        classifier.device,
        forget=forget,
        forget_mode=settings.forget_mode,
    )
    return Correction(classifier, weights, plan, calibrate if indices else None)


def batchnorm_indices(session: Session, settings: ProjectionSettings) -> list[int]:
    """The training images that BatchNorm is re-estimated on; none where it is kept, or no file could hold the result.

    They are shuffled: in the order of the folders each batch would hold one class, whose own statistics are narrower
    than those of all (a quarter of a nat more test loss on noisy CIFAR-10).
    """
    if settings.batchnorm is BatchNorm.KEEP or not may_reestimate(session.classifier):
        return []
    return shuffled(range(len(session.training.paths)), session.settings.seed)[:BATCHNORM_IMAGES]
