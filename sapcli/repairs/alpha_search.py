"""The choice of alpha: on validation data or by the knee; the unchanged model is always a candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

# The range of alpha in decades, and how often the step is halved around the best; once where first looks are followed
# by the peak: on noisy CIFAR-10 more of them choose no better.
_FIRST_DECADE, _LAST_DECADE = 2, 7
_REFINEMENTS, _REFINEMENTS_OF_LOOKS = 2, 1
# Of so many validation samples or more, the first ones take a first look at every alpha.
WORTH_A_FIRST_LOOK = 2000
FIRST_LOOK = 1000
# After so many of them, and again after as many more, an alpha that is clearly worse than another is given up: by so
# many standard errors of the paired difference.
_LOOK_STEP = 250
_CLEARLY = 2.5
_USUAL_ALPHA = 2500.0
# How far from the best, in steps, trials tell where the peak is.
_NEAR_STEPS = 2.1
# Finer than this the peak is not known: one image more or less, as another order of the same sums makes it, would move
# it, while a tenth of a decade costs nothing that could be measured.
_PEAKS_A_DECADE = 10
# How much of the trusted samples that the model had right has to stay right.
KNEE = 0.98
# For `gpm`, alpha is a fraction of the energy.
_ENERGIES = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)


class Evidence(StrEnum):
    """What chose alpha."""

    FIXED = "fixed"
    VALIDATION = "validation"
    KNEE = "trusted knee"


@dataclass(frozen=True)
class Trial:
    """A candidate and how it scored: a fraction in [0, 1] of validation samples, or of trusted samples kept right.

    Attributes:
        alpha: The candidate.
        score: The fraction.
        samples: Of how many samples, where it is not as many as of the whole choice. The score of an alpha that was
            given up is that of the best one less their difference on these.
    """

    alpha: float
    score: float
    samples: int | None = None


@dataclass(frozen=True)
class Choice:
    """The outcome of a search.

    Attributes:
        alpha: What was chosen; `None` where nothing beat the unchanged model.
        evidence: By what.
        trials: All that was tried, by ascending alpha.
        unchanged: The score of the unchanged model; `None` for the knee, where it is 1 by definition.
        samples: How many samples each score is a fraction of.
    """

    alpha: float | None
    evidence: Evidence
    trials: tuple[Trial, ...]
    unchanged: float | None = None
    samples: int = 0


class FirstLooks:
    """First looks at one alpha after another on the same samples, given up where another alpha is clearly better.

    Args:
        right: Which of the samples `[begin, end)` the model repaired with an alpha has right; asked in order.
    """

    def __init__(self, right: Callable[[float, int, int], npt.NDArray[np.bool_]]) -> None:
        self._right = right
        self._best: npt.NDArray[np.bool_] | None = None

    def __call__(self, alpha: float) -> Trial:
        """Look at one alpha."""
        right = np.empty(0, dtype=np.bool_)
        for begin in range(0, FIRST_LOOK, _LOOK_STEP):
            right = np.concatenate([right, self._right(alpha, begin, begin + _LOOK_STEP)])
            if self._best is not None and len(right) < len(self._best):
                best = self._best[: len(right)]
                lost, won = int((best & ~right).sum()), int((right & ~best).sum())
                if lost - won > _CLEARLY * math.sqrt(lost + won):
                    return Trial(alpha, float(self._best.mean()) - (lost - won) / len(right), len(right))
        if self._best is None or right.mean() > self._best.mean():
            self._best = right
        return Trial(alpha, float(right.mean()), len(right))


def best_on_validation(
    accuracy: Callable[[float], float],
    unchanged: float,
    energies: bool = False,
    samples: int = 0,
    first_look: Callable[[float], Trial] | None = None,
    needed: Callable[[float], float] = lambda _alpha: 0.0,
) -> Choice:
    """The alpha with the highest accuracy on validation data.

    Decades first, from the usual ones outwards, then half the step around the best, once or twice. Of equals the larger
    alpha wins, since it changes less; the unchanged model wins a tie with all. The highest of several noisy
    measurements is not always the best alpha, so the peak of the parabola through those around it is tried too, and
    taken where it is as good within half a standard error. With a `first_look`, only what it finds best gets its
    `accuracy` measured. Where the choice does not beat the unchanged model, the best of the others has its chance.

    Args:
        accuracy: Of the model repaired with an alpha, in [0, 1].
        unchanged: Accuracy of the model as it was.
        energies: Whether alpha is a fraction of the energy, as for `gpm`.
        samples: How many samples an accuracy is a fraction of; 0 for exact ones.
        first_look: The accuracy on some of the samples, at most `FIRST_LOOK`, which takes less time.
        needed: By how much the accuracy of an alpha that was measured has to be above that of the unchanged model, at
            least 0.
    """
    looks: dict[float, float] = {}
    looked: dict[float, Trial] = {}

    def look(alphas: Sequence[float]) -> None:
        for alpha in alphas:
            if alpha not in looks:
                looked[alpha] = Trial(alpha, accuracy(alpha)) if first_look is None else first_look(alpha)
                looks[alpha] = looked[alpha].score

    step = 1.0
    if energies:
        look(_ENERGIES)
    else:
        decades = [_power(exponent) for exponent in range(_FIRST_DECADE, _LAST_DECADE + 1)]
        for alpha in sorted(decades, key=lambda alpha: abs(math.log(alpha / _USUAL_ALPHA))):
            # Only once something beats the unchanged model: of repairs that ruin it, any may be the worst by chance.
            if max(looks.values(), default=-math.inf) <= unchanged or not _is_beyond(alpha, looked.values()):
                look([alpha])
        for _ in range(_REFINEMENTS if first_look is None else _REFINEMENTS_OF_LOOKS):
            step /= 2
            middle = math.log10(_best(looks))
            around = [middle - step, middle + step]
            look([_power(exponent) for exponent in around if _FIRST_DECADE <= exponent <= _LAST_DECADE])
    winner = _best(looks)
    peak = None if energies or not samples else _peak(looks, winner, _NEAR_STEPS * step)
    if peak is not None:
        look([peak])
        seen = samples if first_look is None else FIRST_LOOK
        error = math.sqrt(max(looks[winner] * (1 - looks[winner]), 0.0) / seen)
        winner = peak if looks[peak] >= looks[winner] - error / 2 else _best(looks)
    measured = looks
    if first_look is not None:
        measured = {winner: accuracy(winner)}
    if measured[winner] <= unchanged + needed(winner):
        winner = _best({alpha: score for alpha, score in looks.items() if alpha != winner})
        if winner not in measured:
            measured[winner] = accuracy(winner)
    trials = [Trial(alpha, score) for alpha, score in measured.items()]
    trials += [trial for alpha, trial in looked.items() if alpha not in measured]
    return Choice(
        winner if measured[winner] > unchanged + needed(winner) else None,
        Evidence.VALIDATION,
        tuple(sorted(trials, key=lambda trial: trial.alpha)),
        unchanged,
    )


def _is_beyond(alpha: float, looked: Collection[Trial]) -> bool:
    """Whether an alpha nearer to the usual one was given up already: from there on it only gets worse."""
    most = max((trial.samples or 0 for trial in looked), default=0)
    given_up = [trial.alpha for trial in looked if (trial.samples or 0) < most]
    return any(_USUAL_ALPHA < other < alpha or alpha < other < _USUAL_ALPHA for other in given_up)


def _best(scores: Mapping[float, float]) -> float:
    """The alpha with the highest score, the larger one of equals."""
    return max(scores, key=lambda alpha: (scores[alpha], alpha))


def knee(kept_right: Callable[[float], float], energies: bool = False) -> Choice:
    """The smallest alpha at which at least 98% of the trusted samples that the model had right stay right.

    Bisects the decades on a logarithmic scale, to an eighth of a decade: what stays right grows with alpha.

    Args:
        kept_right: Of the trusted samples that the model had right, the fraction that the model repaired with an alpha
            has right.
        energies: Whether alpha is a fraction of the energy, as for `gpm`.
    """
    if energies:
        candidates = list(_ENERGIES)
    else:
        steps = range((_LAST_DECADE - _FIRST_DECADE) * 8 + 1)
        candidates = [_power(_FIRST_DECADE + step / 8) for step in steps]
    trials: dict[int, float] = {}

    def passes(position: int) -> bool:
        trials[position] = kept_right(candidates[position])
        return trials[position] >= KNEE

    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle + 1
    return Choice(
        candidates[low] if low < len(candidates) else None,
        Evidence.KNEE,
        tuple(Trial(candidates[position], trials[position]) for position in sorted(trials)),
    )


def usual_trials(evidence: Evidence, energies: bool = False, samples: int = 0) -> tuple[int, int]:
    """How many values of alpha get a first look, and how many are tried on all samples.

    As it is where the best alpha is a usual one.
    """
    if evidence is Evidence.FIXED:
        return 0, 1
    target = _ENERGIES[len(_ENERGIES) // 2] if energies else _USUAL_ALPHA
    if evidence is Evidence.KNEE:
        return 0, len(knee(lambda alpha: float(alpha >= target), energies).trials)
    looks: list[float] = []
    trials: list[float] = []

    def score(alpha: float) -> float:
        trials.append(alpha)
        return -abs(math.log(alpha / target))

    def look(alpha: float) -> Trial:
        looks.append(alpha)
        return Trial(alpha, -abs(math.log(alpha / target)))

    best_on_validation(score, -math.inf, energies, 1, look if samples >= WORTH_A_FIRST_LOOK else None)
    return len(looks), len(trials)


def _peak(trials: Mapping[float, float], best: float, reach: float) -> float | None:
    """Where the parabola over log alpha, fitted to the trials within `reach` decades of the best, is highest.

    To a tenth of a decade. `None` where there are fewer than four of them, or it has no peak among them.
    """
    middle = math.log10(best)
    near = {math.log10(alpha) - middle: score for alpha, score in trials.items()}
    near = {distance: score for distance, score in near.items() if abs(distance) <= reach}
    if len(near) < 4:
        return None
    curvature, slope, _ = np.polyfit(list(near), list(near.values()), 2)
    if curvature >= 0:
        return None
    distance = float(-slope / (2 * curvature))
    if not min(near) < distance < max(near):
        return None
    return _power(round((middle + distance) * _PEAKS_A_DECADE) / _PEAKS_A_DECADE)


def _power(exponent: float) -> float:
    """`10 ** exponent`, rounded to three digits so that it can be typed again."""
    return float(f"{10**exponent:.3g}")
