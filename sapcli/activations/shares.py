"""Images scored in shares: each process runs a part of them, and all get the outcomes of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from sapcli.activations.scoring import Classifier, Outcomes, score
from sapcli.datasets.images import Images, Remarks
from sapcli.errors import SapError
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import Progress


def score_in_shares(
    ranks: Ranks,
    classifier: Classifier,
    images: Images,
    progress: Progress,
    stage: str,
    indices: Sequence[int],
    *,
    exact: bool,
) -> Outcomes:
    """As `scoring.score`, by all processes together: each scores every `world`-th image, without padding.

    Raises:
        SapError: A process failed; or images were lost or scored twice between them.
    """

    def mine() -> tuple[Outcomes, Remarks]:
        share = ranks.share(indices)
        outcomes = score(classifier, images, shared, stage, share, exact=exact)
        ranks.work["images"] += len(share)
        return outcomes, images.remarks(share)

    with progress.stage(stage, len(indices)) as advance:
        shared = SharedStage(progress, ranks.world, advance, len(indices))
        parts = ranks.together(mine)
        advance(shared.left)
    merge_remarks(images, [remarks for _, remarks in parts], len(indices), indices)
    outcomes = in_order([outcomes for outcomes, _ in parts], indices)
    left_out = sum(index in images.unreadable for index in indices) if images.unreadable else 0
    if len(outcomes) + left_out != len(indices):
        raise SapError(
            f"{len(outcomes) + left_out:,} images came back of {len(indices):,} that {ranks.world} processes shared",
            "all processes have to see the same data folder; please report it if they do",
        )
    return outcomes


def merge_remarks(images: Images, remarks: Sequence[Remarks], count: int, indices: Sequence[int]) -> None:
    """Take over what the other processes were told of their images.

    Raises:
        DatasetError: None of them could read any.
    """
    for each in remarks:
        images.add_remarks(each)
    unreadable = {index for each in remarks for index in each.unreadable}
    if count and len(unreadable) >= count:
        raise images.none_readable(count, indices[0])


def in_order(parts: Sequence[Outcomes], indices: Sequence[int]) -> Outcomes:
    """The outcomes of all shares, in the order in which the images were asked for.

    Args:
        parts: Of each process.
        indices: The images, no one twice.
    """
    columns = [torch.cat([getattr(part, column.name) for part in parts]) for column in fields(Outcomes)]
    asked = np.asarray(indices, dtype=np.int64)
    by_index = asked.argsort(kind="stable")
    found = columns[0].numpy()
    places = by_index[np.searchsorted(asked[by_index], found)] if len(asked) else found
    order: Tensor = torch.from_numpy(places.argsort(kind="stable"))
    return Outcomes(*(column[order] for column in columns))


@dataclass
class SharedStage:
    """A listener to a share of a stage, which tells of it as of the whole: the others are about as far.

    Args:
        progress: Who is told.
        world: How many processes share the stage.
        advance: Tells how far the whole stage is.
        left: How much of it has not been told yet.
    """

    progress: Progress
    world: int
    advance: Callable[[int], None]
    left: int

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "images") -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """The share of the stage that is open already."""

        def advance(done: int) -> None:
            told = min(done * self.world, self.left)
            self.left -= told
            self.advance(told)

        yield advance

    def note(self, text: str) -> None:
        """Passed on."""
        self.progress.note(text)

    def warn(self, text: str) -> None:
        """Passed on."""
        self.progress.warn(text)
