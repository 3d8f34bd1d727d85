"""The loss of a training, watched: one that does not come down again had too high a rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sapcli.machine.parallel.ranks import Ranks

LOOKS = 50
"""The loss is looked at so often in a course."""
_LOSS = "loss"
# For a tenth of the course is for long.
_LOOKS_ABOVE = 5


class Diverged(Exception):  # noqa: N818 - no error of the program's
    """The loss is no number, or stays above where it began."""


class Watch:
    """Watches the loss, and ends a run that does not come down from where it began.

    Where it began is the mean of the first steps, whose rates are low. It may rise on the way: half as far as to where
    a network is that knows nothing.

    Args:
        classes: How many there are.
        every: After so many steps it is looked at, since a GPU has to be waited for.
        ranks: The processes that train together.
    """

    def __init__(self, classes: int, every: int, ranks: Ranks) -> None:
        self._guessing = math.log(max(classes, 2))
        self._every = every
        self._ranks = ranks
        self._sum: Tensor | None = None
        self._count = 0
        self._first: float | None = None
        self._above = 0

    def look(self, loss: Tensor) -> None:
        """See the loss of one more step.

        Raises:
            Diverged: It is no number, or has been above the ceiling for long.
        """
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1
        if self._count < self._every:
            return
        mean = float(self._ranks.mean(self._sum / self._count, _LOSS))
        self._sum, self._count = None, 0
        if not math.isfinite(mean):
            raise Diverged
        if self._first is None:
            self._first = mean
        ceiling = self._first + max((self._guessing - self._first) / 2, self._guessing / 8)
        self._above = self._above + 1 if mean > ceiling else 0
        if self._above >= _LOOKS_ABOVE:
            raise Diverged

    @property
    def numbers(self) -> list[float | int | None]:
        """What is to be remembered, between two looks too."""
        return [self._first, self._above, None if self._sum is None else float(self._sum), self._count]

    def resume(self, numbers: Sequence[Any]) -> None:
        """Go on from what was remembered."""
        self._first, self._above, total, self._count = numbers
        self._sum = None if total is None else torch.tensor(total)
