"""Images that look like others: the same picture under two labels, and the trusted images that are nearest.

The same picture is found by what its file holds, and by what it shows: two images count as one picture where both their
16 x 16 grey versions, without mean and of unit length, and the features that the network makes of them point the same
way. Only suspects are compared by what they show, each with every image: of two labels of one picture one is wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sapcli.activations.views import Views
from sapcli.datasets.dataset import Dataset

# Cosines from which on two images show the same picture, in pixels and in features both: other pictures come near to
# one of them now and then. Chosen by judgement, not fitted to known duplicates.
_SAME_PIXELS, _SAME_FEATURES = 0.985, 0.9
# Grey values that differ less than this are a blank picture, which is like any other blank one.
_LEAST_CONTRAST = 4.0
_MOST_PAIRS = 400_000_000
_BLOCK = 256
_MOST_TRUSTED, _FEWEST_OF_CLASS, _MOST_OF_CLASS = 4000, 5, 100

Copies = Mapping[int, tuple[int, ...]]
"""For a sample's index, those of the samples that show the same picture and have another label."""


def copies_by_content(dataset: Dataset) -> Copies:
    """The samples whose files hold the same bytes under different labels."""
    contents = dataset.digests.of(dataset.root, dataset.paths, keep=not dataset.unpacked)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, content in enumerate(contents):
        if content:
            groups[content].append(index)
    return _conflicting(dataset, (group for group in groups.values() if len(group) > 1))


def _conflicting(dataset: Dataset, groups: Iterable[Sequence[int]]) -> dict[int, tuple[int, ...]]:
    copies: dict[int, tuple[int, ...]] = {}
    for group in groups:
        for index in group:
            others = tuple(other for other in group if dataset.labels[other] != dataset.labels[index])
            if others:
                copies[index] = others
    return copies


def copies_by_look(views: Views, rows: Sequence[int]) -> Copies | None:
    """The samples that show the same picture under different labels, of which one is in some rows of the views.

    Returns:
        By the sample's index; `None` where there are too many to compare, or no features.
    """
    count = len(views.outcomes)
    if len(rows) * count > _MOST_PAIRS or not views.has_features:
        return None
    pixels = views.pixels.float()
    contrast = pixels.std(dim=1)
    pixels = nn.functional.normalize(pixels - pixels.mean(dim=1, keepdim=True), dim=1)
    pixels[contrast < _LEAST_CONTRAST] = 0
    labels, indices = views.outcomes.labels, views.outcomes.indices
    found: dict[int, set[int]] = defaultdict(set)
    for start in range(0, len(rows), _BLOCK):
        block = torch.tensor(rows[start : start + _BLOCK], dtype=torch.int64)
        alike = pixels[block] @ pixels.T >= _SAME_PIXELS
        alike &= labels[block].unsqueeze(1) != labels
        for position, other in alike.nonzero().tolist():
            row = int(block[position])
            cosine = float(views.features[row].float() @ views.features[other].float())
            if cosine >= _SAME_FEATURES:
                found[int(indices[row])].add(int(indices[other]))
                found[int(indices[other])].add(int(indices[row]))
    return {index: tuple(sorted(others)) for index, others in found.items()}


def merged(*found: Copies) -> Copies:
    """Copies that were found in several ways."""
    together: dict[int, set[int]] = defaultdict(set)
    for copies in found:
        for index, others in copies.items():
            together[index].update(others)
    return {index: tuple(sorted(others)) for index, others in sorted(together.items())}


def trusted_rows(views: Views, wrong: Tensor, classes: int) -> list[Tensor]:
    """Of each class the rows of the images that are most surely of it: those that the model agrees with.

    Args:
        views: All images.
        wrong: The chance that each one's label is wrong, `[n]`.
        classes: The number of classes.
    """
    most = min(max(_MOST_TRUSTED // max(classes, 1), _FEWEST_OF_CLASS), _MOST_OF_CLASS)
    outcomes = views.outcomes
    trusted = []
    for label in range(classes):
        rows = ((outcomes.labels == label) & outcomes.correct & (wrong < 0.5)).nonzero().flatten()
        trusted.append(rows[outcomes.losses[rows].argsort(stable=True)[:most]])
    return trusted


def nearest(views: Views, row: int, candidates: Tensor, count: int = 3) -> list[int]:
    """The rows among `candidates` whose features are nearest to those of `row` by their cosine, the nearest first."""
    if not views.has_features or not len(candidates):
        return []
    others = candidates[candidates != row]
    cosines = views.features[others].float() @ views.features[row].float()
    return [int(others[position]) for position in cosines.topk(min(count, len(others))).indices]
