"""Lists of samples with a yes or no for each: cleanlab's `is_label_issue`, a column `keep`, a mask.

What the answer means follows from its name: where it says that a label is wrong, `True` is for the forget set; where it
says that a sample is to be kept, for the trusted set.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sapcli.datasets.arrays.npy import read_npy
from sapcli.datasets.labels.columns import find_paths
from sapcli.datasets.labels.label_arrays import MOST_LABELS
from sapcli.datasets.labels.label_numbers import whole_number
from sapcli.datasets.labels.texts import unreadable
from sapcli.errors import DatasetError

_WRONG = frozenset(
    {
        *("is_label_issue", "label_issue", "is_issue", "is_noisy", "noisy", "is_noise", "mislabeled", "is_mislabeled"),
        *(
            "is_wrong",
            "wrong",
            "is_error",
            "label_error",
            "is_label_error",
            "forget",
            "remove",
            "drop",
            "bad",
            "is_bad",
        ),
        *("is_mislabelled", "mislabelled"),
    }
)
_RIGHT = frozenset(
    {
        *("keep", "kept", "is_clean", "clean", "trusted", "is_trusted", "trust", "is_correct", "correct", "is_good"),
        *("good", "is_right", "right", "is_valid"),
    }
)
_YES, _NO = frozenset({"true", "1", "yes", "t", "y"}), frozenset({"false", "0", "no", "f", "n"})
# pandas writes its index under no name.
_INDICES = ("index", "", "idx", "unnamed: 0")
_DELIMITERS = (",", "\t", ";")


@dataclass(frozen=True)
class MarkedSamples:
    """The samples of such a list that are meant.

    Attributes:
        lines: The place in the list of each, from 1, with its path or its index.
        total: How many samples the list has.
        understood: How it was read, for people.
        has_names: Whether it says which samples it is about; else it has one line for each sample, in their order.
    """

    lines: tuple[tuple[int, str | int], ...]
    total: int
    understood: str
    has_names: bool


def read_marked(lines: Sequence[str], source: str, *, wrong: bool) -> MarkedSamples | None:
    """Read a list of samples with a yes or no for each.

    Args:
        lines: Its lines.
        source: Its name, for messages.
        wrong: Whether samples with wrong labels are wanted, and not those with right ones.

    Returns:
        Those that are wanted; None where the list is in another form.

    Raises:
        DatasetError: If it is such a list, and a line is none of it.
    """
    filled = [(number, line.strip("\r\n")) for number, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        return None
    first = filled[0][1].lstrip("\ufeff")
    if first.lstrip().startswith("{"):
        return _of_json(filled, source, wrong=wrong)
    delimiter = max(_DELIMITERS, key=first.count)
    header = [field.strip(' "').lower() for field in first.split(delimiter)]
    mark = _mark(header, source)
    if mark is None:
        return None
    rows = []
    records = csv.reader((line for _number, line in filled[1:]), delimiter=delimiter)
    for (number, _line), fields in zip(filled[1:], records, strict=False):
        if len(fields) != len(header):
            raise DatasetError(
                f"{source}, line {number}: {len(fields)} fields where the header has {len(header)}",
                "Give each line all columns.",
            )
        rows.append((number, dict(zip(header, fields, strict=True))))
    return _chosen(rows, header, mark, source, wrong=wrong)


def read_mask(file: Path, *, wrong: bool) -> MarkedSamples:
    """Read a `.npy` file: a yes or no for each sample, as cleanlab's find_label_issues returns it, or indices.

    Raises:
        DatasetError: If it holds anything else.
    """
    try:
        array = read_npy(file)
    except OSError as error:
        raise unreadable(file, error) from error
    if isinstance(array, dict) or array.ndim != 1 or array.dtype.kind not in "biu":
        raise DatasetError(f"{file} is neither a mask nor an array of indices", "Save one with numpy.save.")
    if len(array) > MOST_LABELS:
        raise DatasetError(f"{file} is about {len(array):,} samples, and at most {MOST_LABELS:,} are read", "Check it.")
    if array.dtype.kind == "b":
        # As with cleanlab, what is marked is wrong; a mask of the trusted samples marks those.
        found = np.flatnonzero(array).tolist()
        meant = "the forget set" if wrong else "the trusted set"
        return MarkedSamples(
            tuple((index + 1, index) for index in found), len(array), f"a mask: True is for {meant}", has_names=False
        )
    lines = tuple((place, int(index)) for place, index in enumerate(array.tolist(), start=1))
    return MarkedSamples(lines, len(lines), "indices", has_names=True)


def _of_json(filled: Sequence[tuple[int, str]], source: str, *, wrong: bool) -> MarkedSamples | None:
    try:
        first = json.loads(filled[0][1])
    except (ValueError, RecursionError):
        return None
    if not isinstance(first, Mapping):
        return None
    header = [str(name).lower() for name, value in first.items() if isinstance(value, bool | int | str)]
    named = [str(name).lower() for name, value in first.items() if isinstance(value, bool)]
    mark = _mark(named, source)
    if mark is None:
        return None
    rows = []
    for number, line in filled:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(
                f"{source}, line {number} is not JSON: {error}", "Give one JSON object a line."
            ) from error
        if not isinstance(record, Mapping):
            raise DatasetError(f"{source}, line {number} is no JSON object", "Give one JSON object a line.")
        rows.append((number, {str(name).lower(): str(value) for name, value in record.items()}))
    return _chosen(rows, header, mark, source, wrong=wrong)


def _mark(header: Sequence[str], source: str) -> str | None:
    """The column of the answers."""
    marks = [name for name in header if name in _WRONG or name in _RIGHT]
    if len(marks) > 1:
        raise DatasetError(
            f"{source}: each of the columns {', '.join(map(repr, marks))} could say which samples are meant",
            "Leave one of them out.",
        )
    return marks[0] if marks else None


def _chosen(
    rows: Sequence[tuple[int, Mapping[str, str]]], header: Sequence[str], mark: str, source: str, *, wrong: bool
) -> MarkedSamples:
    path = next(iter(find_paths([name for name in header if name != mark])), None)
    index = next((name for name in _INDICES if name in header), None)
    if path == "id" and index is None:  # of a sample, as long as ids are numbers
        path, index = None, "id"
    wanted = (mark in _WRONG) == wrong
    lines: list[tuple[int, str | int]] = []
    for position, (number, row) in enumerate(rows):
        answer = row.get(mark, "").strip().lower()
        if answer not in _YES and answer not in _NO:
            raise DatasetError(
                f"{source}, line {number}: {mark} is {row.get(mark, '')!r:.60}, expected True or False",
                "Give each sample a True or a False.",
            )
        if (answer in _YES) != wanted:
            continue
        if path is not None:
            lines.append((number, row.get(path, "")))
        elif index is not None:
            place = whole_number(row.get(index, "").strip())
            if place is None:
                raise DatasetError(
                    f"{source}, line {number}: the index is {row.get(index, '')!r:.60}",
                    "Give indices from 0, or paths.",
                )
            lines.append((number, place))
        else:
            lines.append((number, position))
    named = f"by {path!r}" if path is not None else "by their index" if index is not None else "in their order"
    answer = "True" if wanted else "False"
    meant = "the forget set" if wrong else "the trusted set"
    return MarkedSamples(
        tuple(lines),
        len(rows),
        f"samples {named} whose {mark!r} is {answer} are {meant}",
        has_names=path is not None or index is not None,
    )
