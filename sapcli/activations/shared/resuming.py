"""Scores kept in parts while they come, so that a run that was killed goes on where it was.

A part holds the outcomes of some of the images that were asked for, one after the other, and begins where the part
before it ended. Parts end with a batch, so that the batches are the same whether a run was killed or not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from sapcli.activations.scoring import Classifier, Outcomes, in_words, joined, score
from sapcli.activations.shared.shares import score_in_shares
from sapcli.checkpoints.saving import write_safetensors
from sapcli.datasets.images import Images, Remarks
from sapcli.machine.cache import Cache
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import Progress

KIND = "parts"
# How many batches each process scores first, and how long a round shall be once it is known how long one takes.
_FIRST_BATCHES, _SECONDS_A_ROUND = 4, 60.0


@dataclass(frozen=True)
class Part:
    """What a network made of some images.

    Attributes:
        end: How many of the images that were asked for are done with it.
        outcomes: Of the images since the part before.
        remarks: What there is to be said of these images.
    """

    end: int
    outcomes: Outcomes
    remarks: Remarks


class Parts:
    """The parts of one scoring, in the cache.

    Args:
        cache: The cache.
        key: All that the outcomes depend on.
        images: The images.
        indices: Which of them.
    """

    def __init__(self, cache: Cache, key: Mapping[str, object], images: Images, indices: Sequence[int]) -> None:
        self._cache = cache
        self._key = key
        self._images = images
        self.indices = indices
        self.begin = 0
        self.found: list[Part] = []
        while (part := self._cache.find(KIND, self._of(self.begin), self._read)) is not None:
            self.found.append(part)
            self.begin = part.end
        self._begins = [0, *(part.end for part in self.found[:-1])] if self.found else []
        for part in self.found:
            images.add_remarks(part.remarks)

    def _of(self, begin: int) -> dict[str, object]:
        return {**self._key, "begin": begin}

    def keep(self, end: int, outcomes: Outcomes) -> None:
        """Keep a part that begins where the one before has ended."""
        part = Part(end, outcomes, self._images.remarks(self.indices[self.begin : end]))
        self._cache.keep(KIND, self._of(self.begin), part, _write)
        self._begins.append(self.begin)
        self.begin = end

    def discard(self) -> None:
        """Remove the parts: what they are parts of is whole."""
        for begin in self._begins:
            self._cache.discard(KIND, self._of(begin))

    def _read(self, path: Path) -> Part:
        tensors = load_file(path)
        end = int(tensors.pop("end"))
        remarks = Remarks.from_json(json.loads(bytes(tensors.pop("remarks").tolist())))
        outcomes = Outcomes(**tensors)
        columns = {len(column) for column in vars(outcomes).values()}
        among = torch.isin(outcomes.indices, torch.as_tensor(list(self.indices[self.begin : end])))
        if not self.begin < end <= len(self.indices) or len(columns) != 1 or not bool(among.all()):
            raise ValueError(f"{path} is no part of this")
        return Part(end, outcomes, remarks)


def _write(part: Part, path: Path) -> None:
    text = torch.tensor(list(json.dumps(part.remarks.to_json()).encode()), dtype=torch.uint8)
    write_safetensors(path, {**vars(part.outcomes), "end": torch.tensor(part.end), "remarks": text})


def score_in_parts(
    classifier: Classifier,
    images: Images,
    progress: Progress,
    stage: str,
    parts: Parts,
    ranks: Ranks,
    *,
    exact: bool,
) -> Outcomes:
    """As `scoring.score`, without what is in `parts`, and adding to them.

    Several processes score in rounds of a minute, after each of which the first one keeps a part.
    """
    indices = parts.indices
    if parts.begin:
        progress.note(f"{stage}: {parts.begin:,} of {len(indices):,} images from the cache")
    found = [part.outcomes for part in parts.found]
    if ranks.world == 1:
        resumed, rest = parts.begin, indices[parts.begin :]
        if rest:
            # Counted from where this run began.
            def keep(end: int, outcomes: Outcomes) -> None:
                parts.keep(resumed + end, outcomes)

            found.append(score(classifier, images, progress, stage, rest, exact=exact, keep=keep))
        return joined(found)
    # Where memory did not suffice, one process may have made its batches smaller than another.
    size = ranks.from_first(lambda: images.batch_size) * ranks.world
    batches = _FIRST_BATCHES
    with progress.stage(stage, len(indices)) as advance:
        advance(parts.begin)
        while parts.begin < len(indices):
            began = time.monotonic()
            end = min(parts.begin + size * batches, len(indices))
            of_round = indices[parts.begin : end]
            outcomes = score_in_shares(ranks, classifier, images, progress, stage, of_round, exact=exact)
            parts.keep(end, outcomes)
            found.append(outcomes)
            advance(len(of_round))
            seconds = max(time.monotonic() - began, 1e-3)
            if len(found) == 1 + len(parts.found) and (told := in_words(seconds * len(indices) / len(of_round))):
                progress.note(f"{stage}: {len(indices):,} images take about {told}")
            batches = ranks.from_first(lambda b=batches, s=seconds: max(int(b * _SECONDS_A_ROUND / s), 1))  # type: ignore[misc]
    return joined(found)
