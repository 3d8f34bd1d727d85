"""The bases of all weights of a network, made from images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sapcli.activations.capture import Capture, Usage
from sapcli.activations.moments import Basis, SecondMoment
from sapcli.activations.operands import Use
from sapcli.activations.rows import WeightView
from sapcli.activations.scoring import Classifier
from sapcli.activations.segments import Segment, disjoint_segments
from sapcli.datasets.contents import contents_of, to_text
from sapcli.datasets.images import Images
from sapcli.datasets.smaller_batches import smaller_batch
from sapcli.errors import DatasetError, NumericsError
from sapcli.machine.device import full_precision
from sapcli.machine.heap import give_back_freed_memory
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
        self._moments: dict[str, dict[WeightView, SecondMoment]] = {}
        self._gains: dict[str, set[str | None]] = {}
        self.capture = Capture(module, self._add)

    def _add(self, use: Use) -> None:
        if use.weight in self._kept or use.gain in self._kept:
            return
        self._gains.setdefault(use.weight, set()).add(use.gain)
        of_weight = self._moments.setdefault(use.weight, {})
        if use.view not in of_weight:
            of_weight[use.view] = SecondMoment(use.weight, use.view.groups, use.view.row_length, self._images)
        of_weight[use.view].add(use.rows, self._batch)

    def forward(self, images: Tensor) -> Tensor:
        """Run one batch `[n, ...]` through the network while `capture` is entered, and return its output."""
        self._batch = len(images)
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
            else reason(usage, overlapping=usage.is_projectable and name in self._moments)
            for name, usage in self.capture.usages.items()
            if name not in projectable
        }

    def gains(self) -> dict[str, str]:
        """Per parameter that gives a projectable weight its size, that weight."""
        return {gain: name for name in self._segments() for gain in self._gains[name] if gain is not None}

    def pieces(self, progress: Progress) -> dict[str, tuple[Piece, ...]]:
        """The bases, decomposed one after the other; each second moment is let go of as soon as it is."""
        projectable = self._segments()
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


def reason(usage: Usage, overlapping: bool = False) -> str:
    """Why a weight that was seen like this is not projected, in words."""
    if overlapping:
        return "used in pieces that overlap"
    if usage.transformed_by:
        return f"transformed before it multiplies activations ({_operators(usage.transformed_by)})"
    if usage.consumers:
        return f"in no matrix product or convolution with activations (read by {_operators(usage.consumers)})"
    return "not used in eval mode"


def _operators(names: set[str]) -> str:
    return ", ".join(sorted(name.removeprefix("aten.") for name in names))


def collect_bases(
    classifier: Classifier,
    images: Images,
    indices: Sequence[int],
    *,
    checkpoint: str,
    samples: str,
    progress: Progress,
    all_rows: bool = False,
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

    Raises:
        NumericsError: Activations hold NaN or infinity, or a decomposition fails; the weight is named.
        DatasetError: None of the images could be read.
    """
    moments, facts = _captured(classifier, images, indices, progress, all_rows)
    if not sum(facts.per_class):
        raise DatasetError(
            f"none of the {len(indices)} trusted images of {images.dataset.root} can be read", "choose others"
        )
    skipped, gains = moments.skipped(), moments.gains()
    return Bases(moments.pieces(progress), skipped, checkpoint, samples, facts, gains)


def _captured(
    classifier: Classifier, images: Images, indices: Sequence[int], progress: Progress, all_rows: bool
) -> tuple[SecondMoments, SampleFacts]:
    """The second moments of the samples' rows, and what the network made of the samples."""
    while True:
        moments = SecondMoments(classifier.module, None if all_rows else len(indices), classifier.loaded.kept)
        batch_size = max(images.batch_size // _TIMES_THE_MEMORY, 1)
        try:
            return moments, _run(moments, classifier, images, indices, progress, batch_size)
        except (MemoryError, RuntimeError) as error:
            # Some layers have added their rows of the batch already and others have not: all begins again.
            fitting = smaller_batch(min(batch_size, len(indices)), error, progress)
            images.batch_size = fitting * _TIMES_THE_MEMORY


def _run(
    moments: SecondMoments,
    classifier: Classifier,
    images: Images,
    indices: Sequence[int],
    progress: Progress,
    batch_size: int,
) -> SampleFacts:
    """Add the rows of all samples to `moments`."""
    per_class = torch.zeros(classifier.architecture.num_classes, dtype=torch.int64)
    contradicted = 0
    classifier.try_layout()
    with progress.stage("capturing activations", len(indices)) as advance, full_precision(), moments.capture:
        for batch in images.batches(indices, batch_size):
            with classifier.running():
                output = moments.forward(classifier.inputs(batch.images))
            predictions = classifier.check_output(output, len(batch.images)).argmax(dim=1).cpu()
            per_class += torch.bincount(batch.labels, minlength=len(per_class))
            contradicted += int((predictions != batch.labels).sum())
            advance(len(batch.indices))
    contents = to_text(contents_of(images.dataset, indices).values())
    return SampleFacts(tuple(per_class.tolist()), contradicted, contents)
