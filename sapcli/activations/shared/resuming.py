"""Outcomes kept in parts while they come, so that a run that was killed goes on where it was.

A part holds what was made of some of the images that were asked for, one after the other, and begins where the part
before it ended. Parts end with a batch, so that the batches are the same whether a run was killed or not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from sapcli.activations.scoring import Classifier, Outcomes, in_words, joined, score
from sapcli.activations.shared.shares import SharedStage, score_in_shares, view_in_shares
from sapcli.activations.views import Views, joined_views
from sapcli.checkpoints.saving import write_safetensors
from sapcli.datasets.images import Images, Remarks
from sapcli.machine.cache import Cache
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import Progress

KIND = "parts"
# How many batches each process runs first, and how long a round shall be once it is known how long one takes.
_FIRST_BATCHES, _SECONDS_A_ROUND = 4, 60.0

Made = TypeVar("Made")


@dataclass(frozen=True)
class Form(Generic[Made]):
    """How what was made of images is kept.

    Attributes:
        to_tensors: What is kept of it.
        of_tensors: It, out of that.
        indices: The images that it is of.
    """

    to_tensors: Callable[[Made], dict[str, Tensor]]
    of_tensors: Callable[[dict[str, Tensor]], Made]
    indices: Callable[[Made], Tensor]


OUTCOMES: Form[Outcomes] = Form(lambda made: dict(vars(made)), lambda kept: Outcomes(**kept), lambda made: made.indices)
VIEWS: Form[Views] = Form(Views.to_tensors, Views.of_tensors, lambda made: made.outcomes.indices)


@dataclass(frozen=True)
class Part(Generic[Made]):
    """What a network made of some images.

    Attributes:
        end: How many of the images that were asked for are done with it.
        made: What was made of the images since the part before.
        remarks: What there is to be said of these images.
    """

    end: int
    made: Made
    remarks: Remarks


class Parts(Generic[Made]):
    """The parts of one pass, in the cache.

    Args:
        cache: The cache.
        key: All that what is made depends on.
        images: The images.
        indices: Which of them.
        form: How what is made is kept.
    """

    def __init__(
        self, cache: Cache, key: Mapping[str, object], images: Images, indices: Sequence[int], form: Form[Made]
    ) -> None:
        self._cache = cache
        self._key = key
        self._images = images
        self._form = form
        self.indices = indices
        self.begin = 0
        self.found: list[Part[Made]] = []
        while (part := self._cache.find(KIND, self._of(self.begin), self._read)) is not None:
            self.found.append(part)
            self.begin = part.end
        self._begins = [0, *(part.end for part in self.found[:-1])] if self.found else []
        for part in self.found:
            images.add_remarks(part.remarks)

    def _of(self, begin: int) -> dict[str, object]:
        return {**self._key, "begin": begin}

    def keep(self, end: int, made: Made) -> None:
        """Keep a part that begins where the one before has ended."""
        part = Part(end, made, self._images.remarks(self.indices[self.begin : end]))
        self._cache.keep(KIND, self._of(self.begin), part, self._write)
        self._begins.append(self.begin)
        self.begin = end

    def discard(self) -> None:
        """Remove the parts: what they are parts of is whole."""
        for begin in self._begins:
            self._cache.discard(KIND, self._of(begin))

    def _read(self, path: Path) -> Part[Made]:
        tensors = load_file(path)
        end = int(tensors.pop("end"))
        remarks = Remarks.from_json(json.loads(bytes(tensors.pop("remarks").tolist())))
        made = self._form.of_tensors(tensors)
        rows = {len(column) for column in tensors.values() if column.dim() == 1 or len(column)}
        asked = torch.as_tensor(list(self.indices[self.begin : end]))
        among = torch.isin(self._form.indices(made), asked)
        if not self.begin < end <= len(self.indices) or len(rows) != 1 or not bool(among.all()):
            raise ValueError(f"{path} is no part of this")
        return Part(end, made, remarks)

    def _write(self, part: Part[Made], path: Path) -> None:
        text = torch.tensor(list(json.dumps(part.remarks.to_json()).encode()), dtype=torch.uint8)
        tensors = self._form.to_tensors(part.made)
        write_safetensors(path, {**tensors, "end": torch.tensor(part.end), "remarks": text})


class Begun(Generic[Made]):
    """A pass that is made in parts, if it has to be made at all.

    Args:
        parts: Finds what there is of them, when the pass is made.
        run: Makes the pass.
    """

    def __init__(self, parts: Callable[[], Parts[Made]], run: Callable[[Parts[Made]], Made]) -> None:
        self._find = parts
        self._run = run
        self._parts: Parts[Made] | None = None

    def make(self) -> Made:
        """All of it."""
        self._parts = self._find()
        return self._run(self._parts)

    def discard(self) -> None:
        """Remove the parts, once the whole is kept."""
        if self._parts is not None:
            self._parts.discard()


def score_in_parts(
    classifier: Classifier,
    images: Images,
    progress: Progress,
    stage: str,
    parts: Parts[Outcomes],
    ranks: Ranks,
    *,
    exact: bool,
) -> Outcomes:
    """As `scoring.score`, without what is in `parts`, and adding to them.

    Several processes score in rounds of a minute, after each of which the first one keeps a part.
    """
    indices = parts.indices
    if ranks.world == 1:
        _tell_of(parts, progress, stage)
        found = [part.made for part in parts.found]
        resumed, rest = parts.begin, indices[parts.begin :]
        if rest:
            # Counted from where this run began.
            def keep(end: int, outcomes: Outcomes) -> None:
                parts.keep(resumed + end, outcomes)

            found.append(score(classifier, images, progress, stage, rest, exact=exact, keep=keep))
        return joined(found)

    def run(of_round: Sequence[int], listener: Progress) -> Outcomes:
        return score_in_shares(ranks, classifier, images, listener, stage, of_round, exact=exact)

    return joined(_in_rounds(run, images, progress, stage, parts, ranks))


def view_in_parts(
    classifier: Classifier, images: Images, progress: Progress, stage: str, parts: Parts[Views], ranks: Ranks
) -> Views:
    """As `views.view`, in rounds of a minute, without what is in `parts`, and adding to them."""

    def run(of_round: Sequence[int], listener: Progress) -> Views:
        return view_in_shares(ranks, classifier, images, listener, stage, of_round)

    return joined_views(_in_rounds(run, images, progress, stage, parts, ranks))


def _tell_of(parts: Parts[Made], progress: Progress, stage: str) -> None:
    if parts.begin:
        progress.note(f"{stage}: {parts.begin:,} of {len(parts.indices):,} images from the cache")


def _in_rounds(
    run: Callable[[Sequence[int], Progress], Made],
    images: Images,
    progress: Progress,
    stage: str,
    parts: Parts[Made],
    ranks: Ranks,
) -> list[Made]:
    """What is in `parts`, and what `run` makes of the rest, round by round; the last one is not kept: all is whole."""
    indices = parts.indices
    _tell_of(parts, progress, stage)
    found = [part.made for part in parts.found]
    # Where memory did not suffice, one process may have made its batches smaller than another.
    size = ranks.from_first(lambda: images.batch_size) * ranks.world
    batches = _FIRST_BATCHES
    with progress.stage(stage, len(indices)) as advance:
        advance(parts.begin)
        begin = parts.begin
        listener = SharedStage(progress, 1, advance, len(indices) - begin)
        while begin < len(indices):
            began = time.monotonic()
            end = min(begin + size * batches, len(indices))
            of_round = indices[begin:end]
            made = run(of_round, listener)
            if end < len(indices):
                parts.keep(end, made)
            found.append(made)
            begin = end
            seconds = max(time.monotonic() - began, 1e-3)
            if len(found) == 1 + len(parts.found) and (told := in_words(seconds * len(indices) / len(of_round))):
                progress.note(f"{stage}: {len(indices):,} images take about {told}")
            batches = ranks.from_first(lambda b=batches, s=seconds: max(int(b * _SECONDS_A_ROUND / s), 1))  # type: ignore[misc]
        advance(listener.left)
    return found
