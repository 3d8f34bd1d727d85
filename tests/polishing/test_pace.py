"""Tests of how far a training is, by steps and by a clock of the test's own."""

from __future__ import annotations

import itertools

import pytest

from sapcli.polishing.pace import Pace


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.seconds


def test_without_a_limit_every_step_is_as_long() -> None:
    pace = Pace(40)
    shares = []
    while not pace.is_at_end:
        shares.append(pace.next_share())
        pace.advance(shares[-1])
    assert len(shares) == 40
    assert shares == pytest.approx([1 / 40] * 40)


@pytest.mark.parametrize("seconds_a_step", [1.0, 3.0])
def test_the_course_fits_into_the_time(seconds_a_step: float) -> None:
    clock = Clock()
    pace = Pace(1000, 100.0, clock)
    courses = []
    while not pace.is_at_end:
        share = pace.next_share()
        clock.seconds += seconds_a_step
        pace.advance(share)
        courses.append(pace.course)
    assert 80 < clock.seconds <= 100
    # But for the first steps, which tell how long one takes, the course is even.
    shares = [after - before for before, after in itertools.pairwise(courses[8:])]
    assert max(shares) < 1.5 * min(shares)


def test_a_machine_that_becomes_slow_ends_in_time_all_the_same() -> None:
    clock = Clock()
    pace = Pace(1000, 100.0, clock)
    while not pace.is_at_end:
        share = pace.next_share()
        clock.seconds += 1.0 if clock.seconds < 40 else 4.0
        pace.advance(share)
    assert clock.seconds <= 104


def test_what_is_left_of_the_course_fits_into_what_is_left_of_the_time() -> None:
    clock = Clock()
    pace = Pace(1000, 40.0, clock)
    pace.resume(50, 0.5)
    while not pace.is_at_end:
        share = pace.next_share()
        clock.seconds += 1.0
        pace.advance(share)
    assert clock.seconds <= 40
