"""What the review page shows of each suspect: likely classes, look-alikes, and the labels that its file repeats."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sapcli.activations.views import Views
from sapcli.datasets.dataset import Dataset
from sapcli.datasets.labels.label_files import read_labels
from sapcli.repairs.evidence.label_chances import LabelChances
from sapcli.repairs.evidence.look_alikes import Copies, nearest, trusted_rows
from sapcli.repairs.evidence.suspects import label_file_of
from sapcli.repairs.session import Session
from sapcli.reports.review_page import ReviewItem

MOST_ON_PAGE = 5000


def review_items(views: Views, chances: LabelChances, rows: Tensor, classes: int, copies: Copies) -> list[ReviewItem]:
    """What is shown of the samples in some rows of the views, in this order.

    Args:
        views: What the network makes of all samples.
        chances: How likely each label is wrong.
        rows: Those to decide on, int64.
        classes: The number of classes.
        copies: The samples that show the same picture under another label, by index.
    """
    outcomes = views.outcomes
    trusted = trusted_rows(views, chances.wrong, classes)
    items = []
    for row in rows.tolist():
        index, given = int(outcomes.indices[row]), int(outcomes.labels[row])
        choices = tuple(each for each in chances.likely[row].tolist() if each != given)
        if not choices:
            choices = (next(each for each in range(classes) if each != given),)
        near = tuple(
            tuple(int(outcomes.indices[other]) for other in nearest(views, row, trusted[label]))
            for label in (given, choices[0])
        )
        items.append(
            ReviewItem(
                index=index,
                given=given,
                choices=choices,
                contradicted=not bool(outcomes.correct[row]),
                score=float(outcomes.losses[row]),
                chance=float(chances.wrong[row]),
                near=(near[0], near[1]),
                same=tuple(copies.get(index, ())),
            )
        )
    return items


def repeated_labels(session: Session, shown: Sequence[int]) -> dict[str, int] | None:
    """The labels that a file of decisions has to hold beside them, by path; -1 for images without one.

    It takes the place of the file that the labels come from, so it repeats what that says of all other images: of the
    training images, of validation and test images, and of those that have no label.

    Args:
        session: The run.
        shown: The indices of the samples on the page, which it needs not repeat.

    Returns:
        `None` where the labels come from class folders: images that a label file does not name keep theirs.
    """
    file = label_file_of(session.source)
    if file is None:
        return None
    dataset = session.training
    on_page = set(shown)
    labels: dict[str, int] = {}
    for each in (dataset, session.validation if session.source.validation is None else None, session.test):
        for index, path in enumerate(each.paths if each is not None and each.root == dataset.root else ()):
            assert each is not None
            if each is not dataset or index not in on_page:
                labels.setdefault(path, each.labels[index])
    known = set(labels) | {dataset.paths[index] for index in on_page}
    for path in _unlabelled(file, dataset):
        if path not in known:
            labels[path] = -1
    # A name that is not UTF-8 cannot stand in a label file.
    return {path: label for path, label in labels.items() if can_be_written(path)}


def can_be_written(path: str) -> bool:
    """Whether a path can stand in a label file, which is UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unlabelled(file: Path, dataset: Dataset) -> list[str]:
    """The paths from the data folder on of the images that a label file says to have no label."""
    root = Path(os.path.realpath(dataset.root))
    found: list[str] = []
    # What came through a pipe is gone.
    if not file.is_file():
        return found
    for row in read_labels(file).rows:
        if not row.is_unlabelled:
            continue
        places = (file.parent, dataset.root, dataset.root / (dataset.split or "."))
        for place in places:
            image = Path(os.path.realpath(place)) / row.path
            if image.is_file() and image.is_relative_to(root):
                found.append(image.relative_to(root).as_posix())
                break
    return found


def estimate_as_json(chances: LabelChances, dataset: Dataset, samples: int) -> Mapping[str, object]:
    """How many labels are likely wrong, for programs."""
    share = chances.share
    return {
        "format": "sap.label-noise/1",
        "samples": samples,
        "share": {"value": share.value, "low": share.low, "high": share.high},
        "pairs": [
            {
                "given": dataset.classes[pair.given],
                "true": dataset.classes[pair.true],
                "count": pair.count.value,
                "low": pair.count.low,
                "high": pair.count.high,
            }
            for pair in chances.pairs
        ],
        "calibrated_on": chances.source,
        "doubts": list(chances.doubts),
    }
