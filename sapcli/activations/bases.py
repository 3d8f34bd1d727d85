"""The bases of all weights of a network, made from images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sapcli.activations.capture import Capture
from sapcli.activations.moments import Basis, SecondMoment
from sapcli.activations.operands import Use
from sapcli.activations.rows import WeightView
from sapcli.activations.scoring import Classifier
from sapcli.activations.segments import Segment, disjoint_segments
from sapcli.activations.shared.reduction import (
    Part,
    Parts,
    all_windows,
    decomposition_cost,
    exchange,
    merge_usage,
    owners_of,
    reduce_moment,
)
from sapcli.activations.shared.shares import SharedStage
from sapcli.datasets.contents import contents_of, to_text
from sapcli.datasets.images import Images
from sapcli.datasets.smaller_batches import smaller_batch
from sapcli.errors import DatasetError, NumericsError
from sapcli.machine.device import full_precision
from sapcli.machine.heap import give_back_freed_memory
from sapcli.machine.parallel.packing import whole_batches
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import Progress

# An image takes as much more memory in float32, and with its rows, than in other passes.
_TIMES_THE_MEMORY = 2


@dataclass(frozen=True)
class Piece:
    """One window of a weight and the basis of the rows that it multiplies."""

    view: WeightView
    basis: Basis


@dataclass(frozen=True)
class SampleFacts:
    """What the forward passes told of the samples themselves.

    Attributes:
        per_class: How many there are of each class of the model.
        contradicted: How many of them the model takes for another class than their label says.
        contents: What their files contain, as `contents.to_text` writes it.
    """

    per_class: tuple[int, ...] = ()
    contradicted: int = 0
    contents: str = ""


@dataclass(frozen=True)
class Origin:
    """What bases were made with, beside the weights and the samples.

    Attributes:
        preprocessing: How the images were prepared, in the terms of timm's `pretrained_cfg`.
        code: The digest of the user's own code that builds the network; empty for a library's network.
        data: The fingerprint of the training data.
    """

    preprocessing: Mapping[str, object]
    code: str
    data: str


@dataclass(frozen=True)
class Bases:
    """What the samples say about every weight of two or more dimensions.

    Attributes:
        pieces: Per weight that multiplies activations, its windows and their bases, in the order of execution.
        skipped: Per weight that does not, the reason.
        checkpoint: The digest of the weights that the activations were made with.
        samples: The digest of the samples that were run.
        facts: What else is known of the samples.
        gains: Per parameter that gives a weight its size (weight normalisation), that weight.
        origin: What else they were made with; `None` where nobody said.
    """

    pieces: Mapping[str, tuple[Piece, ...]]
    skipped: Mapping[str, str]
    checkpoint: str
    samples: str
    facts: SampleFacts = SampleFacts()
    gains: Mapping[str, str] = field(default_factory=dict)
    origin: Origin | None = None

    def fit(self, name: str, elements: int) -> bool:
        """Whether the windows of a weight, if there are any, lie within one of so many elements."""
        return all(piece.view.lies_within(elements) for piece in self.pieces.get(name, ()))

    def require_rows(self, weights: Collection[str]) -> None:
        """Make sure that these weights have seen activations to be projected onto.

        Raises:
            NumericsError: A weight multiplied activations of no rows at all, as an expert that no sample was sent to.
        """
        for name in weights:
            if not all(piece.basis.rows for piece in self.pieces[name]):
                raise NumericsError(
                    f"{name} is used, but none of the samples' activations reached it",
                    f"give more trusted samples, or leave the weight out with --skip-layers {name}",
                )


class SecondMoments:
    """The second moments of all weights that a network's forward passes use.

    Enter `capture`, run `forward` on batches of normalised images, and ask for `pieces` or `skipped` afterwards.

    Args:
        module: The network.
        images: How many images will run in all, so that of far more rows than needed a part is taken (see `moments`);
            `None` takes all rows.
        kept: Weights that are not to be projected, with the reason.
    """

    def __init__(self, module: nn.Module, images: int | None = None, kept: Mapping[str, str] | None = None) -> None:
        self._kept = kept or {}
        self._images = images
        self._batch = 1
        self._first: int | None = None
        self._moments: dict[str, dict[WeightView, SecondMoment]] = {}
        self._gains: dict[str, set[str | None]] = {}
        self._owners: dict[str, int] = {}
        self.capture = Capture(module, self._add)

    def _add(self, use: Use) -> None:
        if use.weight in self._kept or use.gain in self._kept:
            return
        self._gains.setdefault(use.weight, set()).add(use.gain)
        of_weight = self._moments.setdefault(use.weight, {})
        if use.view not in of_weight:
            of_weight[use.view] = SecondMoment(use.weight, use.view.groups, use.view.row_length, self._images)
        of_weight[use.view].add(use.rows, self._batch, self._first)

    def forward(self, images: Tensor, first: int | None = None) -> Tensor:
        """Run one batch `[n, ...]` through the network while `capture` is entered, and return its output.

        Args:
            images: The batch.
            first: The position of its first image among all, where other processes run others of them.
        """
        self._batch, self._first = len(images), first
        return self.capture.forward(images)

    def views(self) -> dict[str, tuple[WeightView, ...]]:
        """The windows of each weight that multiply activations."""
        return {name: tuple(segment.view for segment in segments) for name, segments in self._segments().items()}

    def counts(self) -> dict[str, dict[WeightView, int]]:
        """How many rows each window of each weight has multiplied so far, per group."""
        return {
            name: {view: moment.count for view, moment in moments.items()} for name, moments in self._moments.items()
        }

    def skipped(self) -> dict[str, str]:
        """Why each remaining weight of two or more dimensions is not projected."""
        projectable, gains = self._segments(), self.gains()
        return {
            name: self._kept[name]
            if name in self._kept
            else f"the size of {gains[name]}, which it follows"
            if name in gains
            else usage.reason(overlapping=usage.is_projectable and name in self._moments)
            for name, usage in self.capture.usages.items()
            if name not in projectable
        }

    def gains(self) -> dict[str, str]:
        """Per parameter that gives a projectable weight its size, that weight."""
        return {gain: name for name in self._segments() for gain in self._gains[name] if gain is not None}

    def reduce(self, device: torch.device, ranks: Ranks) -> None:
        """Bring what all processes have seen together; of each second moment one of them, its owner, has all.

        Args:
            device: Where the network runs.
            ranks: The processes.
        """
        seen = ranks.together(self._parts)
        windows = all_windows(seen)
        for name, usage in self.capture.usages.items():
            vars(usage).update(vars(merge_usage(part.usages[name] for part in seen)))
        mine, self._moments = self._moments, {}
        owners = owners_of(windows, seen, ranks.world)
        for name, views in windows.items():
            self._gains[name] = set().union(*(part.gains.get(name, frozenset()) for part in seen))
            moments = mine.pop(name, {})
            self._moments[name] = {}
            for view in views:
                moment = moments.pop(view, None) or SecondMoment(name, view.groups, view.row_length, self._images)
                parts = [part.moments.get(name, {}).get(view) for part in seen]
                reduce_moment(moment, view, parts, owners[name], device, ranks)
                # Of the others' only the windows matter from here on.
                kept = ranks.rank == owners[name]
                self._moments[name][view] = moment if kept else SecondMoment(name, view.groups, view.row_length)
                if kept:
                    ranks.work["decomposition"] += int(decomposition_cost(view, moment.count))
        self._owners = owners

    def _parts(self) -> Parts:
        moments = {
            name: {view: Part.of(moment) for view, moment in found.items()} for name, found in self._moments.items()
        }
        return Parts(moments, {name: frozenset(gains) for name, gains in self._gains.items()}, self.capture.usages)

    def shared_pieces(self, device: torch.device, progress: Progress, ranks: Ranks) -> dict[str, tuple[Piece, ...]]:
        """As `pieces`, after `reduce`: each process decomposes what it owns."""
        owners = {name: self._owners[name] for name in self._segments()}
        own = {name for name, owner in owners.items() if owner == ranks.rank}
        made: dict[str, tuple[Piece, ...]] = {}
        ranks.together(lambda: made.update(self.pieces(progress, own)))
        mine = {name: tuple((piece.view, piece.basis) for piece in pieces) for name, pieces in made.items()}
        found = exchange(mine, owners, device, ranks)
        return {name: tuple(Piece(view, basis) for view, basis in windows) for name, windows in found.items()}

    def pieces(self, progress: Progress, names: Collection[str] | None = None) -> dict[str, tuple[Piece, ...]]:
        """The bases, decomposed one after the other; each second moment is let go of as soon as it is.

        Args:
            progress: Told of the layers done.
            names: Of which weights; of all where `None`.
        """
        projectable = {name: found for name, found in self._segments().items() if names is None or name in names}
        give_back_freed_memory()
        with progress.stage("decomposing", len(projectable), "layers") as advance:
            found = {}
            for name, segments in projectable.items():
                moments = self._moments.pop(name)
                bases = {view: moments.pop(view).basis() for view in list(moments)}
                found[name] = tuple(Piece(segment.view, _basis_of(name, segment, bases)) for segment in segments)
                advance(1)
        return found

    def _segments(self) -> dict[str, tuple[Segment, ...]]:
        """The pieces of each weight that can be projected."""
        divided = {
            name: disjoint_segments(views)
            for name, views in self._moments.items()
            if self.capture.usages[name].is_projectable and len(self._gains[name]) == 1
        }
        return {name: segments for name, segments in divided.items() if segments}


def _basis_of(name: str, segment: Segment, bases: Mapping[WeightView, Basis]) -> Basis:
    """The basis of all rows that a segment multiplies, from those of the uses that it belongs to."""
    parts = []
    for view, group in segment.sources:
        basis = bases[view]
        if group is None:
            return basis
        parts.append(Basis(basis.vectors[group : group + 1], basis.values[group : group + 1], basis.rows))
    together = SecondMoment(name, 1, segment.view.row_length)
    for part in parts:
        # The rows diag(sigma) U^T have the second moment U diag(sigma^2) U^T of the rows that were seen.
        together.add((part.vectors * part.values.sqrt().unsqueeze(1)).mT)
    return replace(together.basis(), rows=sum(part.rows for part in parts))


def collect_bases(
    classifier: Classifier,
    images: Images,
    indices: Sequence[int],
    *,
    checkpoint: str,
    samples: str,
    progress: Progress,
    all_rows: bool = False,
    ranks: Ranks | None = None,
) -> Bases:
    """Run images through the network and decompose the second moments of the rows that every weight multiplies.

    Args:
        classifier: The network; unchanged afterwards.
        images: The dataset's images.
        indices: Which of them.
        checkpoint: The digest of the classifier's weights.
        samples: The digest of the samples at `indices`.
        progress: Told of the images and layers done.
        all_rows: Whether to sum all rows, also where a part of them is enough (see `moments`).
        ranks: The processes that share the images and the decompositions.

    Raises:
        NumericsError: Activations hold NaN or infinity, or a decomposition fails; the weight is named.
        DatasetError: None of the images could be read.
    """
    ranks = ranks or Ranks()
    moments, facts = _captured(classifier, images, indices, progress, all_rows, ranks)
    if not sum(facts.per_class):
        raise DatasetError(
            f"none of the {len(indices)} trusted images of {images.dataset.root} can be read", "choose others"
        )
    skipped, gains = moments.skipped(), moments.gains()
    pieces = moments.pieces(progress) if ranks.world == 1 else moments.shared_pieces(classifier.device, progress, ranks)
    return Bases(pieces, skipped, checkpoint, samples, facts, gains)


def _captured(
    classifier: Classifier,
    images: Images,
    indices: Sequence[int],
    progress: Progress,
    all_rows: bool,
    ranks: Ranks,
) -> tuple[SecondMoments, SampleFacts]:
    """The second moments of the samples' rows, and what the network made of the samples."""
    if ranks.world == 1:
        moments, facts = _share_of(classifier, images, indices, range(len(indices)), progress, all_rows, ranks)
    else:
        own: list[SecondMoments] = []
        # Where memory did not suffice, one process may have made its batches smaller than another.
        batch_size = max(ranks.from_first(lambda: images.batch_size) // _TIMES_THE_MEMORY, 1)
        positions = whole_batches(len(indices), batch_size, ranks.rank, ranks.world)

        def mine() -> SampleFacts:
            moments, facts = _share_of(classifier, images, indices, positions, shared, all_rows, ranks)
            own.append(moments)
            return facts

        with progress.stage("capturing activations", len(indices)) as advance:
            shared = SharedStage(progress, ranks.world, advance, len(indices))
            shares = ranks.together(mine)
            advance(shared.left)
        (moments,) = own
        moments.reduce(classifier.device, ranks)
        per_class = [sum(counts) for counts in zip(*(share.per_class for share in shares), strict=True)]
        facts = SampleFacts(tuple(per_class), sum(share.contradicted for share in shares))
    contents = to_text(contents_of(images.dataset, indices).values())
    return moments, replace(facts, contents=contents)


def _share_of(
    classifier: Classifier,
    images: Images,
    indices: Sequence[int],
    positions: Sequence[int],
    progress: Progress,
    all_rows: bool,
    ranks: Ranks,
) -> tuple[SecondMoments, SampleFacts]:
    """The second moments of the samples at some positions, begun again where a batch does not fit into memory."""
    while True:
        moments = SecondMoments(classifier.module, None if all_rows else len(indices), classifier.loaded.kept)
        batch_size = max(images.batch_size // _TIMES_THE_MEMORY, 1)
        try:
            return moments, _run(moments, classifier, images, indices, positions, progress, batch_size, ranks)
        except (MemoryError, RuntimeError) as error:
            # Some layers have added their rows of the batch already and others have not: all begins again.
            fitting = smaller_batch(min(batch_size, len(indices)), error, progress)
            images.batch_size = fitting * _TIMES_THE_MEMORY


def _run(
    moments: SecondMoments,
    classifier: Classifier,
    images: Images,
    indices: Sequence[int],
    positions: Sequence[int],
    progress: Progress,
    batch_size: int,
    ranks: Ranks,
) -> SampleFacts:
    """Add the rows of the samples at some positions to `moments`."""
    per_class = torch.zeros(classifier.architecture.num_classes, dtype=torch.int64)
    contradicted = 0
    classifier.try_layout()
    position_of = {indices[position]: position for position in positions} if ranks.world > 1 else {}
    chosen = [indices[position] for position in positions]
    with progress.stage("capturing activations", len(chosen)) as advance, full_precision(), moments.capture:
        for batch in images.batches(chosen, batch_size):
            first = position_of.get(int(batch.indices[0]))
            with classifier.running():
                output = moments.forward(classifier.inputs(batch.images), first)
            predictions = classifier.check_output(output, len(batch.images)).argmax(dim=1).cpu()
            per_class += torch.bincount(batch.labels, minlength=len(per_class))
            contradicted += int((predictions != batch.labels).sum())
            advance(len(batch.indices))
    return SampleFacts(tuple(per_class.tolist()), contradicted)
