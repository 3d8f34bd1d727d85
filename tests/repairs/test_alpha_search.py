"""Tests of the choice of alpha."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from sapcli.repairs.alpha_search import (
    FIRST_LOOK,
    KNEE,
    Evidence,
    FirstLooks,
    Trial,
    best_on_validation,
    knee,
    usual_trials,
)


def looking(score) -> Callable[[float], Trial]:
    """First looks that give the scores."""
    return lambda alpha: Trial(alpha, score(alpha), FIRST_LOOK)


class Counted:
    """A score by alpha that remembers what it was asked."""

    def __init__(self, score) -> None:
        self.score = score
        self.asked: list[float] = []

    def __call__(self, alpha: float) -> float:
        """The score."""
        self.asked.append(alpha)
        return self.score(alpha)


@pytest.mark.parametrize("peak", [1e2, 250.0, 3e3, 4.5e4, 1e7])
def test_a_single_peak_is_found_within_an_eighth_of_a_decade(peak):
    score = Counted(lambda alpha: 1 - abs(math.log10(alpha / peak)) / 10)
    choice = best_on_validation(score, 0.1)
    assert abs(math.log10(choice.alpha / peak)) <= 0.126
    assert choice.evidence is Evidence.VALIDATION
    assert len(score.asked) == len(set(score.asked)) <= 10
    assert all(1e2 <= alpha <= 1e7 for alpha in score.asked)
    assert [trial.alpha for trial in choice.trials] == sorted(score.asked)
    assert score.asked[:2] == [1e3, 1e4]
    assert choice.unchanged == 0.1


def test_the_unchanged_model_wins_a_tie():
    assert best_on_validation(lambda _: 0.5, 0.5).alpha is None
    assert best_on_validation(lambda _: 0.4, 0.5).alpha is None


def test_of_equals_the_larger_alpha_wins():
    assert best_on_validation(lambda _: 0.6, 0.5).alpha == 1e7
    assert best_on_validation(lambda alpha: 0.6 if alpha <= 1e4 else 0.2, 0.5).alpha == pytest.approx(1e4)


def test_energies_are_tried_as_they_are():
    score = Counted(lambda energy: 1 - abs(energy - 0.97))
    choice = best_on_validation(score, 0.0, energies=True)
    assert choice.alpha == 0.97
    assert all(0 < energy <= 1 for energy in score.asked)


@pytest.mark.parametrize("threshold", [50.0, 1e2, 1234.0, 3e3, 8e6])
def test_the_knee_is_the_smallest_alpha_that_passes(threshold):
    score = Counted(lambda alpha: 1.0 if alpha >= threshold else 0.9)
    choice = knee(score)
    assert choice.evidence is Evidence.KNEE
    assert choice.alpha >= threshold
    assert choice.alpha == 1e2 or math.log10(choice.alpha / threshold) <= 0.126
    assert len(score.asked) == len(set(score.asked)) <= 7


def test_the_knee_itself_passes():
    assert knee(lambda _: KNEE).alpha == 1e2


def test_no_knee_is_no_alpha():
    assert knee(lambda _: 0.5).alpha is None
    assert knee(lambda _: 0.5, energies=True).alpha is None


def test_a_knee_of_energies():
    assert knee(lambda energy: energy, energies=True).alpha == KNEE


def test_alphas_can_be_typed_again():
    choice = best_on_validation(lambda alpha: -abs(math.log10(alpha / 4.7e3)), -9.0)
    assert all(float(f"{trial.alpha:g}") == trial.alpha for trial in choice.trials)


def test_the_peak_of_noisy_accuracies_is_taken_instead_of_the_luckiest() -> None:
    # A smooth curve that is highest at 2000, with a lucky measurement at 3160.
    def accuracy(alpha: float) -> float:
        return 0.6 - 0.08 * (math.log10(alpha / 2000)) ** 2 + (0.004 if alpha == 3160 else 0.0)

    assert best_on_validation(accuracy, unchanged=0.5).alpha == 3160
    choice = best_on_validation(accuracy, unchanged=0.5, samples=5000)
    assert choice.alpha is not None
    assert 1700 < choice.alpha < 2600


def test_a_peak_that_is_worse_than_the_best_by_more_than_the_noise_is_left() -> None:
    # Between the values that are tried at first, nothing is any good.
    tried = {100.0: 0.1, 1e3: 0.8, 1780.0: 0.9, 3160.0: 0.85, 1e4: 0.4, 316.0: 0.2}
    choice = best_on_validation(lambda alpha: tried.get(alpha, 0.3), unchanged=0.4, samples=5000)
    assert choice.alpha == 1780
    assert any(trial.alpha not in tried and 1000 < trial.alpha < 3160 for trial in choice.trials)


def test_the_peak_does_not_beat_an_unchanged_model_that_is_better() -> None:
    choice = best_on_validation(lambda alpha: 0.5 - 0.01 * math.log10(alpha / 3000) ** 2, unchanged=0.6, samples=5000)
    assert choice.alpha is None


def test_after_a_first_look_only_the_best_are_measured() -> None:
    def truth(alpha: float) -> float:
        return 0.7 - 0.05 * math.log10(alpha / 4000) ** 2

    look, measure = Counted(lambda alpha: truth(alpha) + (0.01 if alpha == 1e4 else 0.0)), Counted(truth)
    choice = best_on_validation(measure, unchanged=0.5, samples=5000, first_look=looking(look))
    assert len(measure.asked) == 1
    assert choice.alpha in measure.asked
    assert 2500 < choice.alpha < 6400
    assert len(choice.trials) == len({*look.asked, *measure.asked})
    for trial in choice.trials:
        assert (trial.samples is None) == (trial.alpha in measure.asked)
        assert trial.score == (truth(trial.alpha) if trial.alpha in measure.asked else look.score(trial.alpha))


def test_what_the_first_look_flatters_does_not_beat_the_unchanged_model() -> None:
    measure = Counted(lambda _: 0.5)
    choice = best_on_validation(measure, unchanged=0.6, samples=5000, first_look=looking(lambda _: 0.7))
    assert choice.alpha is None
    assert len(measure.asked) == 2


def test_the_second_best_of_the_first_look_has_its_chance() -> None:
    looks = {1e5: 0.8, 1e4: 0.7}
    choice = best_on_validation(
        lambda alpha: 0.9 if alpha == 1e4 else 0.5, 0.6, False, 5000, looking(lambda a: looks.get(a, 0.1))
    )
    assert choice.alpha == 1e4


def test_energies_get_a_first_look_too() -> None:
    measure = Counted(lambda energy: 1 - abs(energy - 0.97))
    choice = best_on_validation(measure, 0.0, energies=True, samples=5000, first_look=looking(measure.score))
    assert choice.alpha == 0.97
    assert len(measure.asked) == 1


@pytest.mark.parametrize(("samples", "expected"), [(100, (0, 11)), (5000, (9, 1))])
def test_the_usual_number_of_trials(samples: int, expected: tuple[int, int]) -> None:
    assert usual_trials(Evidence.VALIDATION, samples=samples) == expected


class Looks:
    """Samples that each alpha has right with its own probability, the same ones more often than not."""

    def __init__(self, probabilities: dict[float, float]) -> None:
        difficulty = np.random.default_rng(0).random(FIRST_LOOK)
        self.right = {alpha: difficulty < probability for alpha, probability in probabilities.items()}
        self.seen: dict[float, int] = {}

    def __call__(self, alpha: float, begin: int, end: int) -> np.ndarray:
        """Which of the samples are right."""
        assert begin == self.seen.get(alpha, 0)
        self.seen[alpha] = end
        return self.right[alpha][begin:end]


def test_a_look_is_given_up_where_another_alpha_is_clearly_better() -> None:
    right = Looks({1e3: 0.6, 1e4: 0.58, 1e2: 0.3, 1e5: 0.61})
    look = FirstLooks(right)
    trials = {alpha: look(alpha) for alpha in (1e3, 1e4, 1e2, 1e5)}
    assert trials[1e3] == Trial(1e3, right.right[1e3].mean(), FIRST_LOOK)
    assert trials[1e5] == Trial(1e5, right.right[1e5].mean(), FIRST_LOOK)
    assert trials[1e2].samples == right.seen[1e2] == 250
    # On the level of the best, whatever the luck of the first samples: 30 points below it.
    assert trials[1e2].score == pytest.approx(
        right.right[1e3].mean() - (right.right[1e3][:250].mean() - right.right[1e2][:250].mean())
    )
    assert right.seen[1e4] < FIRST_LOOK


@pytest.mark.parametrize("seed", range(5))
def test_an_alpha_that_is_as_good_is_never_given_up(seed: int) -> None:
    draws = np.random.default_rng(seed)
    # Both have nine tenths in common and toss a coin for the rest.
    common, open_ = draws.random(FIRST_LOOK) < 0.6, draws.random(FIRST_LOOK) < 0.1

    def right(_alpha: float, begin: int, end: int) -> np.ndarray:
        if begin == 0:
            right.now = np.where(open_, draws.random(FIRST_LOOK) < 0.5, common)
        return right.now[begin:end]

    look = FirstLooks(right)
    assert [look(alpha).samples for alpha in (1e3, 1e4)] == [FIRST_LOOK, FIRST_LOOK]


def test_unreadable_samples_are_looked_past() -> None:
    look = FirstLooks(lambda _alpha, begin, end: np.ones(end - begin - 3, dtype=bool))
    assert look(1e3) == Trial(1e3, 1.0, FIRST_LOOK - 12)


def test_beyond_an_alpha_that_was_given_up_no_other_is_looked_at() -> None:
    look = Counted(lambda alpha: 0.6 - 0.1 * abs(math.log10(alpha / 2000)))
    choice = best_on_validation(
        look.score,
        0.1,
        samples=5000,
        first_look=lambda alpha: Trial(alpha, look(alpha), 250 if alpha >= 1e5 else FIRST_LOOK),
    )
    assert {1e3, 1e4, 1e5} < set(look.asked)
    assert not {1e6, 1e7} & set(look.asked)
    assert 1e3 <= choice.alpha <= 4e3


def test_where_nothing_is_better_yet_all_decades_are_looked_at() -> None:
    # What ruins the network scores by chance, and one of the ruined ones clearly worse than another.
    scores = {1e2: 0.1, 1e3: 0.13, 1e4: 0.08, 1e5: 0.5, 1e6: 0.7, 1e7: 0.6}

    def look(alpha: float) -> Trial:
        return Trial(alpha, scores.get(alpha, 0.1), 250 if alpha in (1e2, 1e4) else FIRST_LOOK)

    choice = best_on_validation(lambda alpha: scores.get(alpha, 0.1), 0.6, samples=5000, first_look=look)
    assert choice.alpha == 1e6
