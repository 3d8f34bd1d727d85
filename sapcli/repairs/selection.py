"""The trusted set: the samples whose labels the model itself finds believable, as many of each class."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sapcli.activations.scoring import Classifier, cross_entropies
from sapcli.activations.shared.shares import merge_remarks
from sapcli.datasets.dataset import Dataset
from sapcli.datasets.images import Batch, Images, Remarks
from sapcli.datasets.labels.marked_samples import MarkedSamples
from sapcli.datasets.smaller_batches import in_portions
from sapcli.errors import ArchitectureError, DatasetError
from sapcli.machine.out_of_memory import is_out_of_memory
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import Progress
from sapcli.machine.text import in_one_line
from sapcli.networks.own.outputs import WITHOUT_GRADIENT, require_gradient

# The finite difference of the published procedure: its step, and the number of random directions.
_CURVATURE_STEP = 1e-3
_CURVATURE_DRAWS = 10
# Python refuses to convert longer numbers, and no list has so many samples, or a float so large a loss.
_MOST_DIGITS = 18
_LARGEST_LOSS = 1e18
# How many more candidates than needed there are after a first scoring in bfloat16, which moves a sample by a few ranks:
# on noisy CIFAR-10 the last one of a hundred of each class was never further down than the 105th.
_MARGIN = 1.25
_FEW_MORE = 16


@dataclass(frozen=True)
class TrustedSample:
    """One sample of a trusted set; `index` is its position in the dataset, `loss` its cross-entropy where known."""

    index: int
    path: str
    label: str
    loss: float | None = None


@dataclass(frozen=True)
class TrustedSet:
    """Samples whose labels we believe, by ascending index."""

    samples: tuple[TrustedSample, ...]

    @property
    def indices(self) -> tuple[int, ...]:
        """Positions in the dataset, ascending."""
        return tuple(sample.index for sample in self.samples)

    @property
    def digest(self) -> str:
        """A hash of which samples they are: SHA-256 over indices, paths and labels."""
        rows = [[sample.index, sample.path, sample.label] for sample in self.samples]
        return hashlib.sha256(json.dumps(rows).encode("utf-8", "surrogateescape")).hexdigest()

    def to_json_lines(self) -> str:
        """One JSON object a sample and line: `index`, `path`, `label`, `loss`."""
        return "".join(json.dumps(_as_row(sample)) + "\n" for sample in self.samples)


def _as_row(sample: TrustedSample) -> dict[str, object]:
    row: dict[str, object] = {"index": sample.index, "path": sample.path, "label": sample.label}
    return row if sample.loss is None else row | {"loss": sample.loss}


@dataclass(frozen=True)
class Shares:
    """How many samples each class gives; `short` names the classes that have fewer than their even share."""

    counts: tuple[int, ...]
    short: tuple[int, ...]


def balanced_shares(available: Sequence[int], total: int) -> Shares:
    """Divide `total` samples evenly over classes that have `available` samples each.

    A class that has fewer than its share gives all that it has, and what it lacks is divided over the others. What an
    even division leaves over goes to the first classes.
    """
    counts = [0] * len(available)
    missing = min(total, sum(available))
    while missing:
        open_classes = [position for position, limit in enumerate(available) if counts[position] < limit]
        share = max(missing // len(open_classes), 1)
        for position in open_classes:
            given = min(share, available[position] - counts[position], missing)
            counts[position] += given
            missing -= given
    even = total // max(len(available), 1)
    return Shares(tuple(counts), tuple(position for position, limit in enumerate(available) if limit < even))


def class_balanced_lowest(scores: Tensor, labels: Tensor, counts: Sequence[int]) -> Tensor:
    """The positions of the `counts[c]` lowest scores of each class `c`, ascending; ties go to the earlier sample.

    Args:
        scores: `[n]`.
        labels: Class of each score, int64 `[n]`.
        counts: How many of each class.
    """
    by_score = scores.argsort(stable=True)
    ordered = by_score[labels[by_score].argsort(stable=True)]
    sizes = torch.bincount(labels, minlength=len(counts))
    ranks = torch.arange(len(ordered)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return ordered[ranks < torch.tensor(counts).repeat_interleave(sizes)].sort().values


def select_lowest(
    dataset: Dataset,
    indices: Tensor,
    scores: Tensor,
    count: int,
    losses: Tensor | None,
    progress: Progress,
) -> TrustedSet:
    """The class-balanced trusted set of the lowest `scores`.

    Args:
        dataset: The dataset that `indices` point into.
        indices: The candidates, int64 `[n]`.
        scores: What is to be low, `[n]`.
        count: How many samples in all.
        losses: The candidates' cross-entropy, `[n]`, to be noted where it is known.
        progress: Told of classes with fewer samples than their share.

    Raises:
        DatasetError: There is no candidate.
    """
    if not len(indices):
        raise DatasetError(
            f"no image of {dataset.root} is left to select trusted samples from",
            "give a folder with readable training images that are not also validation images",
        )
    labels = torch.tensor(dataset.labels)[indices]
    available = torch.bincount(labels, minlength=len(dataset.classes)).tolist()
    shares = balanced_shares(available, count)
    if shares.short:
        names = ", ".join(f"{dataset.classes[c]} ({available[c]})" for c in shares.short)
        progress.note(f"classes with fewer samples than an even share of {count}: {names}; the others give more")
    if sum(available) < count:
        progress.note(f"{sum(available)} trusted samples instead of {count}: there are no more")
    chosen = class_balanced_lowest(scores, labels, shares.counts)
    samples = []
    for position in chosen.tolist():
        index = int(indices[position])
        loss = None if losses is None else _rounded(float(losses[position]))
        samples.append(TrustedSample(index, dataset.paths[index], dataset.classes[dataset.labels[index]], loss))
    return TrustedSet(tuple(samples))


def _rounded(loss: float) -> float:
    """To six places, and a small one to six digits."""
    return float(f"{loss:.6g}") if loss < 1 else round(loss, 6)


def likely_lowest(dataset: Dataset, indices: Tensor, scores: Tensor, count: int) -> list[int]:
    """The samples among which those of `select_lowest` are, when `scores` are only about right.

    Args:
        dataset: The dataset that `indices` point into.
        indices: The candidates, int64 `[n]`.
        scores: What is to be low, `[n]`, with an error of a few percent.
        count: How many samples will be selected.

    Returns:
        Indices, ascending: of each class those with the lowest scores, a quarter more than it will give and a few.
    """
    labels = torch.tensor(dataset.labels)[indices]
    shares = balanced_shares(torch.bincount(labels, minlength=len(dataset.classes)).tolist(), count)
    wide = [math.ceil(_MARGIN * share) + _FEW_MORE for share in shares.counts]
    found: list[int] = indices[class_balanced_lowest(scores, labels, wide)].tolist()
    return found


def random_scores(count: int, seed: int) -> Tensor:
    """A seeded uniform score for each of `count` samples, `[count]`."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curvatures(
    classifier: Classifier, images: Images, progress: Progress, seed: int, indices: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """The input-loss curvature of each readable sample.

    `mean_v || grad_x L(x + h v) - grad_x L(x) ||^2` over 10 random sign directions `v`, `h = 1e-3`, in normalised input
    space; the rank is the same as with the published procedure's norms. All samples are moved along the same
    directions, so that a sample's curvature does not depend on its batch.

    Returns:
        The samples' indices, int64 `[n]`, and their curvatures, float32 `[n]`.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (_CURVATURE_DRAWS, *classifier.architecture.preprocessing.input_size)
    directions = torch.randint(0, 2, shape, generator=generator).to(classifier.device, torch.float32) * 2 - 1
    classifier.ensure_eval()

    def gradient(inputs: Tensor, labels: Tensor) -> Tensor:
        inputs = inputs.detach().requires_grad_()
        logits = classifier.check_output(classifier.forward(inputs), len(inputs))
        require_gradient(logits, classifier.architecture.name)
        loss = cross_entropies(logits, labels).sum()
        try:
            return torch.autograd.grad(loss, inputs)[0]
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            name = classifier.architecture.name
            raise ArchitectureError(
                f"{name} cannot be differentiated: {in_one_line(error)}", WITHOUT_GRADIENT
            ) from error

    def curvature(batch: Batch) -> Tensor:
        inputs, labels = classifier.inputs(batch.images), batch.labels.to(classifier.device)
        total = torch.zeros(len(inputs), device=classifier.device)
        with classifier.running():
            at_sample = gradient(inputs, labels)
            for direction in directions:
                moved = gradient(inputs + _CURVATURE_STEP * direction, labels)
                total += (moved - at_sample).flatten(1).square().sum(dim=1)
        return total.cpu() / _CURVATURE_DRAWS

    found: list[Tensor] = []
    values: list[Tensor] = []
    total = len(images.dataset.paths) if indices is None else len(indices)
    with progress.stage("measuring curvature", total) as advance:
        for batch in images.batches(indices):
            found.append(batch.indices)
            values += in_portions(curvature, batch, images, progress)
            advance(len(batch.indices))
    if not found:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    return torch.cat(found), torch.cat(values)


def shared_curvatures(
    ranks: Ranks, classifier: Classifier, images: Images, progress: Progress, seed: int, indices: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """As `curvatures`, of images that several processes share."""
    if ranks.world == 1:
        return curvatures(classifier, images, progress, seed, indices)
    share = ranks.share(indices)

    def mine() -> tuple[tuple[Tensor, Tensor], Remarks]:
        return curvatures(classifier, images, progress, seed, share), images.remarks(share)

    parts = ranks.together(mine)
    merge_remarks(images, [remarks for _, remarks in parts], len(indices), indices)
    found, values = (torch.cat(column) for column in zip(*(each for each, _ in parts), strict=True))
    order = found.argsort()
    return found[order], values[order]


def marked_samples(marked: MarkedSamples, source: str, dataset: Dataset) -> TrustedSet:
    """The samples that a list with a yes or no for each means.

    Args:
        marked: The list.
        source: Its name, for errors.
        dataset: What the samples are looked up in.

    Raises:
        DatasetError: The list is about other samples, or means none.
    """
    if not marked.has_names and marked.total != len(dataset.paths):
        raise DatasetError(
            f"{source} has {marked.total:,} lines without a path, and {dataset.root} has {len(dataset.paths):,} images",
            "give a line for each training image, in the order of the sorted paths, or a column with their paths",
        )
    rows = (json.dumps({"path": key} if isinstance(key, str) else {"index": key}) for _number, key in marked.lines)
    numbers = [number for number, _key in marked.lines]
    return parse_trusted(rows, source, dataset, numbers)


def parse_trusted(
    lines: Iterable[str], source: str, dataset: Dataset, numbers: Sequence[int] | None = None
) -> TrustedSet:
    """A trusted set from text: JSON Lines, or a plain list of paths or of indices, one a line.

    Args:
        lines: The text's lines.
        source: Its name, for errors.
        dataset: What the samples are looked up in.
        numbers: The numbers of the lines, where some are left out.

    Raises:
        DatasetError: Naming the line that cannot be read, is out of range, doubled, or of another dataset.
    """
    by_path = {path: index for index, path in enumerate(dataset.paths)}
    samples: dict[int, TrustedSample] = {}
    for number, line in enumerate(lines, start=1) if numbers is None else zip(numbers, lines, strict=True):
        text = line.strip("\r\n")
        if not text.strip():
            continue
        where = f"{source}, line {number}"
        row = _parse_row(text, where)
        index = _locate(row, by_path, dataset, where)
        if index in samples:
            raise DatasetError(f"{where}: {dataset.paths[index]} stands there twice", "name each sample once")
        loss = row.get("loss")
        samples[index] = TrustedSample(
            index,
            dataset.paths[index],
            dataset.classes[dataset.labels[index]],
            # A number that is no loss is not worth an error.
            float(loss) if isinstance(loss, int | float) and abs(loss) < _LARGEST_LOSS else None,
        )
    if not samples:
        raise DatasetError(f"{source} names no sample", "write one with `sap select`, or list paths or indices")
    return TrustedSet(tuple(samples[index] for index in sorted(samples)))


def _parse_row(text: str, where: str) -> dict[str, object]:
    """One line as an object with `index` or `path`."""
    if not text.lstrip().startswith("{"):
        stripped = text.strip()
        is_index = stripped.isascii() and stripped.isdigit() and len(stripped) <= _MOST_DIGITS
        return {"index": int(stripped)} if is_index else {"path": text}
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{where} is not JSON: {error}", 'write {"index": 3, "path": "train/cat/1.png"} on each line'
        ) from error
    if not isinstance(row, dict) or not ({"index", "path"} & row.keys()):
        raise DatasetError(f'{where} has neither "index" nor "path"', "each line needs one of them")
    return row


def _locate(row: dict[str, object], by_path: dict[str, int], dataset: Dataset, where: str) -> int:
    """The index of the sample that `row` names."""
    path, index = row.get("path"), row.get("index")
    if path is not None:
        found = by_path.get(str(path))
        if found is None and dataset.split is not None:
            found = by_path.get(f"{dataset.split}/{path}")
        if found is None:
            raise DatasetError(
                f"{where} names {path}, which is not among the {len(dataset.paths)} images of {dataset.root}",
                "give the list that belongs to this data folder; paths are relative to it",
            )
        return found
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(dataset.paths):
        raise DatasetError(
            f"{where} has index {index}, expected 0 to {len(dataset.paths) - 1}",
            f"give the list that belongs to {dataset.root}",
        )
    return index
