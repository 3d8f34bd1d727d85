"""Labels that are numbers: which outputs of the model they mean, and what they say of how they were counted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from decimal import Decimal
from pathlib import Path

from sapcli.errors import DatasetError

UNLABELLED = -1
"""The label by which data sets mark images without one."""

_NUMBER = re.compile(r"[+-]?(\d{1,100}(\.\d{0,100})?|\.\d{1,100})([eE][+-]?\d{1,4})?")
_LARGEST_EXPONENT = 30
_FROM_ZERO = "the outputs of the model are numbered from 0"


def whole_number(text: str) -> int | None:
    """The whole number that a text says: 7 for "7", "07", "7.0" and "7e0"; None for all other texts."""
    if text.isascii() and _NUMBER.fullmatch(text):
        number = Decimal(text)
        if number.adjusted() < _LARGEST_EXPONENT and number == number.to_integral_value():
            return int(number)
    return None


def numbered_classes(file: Path, labels: Collection[str], num_classes: int) -> tuple[str, ...] | None:
    """The names of the model's outputs where the labels of a file are their numbers: those numbers.

    Args:
        file: The label file, for messages.
        labels: Its labels.
        num_classes: The number of outputs.

    Returns:
        "0", "1" and so on; None where the labels are names.

    Raises:
        DatasetError: If they are numbers and cannot be those of the outputs, or numbers among names.
    """
    numbers = {label: whole_number(label) for label in labels}
    others = [label for label, number in numbers.items() if number is None]
    if not numbers or len(others) == len(numbers):
        if labels and all(_NUMBER.fullmatch(label) for label in labels):
            raise DatasetError(
                f"{file}: the labels are fractions such as {min(labels)!r}", "Give the name or the number of a class."
            )
        return None
    if others:
        number = next(label for label, number in numbers.items() if number is not None)
        raise DatasetError(
            f"{file}: some labels are numbers ({number!r}) and some are not ({min(others)!r})",
            "Correct these lines, or give the order of the classes with --class-map.",
        )
    values = {number for number in numbers.values() if number is not None}
    refuse_one_based(file, values, num_classes)
    wrong = max(values) if max(values) >= num_classes else min(values)
    if not 0 <= wrong < num_classes:
        raise DatasetError(
            f"{file}: a label is {wrong}, and {_FROM_ZERO} to {num_classes - 1}",
            "Say with --class-map which label is which output: a CSV with `folder,class`, a line such as "
            f"`{wrong},0` for each label.",
        )
    return tuple(str(position) for position in range(num_classes))


def refuse_one_based(file: Path, values: Collection[int], num_classes: int) -> None:
    """Refuse labels that are numbers of outputs, but run from 1 to the number of classes.

    Raises:
        DatasetError: If they do.
    """
    if values and min(values) >= 1 and max(values) == num_classes:
        raise DatasetError(
            f"{file}: the labels run from {min(values)} to {num_classes}, and {_FROM_ZERO} to {num_classes - 1}",
            "Subtract 1 from each label, or say with --class-map which is which: a CSV with `folder,class` and lines"
            f" from `1,0` to `{num_classes},{num_classes - 1}`.",
        )


def perhaps_one_based(values: Iterable[int], num_classes: int) -> bool:
    """Whether these numbers are those of all outputs but 0: then they may have been counted from 1."""
    return num_classes > 2 and set(values) == set(range(1, num_classes))
