"""Among how many training images trusted samples are looked for: a million need not be scored to find a thousand.

The lowest losses of a class-balanced random part are as pure as those of all as long as the part is large beside what
is taken of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sapcli.datasets.dataset import Dataset
from sapcli.machine.progress import Progress
from sapcli.repairs.selection import balanced_shares, class_balanced_lowest
from sapcli.settings import SelectionSettings

# So many candidates for each trusted sample, and of each class.
CANDIDATES_A_SAMPLE, CANDIDATES_A_CLASS = 20, 50
# The draw is another one than that of the trusted samples by `--strategy random`.
_OWN_STREAM = 0x5A9CA4D


def candidates_of(dataset: Dataset, settings: SelectionSettings, seed: int, progress: Progress) -> Sequence[int]:
    """The training images among which trusted samples are looked for, all or a part that is told of."""
    count, total = settings.candidates, len(dataset.paths)
    if count is None:
        count = enough_candidates(settings.count, len(dataset.classes))
    if count >= total:
        return range(total)
    if count < 2 * settings.count:
        progress.warn(
            f"{settings.count:,} trusted samples are more than half of {count:,} candidates, wrong labels among them:"
            " more --candidates leave the doubtful ones out"
        )
    chosen = draw_candidates(dataset, count, seed)
    progress.note(
        f"candidates: {len(chosen):,} of {total:,} training images, drawn with seed {seed}, as many of each class"
        " (--candidates all takes all)"
    )
    return chosen


def enough_candidates(count: int, classes: int) -> int:
    """Among how many images `count` trusted samples are looked for where nobody says it."""
    return max(CANDIDATES_A_SAMPLE * count, CANDIDATES_A_CLASS * classes)


def draw_candidates(dataset: Dataset, count: int, seed: int) -> list[int]:
    """A random part of a dataset, as many of each class as there are or an even share, ascending."""
    labels = torch.as_tensor(dataset.labels)
    shares = balanced_shares(torch.bincount(labels, minlength=len(dataset.classes)).tolist(), count)
    draw = torch.rand(len(labels), generator=torch.Generator().manual_seed((seed ^ _OWN_STREAM) & (2**63 - 1)))
    chosen: list[int] = class_balanced_lowest(draw, labels, shares.counts).tolist()
    return chosen
