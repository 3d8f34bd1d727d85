"""Images scored in shares: each process runs a part of them, and all get the outcomes of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sapcli.activations.scoring import Classifier, Outcomes, score
from sapcli.activations.views import Views, joined_views, view
from sapcli.datasets.images import Images, Remarks
from sapcli.errors import SapError
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import Progress

Result = TypeVar("Result")


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
    if ranks.world == 1:
        return score(classifier, images, progress, stage, indices, exact=exact)
    parts = in_shares(
        ranks,
        images,
        progress,
        stage,
        indices,
        lambda shared, share: score(classifier, images, shared, stage, share, exact=exact),
    )
    outcomes = in_order(parts, indices)
    _check_count(len(outcomes), images, indices, ranks)
    return outcomes


def view_in_shares(
    ranks: Ranks, classifier: Classifier, images: Images, progress: Progress, stage: str, indices: Sequence[int]
) -> Views:
    """As `views.view`, by all processes together.

    Raises:
        SapError: As of `score_in_shares`.
    """
    if ranks.world == 1:
        return view(classifier, images, progress, stage, indices)
    parts = in_shares(
        ranks, images, progress, stage, indices, lambda shared, share: view(classifier, images, shared, stage, share)
    )
    together = joined_views(parts)
    order = _places([part.outcomes for part in parts], indices).argsort(stable=True)
    outcomes = in_order([part.outcomes for part in parts], indices)
    _check_count(len(outcomes), images, indices, ranks)
    logits, features, pixels = (
        kept[order] if len(kept) else kept for kept in (together.logits, together.features, together.pixels)
    )
    return Views(outcomes, logits, features, pixels)


def in_shares(
    ranks: Ranks,
    images: Images,
    progress: Progress,
    stage: str,
    indices: Sequence[int],
    run: Callable[[Progress, Sequence[int]], Result],
) -> list[Result]:
    """What the processes make of their shares of images, in the order of the ranks.

    Args:
        ranks: The processes.
        images: The images; what is to be said of those of the others is taken over.
        progress: Told of the stage.
        stage: Its name.
        indices: Positions in the images' dataset.
        run: Called in each process with a listener and its share.

    Raises:
        SapError: A process failed, or no image can be read.
    """

    def mine() -> tuple[Result, Remarks]:
        share = ranks.share(indices)
        result = run(shared, share)
        ranks.work["images"] += len(share)
        return result, images.remarks(share)

    with progress.stage(stage, len(indices)) as advance:
        shared = SharedStage(progress, ranks.world, advance, len(indices))
        parts = ranks.together(mine)
        advance(shared.left)
    merge_remarks(images, [remarks for _, remarks in parts], len(indices), indices)
    return [result for result, _ in parts]


def _check_count(found: int, images: Images, indices: Sequence[int], ranks: Ranks) -> None:
    """Make sure that no image was lost or came twice."""
    left_out = sum(index in images.unreadable for index in indices) if images.unreadable else 0
    if found + left_out != len(indices):
        raise SapError(
            f"{found + left_out:,} images came back of {len(indices):,} that {ranks.world} processes shared",
            "all processes have to see the same data folder; please report it if they do",
        )


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
    order = _places(parts, indices).argsort(stable=True)
    return Outcomes(*(column[order] for column in columns))


def _places(parts: Sequence[Outcomes], indices: Sequence[int]) -> Tensor:
    """Where each sample, share after share, stands among those that were asked for."""
    asked = np.asarray(indices, dtype=np.int64)
    by_index = asked.argsort(kind="stable")
    found = torch.cat([part.indices for part in parts]).numpy()
    return torch.from_numpy(by_index[np.searchsorted(asked[by_index], found)] if len(asked) else found)


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
