"""Where the evidence for a repair is thin: what a user ought to know before trusting its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from sapcli.activations.bases import SampleFacts
from sapcli.repairs.alpha_search import Choice, Evidence
from sapcli.repairs.evidence.evaluation import Gain

_FEW_VALIDATION_IMAGES = 200
_FEW_TRUSTED_PER_CLASS = 30
_NAMED_AT_MOST = 5


def weak_points(
    choice: Choice, gain: Gain | None, validation: int, facts: SampleFacts, classes: Sequence[str]
) -> tuple[str, ...]:
    """What is to be said against the evidence, a sentence each; empty where nothing is.

    Args:
        choice: What chose alpha.
        gain: On the validation images; `None` without any.
        validation: How many there are.
        facts: Of the trusted samples.
        classes: The classes' names.
    """
    return (*_of_validation(choice, gain, validation), *_of_trusted(facts, classes))


def guessing(accuracy: float, classes: int) -> tuple[str, ...]:
    """What is to be said of a model that is hardly better than guessing; nothing where it is.

    Args:
        accuracy: On noisy labels or right ones, in [0, 1].
        classes: How many there are.
    """
    if not accuracy < min(1.5 / classes, 1 / classes + 0.05):
        return ()
    point = (
        f"{accuracy:.1%} of {classes} classes is hardly better than guessing: are the preprocessing and the order of"
        " the class folders (--class-map) those of the training?"
    )
    return (point,)


def _of_validation(choice: Choice, gain: Gain | None, validation: int) -> list[str]:
    points = []
    if not validation:
        chosen = "alpha is chosen on the trusted samples alone, " if choice.evidence is Evidence.KNEE else ""
        points.append(f"there are no validation images: {chosen}the gain is not measured")
    elif validation < _FEW_VALIDATION_IMAGES:
        points.append(f"there are only {validation} validation images: less than {_FEW_VALIDATION_IMAGES} tell little")
    if gain is not None and choice.alpha is not None and gain.low <= 0 <= gain.high:
        points.append("the interval of the gain contains 0: it may be chance")
    return points


def _of_trusted(facts: SampleFacts, classes: Sequence[str]) -> list[str]:
    points = []
    few = [
        f"{name} ({count})"
        for name, count in zip(classes, facts.per_class, strict=False)
        if count < _FEW_TRUSTED_PER_CLASS
    ]
    if few:
        named = ", ".join(few[:_NAMED_AT_MOST]) + (", ..." if len(few) > _NAMED_AT_MOST else "")
        points.append(f"{len(few)} classes have less than {_FEW_TRUSTED_PER_CLASS} trusted samples: {named}")
    if facts.contradicted:
        points.append(
            f"the model itself contradicts the labels of {facts.contradicted} of {sum(facts.per_class)} trusted samples"
        )
    return points
