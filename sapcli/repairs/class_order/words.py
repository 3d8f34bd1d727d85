"""What is said of classes in the wrong order, and the class map that says the likely one."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from sapcli.datasets.classes import shown
from sapcli.datasets.dataset import Dataset
from sapcli.machine.files import atomic_write
from sapcli.repairs.class_order.likely import LikelyOrder

_CLASSES_SHOWN = 3


def what_contradicts(found: LikelyOrder, model: str, dataset: Dataset) -> str:
    """One line: which classes the model answers as others, and which order explains its answers.

    Args:
        found: The likely order.
        model: The checkpoint, as the user named it.
        dataset: The images, with the classes in the order taken.
    """
    names = dataset.classes
    answered = [
        f"{names[label]!r} as {names[found.outputs[label]]!r} ({answers} of {images})"
        for label, answers, images in zip(found.moved, found.answers, found.images, strict=True)
    ]
    more = f" and {len(answered) - _CLASSES_SHOWN} other classes as others" if len(answered) > _CLASSES_SHOWN else ""
    order = f"in {found.order.value}" if found.order is not None else _likely(found, names)
    return (
        f"{model} answers images of {', '.join(answered[:_CLASSES_SHOWN])}{more}: its outputs are likely {order}, which"
        f" explains {found.share:.1%} of {dataset.root}, the order taken {found.share_taken:.1%}"
    )


def _likely(found: LikelyOrder, names: tuple[str, ...]) -> str:
    if len(found.moved) == 2:
        return f"in the order with {shown(sorted(names[label] for label in found.moved))} exchanged"
    return f"in the order {shown(found.arranged(names))}"


def what_to_do(written: Path | None, class_map: Path | None, *, stops: bool) -> str:
    """What a user can do about it, in one line.

    Args:
        written: The class map that was written with the likely order; None if none was.
        class_map: The class map that was given.
        stops: Whether the run ends here.
    """
    if written is not None:
        way = f"{written} has the likely order: give it with --class-map {written}."
    else:
        way = "--suggest-class-map FILE writes the likely order as a class map, for --class-map FILE."
    if class_map is not None:
        return f"{class_map} says another; {way}"
    return f"{way} If the order taken is right, a class map that says so is believed." if stops else way


def write_class_map(found: LikelyOrder, dataset: Dataset, file: Path) -> None:
    """Write the likely order as a class map: a CSV with `folder,class`, the classes by the number of their output.

    Folders that go by another name than their class are in it too.
    """
    rows: dict[str, int] = dict(zip(dataset.classes, found.outputs, strict=True))
    for folder, labels in _labels_of_folders(dataset).items():
        if folder not in rows and len(labels) == 1:
            rows[folder] = found.outputs[labels.pop()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("folder", "class"))
    # In the order of the outputs, so that it reads as the order of the classes.
    writer.writerows((folder, output) for output, folder in sorted((rows[folder], folder) for folder in rows))
    with atomic_write(file, replace=False) as handle:
        handle.write(text.getvalue().encode("utf-8", "surrogateescape"))


def _labels_of_folders(dataset: Dataset) -> dict[str, set[int]]:
    """The labels that occur in each class folder."""
    prefix = f"{dataset.split}/" if dataset.split else ""
    found: dict[str, set[int]] = {}
    for path, label in zip(dataset.paths, dataset.labels, strict=True):
        folder, slash, _rest = path.removeprefix(prefix).partition("/")
        if slash:
            found.setdefault(folder, set()).add(label)
    return found
