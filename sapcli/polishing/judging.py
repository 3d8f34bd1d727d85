"""Which model is written: the polished one, the repaired one that it began with, or the one that was given.

With validation images all of them are run over these. The polished model takes the place of the repaired one unless it
is worse, and the better of both that of the given one where it is clearly better: see `convincing_gain`.

Without validation images no number tells which is better: the given model has memorised the labels of every image there
is, wrong ones too, so it reproduces them better than any model that learned less by heart. What can be told is whether
training did harm that shows: a loss that ended above where it began, or images that the training was not shown, of
which the given and the repaired model agree with the label, and most of which the polished model takes for something
else. A model that is a few points worse passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sapcli.activations.scoring import Outcomes
from sapcli.repairs.evidence.evaluation import convincing_gain, discordant

# Of believable images that it was not shown, a model that was not ruined has more right than this.
_BELIEVABLE_RIGHT = 0.5
# A loss of another draw of mixed images differs by less than this part.
_SAME_LOSS = 0.1


class Result(StrEnum):
    """Which model is written."""

    POLISHED = "polished"
    REPAIRED = "repaired"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Judgement:
    """Which model is written, and why, in words."""

    result: Result
    reason: str


def by_validation(given: Outcomes, repaired: Outcomes | None, polished: Outcomes | None) -> Judgement:
    """The choice on validation images.

    Args:
        given: What the model that was given made of them.
        repaired: The same of the repaired one; `None` where there is none.
        polished: The same of the polished one; `None` where training did not come to an end.
    """
    best, candidate = Result.POLISHED, polished
    if candidate is None or (repaired is not None and repaired.accuracy > candidate.accuracy):
        best, candidate = Result.REPAIRED, repaired
    if candidate is None:
        return Judgement(Result.UNCHANGED, "there is nothing but the model as it was")
    won, lost, images = discordant(given, candidate)
    if won - lost <= images * max(0.0, convincing_gain(won, lost, images)):
        return Judgement(
            Result.UNCHANGED,
            f"the {best} model has {won} of {len(given):,} validation images right that the one that was given has not,"
            f" and {lost} the other way round: that may be chance",
        )
    return Judgement(best, f"the {best} model is the best on {len(given):,} validation images")


def by_signs(
    given: Outcomes, repaired: Outcomes | None, polished: Outcomes | None, first_loss: float, last_loss: float
) -> Judgement:
    """The choice without validation images; see above for what it cannot tell.

    Args:
        given: What the model that was given made of training images that training was not shown.
        repaired: The same of the repaired one; `None` where there is none.
        polished: The same of the polished one; `None` where training did not come to an end.
        first_loss: The loss of training in its first epoch.
        last_loss: The loss in its last one.
    """
    otherwise = Result.UNCHANGED if repaired is None else Result.REPAIRED
    if polished is None:
        return Judgement(otherwise, "training did not come to an end")
    if not last_loss <= (1 + _SAME_LOSS) * first_loss:
        return Judgement(otherwise, f"the loss rose from {first_loss:.3f} to {last_loss:.3f}")
    believable = given.correct if repaired is None else given.correct & repaired.correct
    right = int((polished.correct & believable).sum())
    count = int(believable.sum())
    if count and right <= _BELIEVABLE_RIGHT * count:
        return Judgement(
            otherwise, f"the polished model has {right} right of {count} believable images that it was not shown"
        )
    return Judgement(
        Result.POLISHED, "no validation images tell which model is better; nothing speaks against the polished one"
    )
