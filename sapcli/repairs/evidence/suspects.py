"""The training samples whose labels a model contradicts, and how well that finds the wrong ones."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sapcli.activations.scoring import Outcomes
from sapcli.datasets.classes import ClassNames
from sapcli.datasets.dataset import Dataset
from sapcli.datasets.labels.label_files import LABEL_SUFFIXES, LabelFile, read_labels
from sapcli.errors import DatasetError
from sapcli.machine.files import write_error
from sapcli.machine.text import escaped, json_array
from sapcli.settings import DataSource, SuspectsFormat


@dataclass(frozen=True)
class Suspect:
    """A sample whose label is probably wrong.

    Attributes:
        path: Of the image, relative to the data folder.
        given: The label that it has.
        suggested: The class that the model takes it for.
        score: How strongly the model contradicts the label: the cross-entropy with it, in nats.
        chance: That the label is wrong, in [0, 1]; `None` where it was not estimated.
        duplicates: Images that show the same picture and have another label.
    """

    path: str
    given: str
    suggested: str
    score: float
    chance: float | None = None
    duplicates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Detection:
    """How well suspicion finds wrong labels.

    Attributes:
        samples: How many samples have a known truth.
        wrong: How many of their labels are wrong.
        found: How many of the wrong ones are suspects.
        precision: The part of the suspects whose label is wrong, in [0, 1]; NaN without suspects.
        recall: The part of the wrong labels that are suspects, in [0, 1]; NaN without wrong labels.
        area: Area under the ROC curve of the score over all samples, in [0, 1]; NaN where all labels are of one kind.
    """

    samples: int
    wrong: int
    found: int
    precision: float
    recall: float
    area: float


def rank_suspects(
    dataset: Dataset, outcomes: Outcomes, count: int | None = None, min_score: float = 0.0
) -> tuple[Suspect, ...]:
    """The samples that the model takes for another class than their label says, the most suspicious first.

    Args:
        dataset: The samples.
        outcomes: What the model made of them.
        count: At most so many.
        min_score: Only those with at least this score.
    """
    rows = by_suspicion(outcomes, ~outcomes.correct & (outcomes.losses >= min_score))
    return suspects_in(dataset, outcomes, rows[:count])


def by_suspicion(outcomes: Outcomes, chosen: Tensor) -> Tensor:
    """The rows that are chosen, bool `[n]`, the most suspicious first, int64."""
    rows = chosen.nonzero().flatten()
    return rows[outcomes.losses[rows].argsort(descending=True, stable=True)]


def without_most_of_a_class(outcomes: Outcomes, rows: Tensor, share: float) -> tuple[Tensor, dict[int, int]]:
    """Suspects of which no class has more than a share of its samples, so that acting on the list empties none.

    Args:
        outcomes: What the model made of all samples.
        rows: The suspects, the most suspicious first.
        share: Of the samples with a label, at most so many are kept, in (0, 1].

    Returns:
        The rows that stay, in their order; and for each class how many were left out.
    """
    labels = outcomes.labels[rows]
    sizes = torch.bincount(outcomes.labels) if len(outcomes) else torch.zeros(0, dtype=torch.int64)
    stays = torch.ones(len(rows), dtype=torch.bool)
    left_out: dict[int, int] = {}
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        beyond = members[int(share * int(sizes[label])) :]
        if len(beyond):
            stays[beyond] = False
            left_out[label] = len(beyond)
    return rows[stays], left_out


def suspects_in(
    dataset: Dataset,
    outcomes: Outcomes,
    rows: Tensor,
    chances: Tensor | None = None,
    copies: Mapping[int, Sequence[int]] | None = None,
) -> tuple[Suspect, ...]:
    """The samples in some rows of the outcomes, in this order.

    Args:
        dataset: The samples.
        outcomes: What the model made of them.
        rows: Which, int64.
        chances: The chance that each row's label is wrong, `[n]`.
        copies: By index, the samples that show the same picture under another label.
    """
    suspects = []
    for row in rows.tolist():
        index = int(outcomes.indices[row])
        suspects.append(
            Suspect(
                dataset.paths[index],
                dataset.classes[int(outcomes.labels[row])],
                dataset.classes[int(outcomes.predictions[row])],
                round(float(outcomes.losses[row]), 6),
                None if chances is None else round(float(chances[row]), 4),
                tuple(dataset.paths[other] for other in (copies or {}).get(index, ())),
            )
        )
    return tuple(suspects)


def label_file_of(source: DataSource) -> Path | None:
    """The file that the labels come from; `None` where they are those of class folders."""
    if source.labels is not None:
        return source.labels
    is_file = source.folder.suffix.lower() in LABEL_SUFFIXES and not source.folder.is_dir()
    return source.folder if is_file else None


def read_truth(file: Path, dataset: Dataset) -> dict[str, int]:
    """The true class of samples, as a position in the dataset's classes, by path.

    Args:
        file: A label file with the columns `path` and `true` (or `label`); lines about other images are passed over.
        dataset: The samples; their paths may stand there from the data folder on or from the split on.

    Raises:
        DatasetError: The file cannot be read, names no sample of the dataset, or a class that the dataset has not.
    """
    rows = read_labels(file, column="true")
    if rows.is_ordered:
        rows = _in_order(rows, dataset)
    names = ClassNames(dataset.classes)
    known = set(dataset.paths)
    truth: dict[str, int] = {}
    for row in rows.rows:
        path = row.path if row.path in known else f"{dataset.split}/{row.path}"
        if path not in known:
            continue
        position = names.label_position(row.label)
        if position is None:
            raise DatasetError(
                f"{rows.where(row)}: {row.label!r} is none of the {len(names.names)} classes of {dataset.root}",
                f"the classes have names like {dataset.classes[0]!r}",
            )
        truth[path] = position
    if not truth:
        raise DatasetError(
            f"{file} names none of the {len(known)} images of {dataset.root}",
            f"give lines of path,true with paths as they are there, such as {dataset.paths[0]}",
        )
    return truth


def _in_order(labels: LabelFile, dataset: Dataset) -> LabelFile:
    """Labels in the order of the samples, each with its sample's path."""
    if len(labels.rows) != len(dataset.paths):
        raise DatasetError(
            f"{labels.file} has {len(labels.rows):,} labels and no paths, and there are {len(dataset.paths):,} samples",
            "give one label for each sample in their order, or lines of path,true",
        )
    pairs = zip(labels.rows, dataset.paths, strict=True)
    return replace(labels, rows=tuple(replace(row, path=path) for row, path in pairs))


def measure_detection(
    dataset: Dataset, outcomes: Outcomes, suspects: Sequence[Suspect], truth: Mapping[str, int]
) -> Detection:
    """Compare suspicion with the truth, over the samples whose truth is known."""
    paths = [dataset.paths[index] for index in outcomes.indices.tolist()]
    judged = torch.tensor([path in truth for path in paths])
    true = torch.tensor([truth.get(path, 0) for path in paths])
    wrong = (true != outcomes.labels)[judged]
    suspected = {suspect.path for suspect in suspects}
    named = torch.tensor([path in suspected for path in paths])[judged]
    found = int((named & wrong).sum())
    return Detection(
        samples=len(wrong),
        wrong=int(wrong.sum()),
        found=found,
        precision=found / int(named.sum()) if bool(named.any()) else float("nan"),
        recall=found / int(wrong.sum()) if bool(wrong.any()) else float("nan"),
        area=area_under_curve(outcomes.losses[judged], wrong),
    )


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """The chance that a positive sample scores above a negative one, a tie counting half; NaN without both kinds.

    Args:
        scores: `[n]`.
        positive: bool `[n]`.
    """
    negatives = scores[~positive].sort().values
    positives = scores[positive].contiguous()
    if not len(negatives) or not len(positives):
        return float("nan")
    below = torch.searchsorted(negatives, positives, right=False).double()
    below_or_equal = torch.searchsorted(negatives, positives, right=True).double()
    return float((below + below_or_equal).mean() / 2 / len(negatives))


def render_suspects(suspects: Sequence[Suspect], output_format: SuspectsFormat, *, exact: bool = True) -> str:
    """The list as text, one sample a line.

    Args:
        suspects: The list.
        output_format: How it is written. A list of paths has escapes in the place of what would break a line or steer
            a terminal, and JSON Lines have their own.
        exact: Whether CSV has names as they are, line breaks and all; otherwise they are escaped like paths.
    """
    if output_format is SuspectsFormat.PATHS:
        return "".join(f"{_path_in_line(suspect.path)}\n" for suspect in suspects)
    if output_format in (SuspectsFormat.JSONL, SuspectsFormat.JSON):
        lines = "".join(json.dumps(_known(suspect)) + "\n" for suspect in suspects)
        return lines if output_format is SuspectsFormat.JSONL else json_array(lines)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["path", "given", "suggested", "score"]
    columns += ["chance"] if any(suspect.chance is not None for suspect in suspects) else []
    writer.writerow(columns)
    for suspect in suspects:
        fields = [getattr(suspect, column) for column in columns]
        writer.writerow(fields if exact else [escaped(each) if isinstance(each, str) else each for each in fields])
    return text.getvalue()


def _known(suspect: Suspect) -> dict[str, object]:
    """What is known of a suspect, by the names that the list has for it."""
    return {name: value for name, value in asdict(suspect).items() if value is not None and value != ()}


def _path_in_line(path: str) -> str:
    """A path as a line can hold it: bytes that are no UTF-8 stay, all else that is not visible is escaped."""
    return "".join(part if "\udc80" <= part <= "\udcff" else escaped(part) for part in path)


def corrected_labels(dataset: Dataset, suspects: Sequence[Suspect]) -> dict[str, str]:
    """The class of every sample by its path, with the suggestions in the place of the suspects' labels."""
    labels = {path: dataset.classes[label] for path, label in zip(dataset.paths, dataset.labels, strict=True)}
    return labels | {suspect.path: suspect.suggested for suspect in suspects}


def render_labels(labels: Mapping[str, str]) -> str:
    """A label file for `--labels`: CSV with `path,label`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label"])
    writer.writerows(labels.items())
    return text.getvalue()


def link_corrected(dataset: Dataset, labels: Mapping[str, str], folder: Path) -> None:
    """Make a folder of class folders with a symbolic link to every image, under the class that `labels` gives it.

    A link's name is the image's path with dashes for slashes, so that none is there twice.

    Raises:
        DatasetError: The folder is not empty or cannot be written, a class has a name that no folder can have, or the
            images lie inside of files.
    """
    if dataset.contained:
        raise DatasetError(f"the images of {dataset.root} lie inside of files", "use --apply csv instead")
    for name in dataset.classes:
        if "/" in name or os.sep in name or name in ("", ".", ".."):
            raise DatasetError(f"the class {name!r} cannot be the name of a folder", "use --apply csv instead")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise DatasetError(f"{folder} exists already and is not empty", "name another folder with --apply-to")
        for name in dataset.classes:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for path, label in labels.items():
            image = (dataset.root / path).absolute()
            name = path.replace("/", "-")
            place = folder / label / name
            # Two paths can give one name (a/b-c and a-b/c): the second gets a number.
            number = 2
            while os.path.lexists(place):
                place = folder / label / f"{number}-{name}"
                number += 1
            place.symlink_to(image)
    except OSError as error:
        raise write_error(str(folder), error, DatasetError) from error
