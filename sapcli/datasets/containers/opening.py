"""From a data set in containers to the images of a split, each with the output that its label means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sapcli.datasets.classes import ClassNames, FoundClasses, resolve_class_names, shown
from sapcli.datasets.containers.found import Found, GivenLabels, Listing
from sapcli.datasets.labels.label_files import LabelFile, LabelRow
from sapcli.datasets.labels.label_numbers import UNLABELLED, perhaps_one_based, refuse_one_based, whole_number
from sapcli.datasets.split_names import SplitRole, split_role
from sapcli.errors import DatasetError, UsageError


@dataclass(frozen=True)
class Contained:
    """The images of one split in containers.

    Attributes:
        split: The split's name; empty where there is none.
        classes: The names of the model's outputs.
        paths: The images' paths below the data set's root, sorted.
        labels: The class of each.
        remarks: What was left out or is doubtful.
        notes: What was understood.
    """

    split: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    remarks: tuple[str, ...]
    notes: tuple[str, ...]


def chosen_split(found: Found, wanted: Sequence[SplitRole], split: str | None, *, optional: bool) -> str | None:
    """The split of a data set in containers that is wanted.

    Args:
        found: The data set.
        wanted: What the images are for, the best first.
        split: The name that the user says.
        optional: Whether it is no error when there is none.

    Returns:
        Its name, empty where the data set has no splits; None where there is none and it is optional.

    Raises:
        DatasetError: If there is none, or it cannot be told which.
        UsageError: If there is none of that name.
    """
    names = list(found.splits)
    listed = shown(name or "." for name in names)
    if split is not None:
        role = split_role(split)
        meanings = (
            [name for name in names if name in (split, "" if split == "." else split)],
            [name for name in names if name.casefold() == split.casefold()],
            [name for name in names if role is not None and split_role(name) is role],
        )
        for meaning in meanings:
            if len(meaning) == 1:
                return meaning[0]
        raise UsageError(f"--split {split}: {found.root} has no such split", f"The splits there: {listed}.")
    roles = {name: split_role(name) for name in names}
    for role in wanted:
        fitting = [name for name in names if roles[name] is role]
        if len(fitting) > 1:
            raise DatasetError(
                f"{found.root}: there are {len(fitting)} splits for {role.value}, {shown(fitting)}",
                "Say with --split which one to use.",
            )
        if fitting:
            return fitting[0]
    if optional:
        return None
    if len(names) == 1 and (roles[names[0]] is None or found.is_one):
        return names[0]
    missing = " or ".join(role.value for role in wanted)
    raise DatasetError(f"{found.root}: there is {listed}, but no split {missing}", "Say with --split which one to use.")


def open_contained(
    found: Found,
    split: str,
    num_classes: int,
    label_names: Sequence[str] | None,
    labels: LabelFile | None,
    class_map: Path | None,
    *,
    is_named: bool = False,
) -> Contained:
    """List a split of a data set in containers, and tell the class of each image.

    Args:
        found: The data set.
        split: Its split.
        num_classes: The number of the model's outputs.
        label_names: Their names, where they are known.
        labels: A label file, whose labels go before those in the containers.
        class_map: A file that says which class is which output.
        is_named: Whether the user has named the split.

    Raises:
        DatasetError: If there are no images or labels, or a label is no class of the model.
    """
    listing = found.splits[split]()
    if not listing.paths:
        raise DatasetError(f"{found.root}: there are no images", "Give a data set that has some.")
    what, given = _labelling(found, listing, num_classes)
    names = given.names
    notes = [f"{found.root}: {found.what}{f', split {split!r}' if split else ''}, {len(listing.paths):,} images"]
    texts = [_text(text, names, f"{found.root}, {what}") for text in given.texts]
    if len(listing.labels) > 1:
        notes.append(f"{found.root}: of {shown(listing.labels)}, the labels are {what!r}")
    # Without names of the model's, the order of the outputs is that in which the data set counts its classes.
    if label_names is None and class_map is None and names is not None and len(names) == num_classes:
        label_names = names
    elif label_names is not None and names is not None and len(names) == num_classes:
        known = ClassNames(label_names)
        if all(known.position(name) is None for name in names):
            notes.append(
                f"{found.root}: none of its classes ({shown(names)}) is one of the model's ({shown(label_names)}):"
                " matched by their numbers"
            )
            numbers = dict(zip(names, label_names, strict=True))
            texts = [numbers.get(text, text) for text in texts]
    file = labels.file if labels is not None and labels.is_ordered else found.root
    samples = zip(listing.paths, texts, strict=True)
    rows = tuple(LabelRow(number, path, text) for number, (path, text) in enumerate(samples, start=1))
    if labels is not None:
        rows = _overridden(rows, labels, found, split, is_named=is_named)
        notes += [f"{labels.file}: {labels.understood}"] if labels.understood else []
    label_file = LabelFile(file, rows)
    resolved = resolve_class_names(num_classes, FoundClasses(found.root, (), label_file), label_names, class_map)
    return _resolved(resolved, label_file, split, list(listing.remarks), notes)


def _resolved(names: ClassNames, label_file: LabelFile, split: str, remarks: list[str], notes: list[str]) -> Contained:
    counted = {names.label_number(row.label) for row in label_file.rows if not row.is_unlabelled} - {None}
    if names.names == tuple(map(str, range(len(names.names)))):
        counted = {whole_number(row.label) for row in label_file.rows if not row.is_unlabelled}
    numbers = {number for number in counted if number is not None}
    refuse_one_based(label_file.file, numbers, len(names.names))
    if perhaps_one_based(numbers, len(names.names)):
        remarks.append(
            f"{label_file.file}: no label is 0, where the numbers of the outputs begin: are they counted from 1?"
        )
    samples = []
    positions: dict[str, int | None] = {}
    without = 0
    for row in label_file.rows:
        if row.label not in positions:
            positions[row.label] = names.label_position(row.label)
        position = positions[row.label]
        if position is not None:
            samples.append((row.path, position))
        elif row.is_unlabelled:
            without += 1
        else:
            raise names.unknown([row.label], f"{label_file.file}, image {row.line}")
    if not samples:
        raise DatasetError(f"{label_file.file}: none of its {without:,} images has a label", "Give --labels FILE.")
    if without:
        remarks.append(f"{label_file.file}: {without:,} images have the label {UNLABELLED}, for none: left out")
    samples.sort()
    return Contained(
        split,
        names.names,
        tuple(path for path, _position in samples),
        tuple(position for _path, position in samples),
        tuple(remarks),
        tuple(notes),
    )


def _labelling(found: Found, listing: Listing, num_classes: int) -> tuple[str, GivenLabels]:
    """The labels of a listing: of several those that have as many classes as the model."""
    labels = dict(listing.labels)
    if len(labels) > 1:
        fitting = {key: each for key, each in labels.items() if each.names and len(each.names) == num_classes}
        fitting = fitting or {
            key: each for key, each in labels.items() if not each.names and len(set(each.texts)) == num_classes
        }
        if len(fitting) != 1:
            raise DatasetError(
                f"{found.root}: each of {shown(labels)} could be the labels for the {num_classes} classes of the model",
                "Give a label for each image with --labels FILE.",
            )
        labels = fitting
    if not labels:
        raise DatasetError(
            f"{found.root}: its images have no labels", "Give a label for each image with --labels FILE."
        )
    [(what, given)] = labels.items()
    return what, given


def _text(text: str, names: tuple[str, ...] | None, where: str) -> str:
    """The name of a class, where a label is its number and the classes have names."""
    number = whole_number(text)
    if names is None or number is None or number == UNLABELLED:
        return text
    if not 0 <= number < len(names):
        raise DatasetError(
            f"{where}: a label is {number}, and it names {len(names)} classes", "Get the data set again."
        )
    return names[number]


def _overridden(
    rows: tuple[LabelRow, ...], labels: LabelFile, found: Found, split: str, *, is_named: bool
) -> tuple[LabelRow, ...]:
    """The images with the labels of a label file, where it has one for them."""
    if labels.is_ordered:
        # Labels of the training images are given with the whole data set, and are not about the others.
        counts = {name: len(rows) if name == split else len(lister().paths) for name, lister in found.splits.items()}
        fitting = [name for name, count in counts.items() if count == len(labels.rows)]
        if not fitting or (len(fitting) > 1 and not is_named):
            images = ", ".join(f"{count:,} in {name or str(found.root)!r}" for name, count in counts.items())
            raise DatasetError(
                f"{labels.file} has {len(labels.rows):,} labels and no paths, and there are {images}",
                "Give one label for each image of a split, in their order, and say which with --split.",
            )
        if split not in fitting:
            return rows
        return tuple(LabelRow(row.line, row.path, given.label) for row, given in zip(rows, labels.rows, strict=True))
    places = {row.path: place for place, row in enumerate(rows)}
    changed = list(rows)
    missing = []
    for given in labels.rows:
        place = places.get(given.path)
        if place is None:
            missing.append(given)
        else:
            changed[place] = LabelRow(rows[place].line, given.path, given.label)
    if len(missing) == len(labels.rows):
        raise DatasetError(
            f"{labels.where(missing[0])}: there is no image {missing[0].path!r} in {found.root}",
            f"Write paths as they are there, such as {rows[0].path}.",
        )
    return tuple(changed)
