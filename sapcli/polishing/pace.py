"""How far a training is, of all that it will be: by its steps, or by the time that it may take."""

from __future__ import annotations

import time
from collections.abc import Callable

# So many steps tell how long one takes.
_STEPS_TO_TELL = 5
# Of the time, so much is left for what comes after the last step.
_AFTERWARDS = 0.06


class Pace:
    """The course from 0 to 1, and how much of it a step is.

    Args:
        steps: How many steps there are, at most.
        seconds: How long they may take; `None` where that does not matter, and each step is as long as any other.
        now: A clock, in seconds.
    """

    def __init__(self, steps: int, seconds: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._steps = steps
        self._seconds = None if seconds is None else seconds * (1 - _AFTERWARDS)
        self._now = now
        self._began = now()
        self._began_at = 0
        self.done = 0
        self.course = 0.0

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left to do."""
        return self.course >= 1 - 1e-9

    @property
    def seconds(self) -> float:
        """How long it has taken so far, in this process."""
        return self._now() - self._began

    def resume(self, done: int, course: float) -> None:
        """Go on where another process has come to."""
        self.done, self.course = done, course
        self._began_at = done

    def next_share(self) -> float:
        """How much of the course the next step is, at most what is left of it."""
        left = self._steps - self.done
        if self._seconds is not None:
            taken, since = self.seconds, self.done - self._began_at
            if since >= _STEPS_TO_TELL:
                left = min(left, int((self._seconds - taken) * since / taken))
            elif taken >= self._seconds:
                left = 0
        return (1 - self.course) / max(left, 1)

    def advance(self, share: float) -> None:
        """Count a step."""
        self.done += 1
        self.course = min(self.course + share, 1.0)
