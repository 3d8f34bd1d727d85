"""Which columns of a table hold the images and which their labels, by the names that people give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sapcli.errors import DatasetError

# The first is ours, the second that of Hugging Face's image folders; then what is found on disks, the more telling
# names first. The last ones are ids, of an image where nothing else in the table is one.
_PATHS = (
    *("path", "file_name", "filename", "file", "filepath", "file_path", "image_path", "img_path", "image_file"),
    *("image_filename", "img_file", "image_name", "img_name", "imagename", "image", "img", "image_id", "imageid"),
    *("img_id", "id_code", "id", "uuid"),
)
_PATH_ENDINGS = ("_file_name", "_filename", "_path", "_file")
LABEL = "label"
"""The column of labels that goes before all others."""
_LABELS = (
    *("class", "target", "labels", "category", "class_name", "classname", "label_name", "diagnosis", "dx", "breed"),
    *("species", "classes", "class_id", "label_id", "target_id", "category_id", "predictionstring", "y"),
)
_COLUMNS_SHOWN = 12


@dataclass(frozen=True)
class Columns:
    """Where in a record the image and its label stand.

    Attributes:
        path: The column of the images.
        label: The column of the labels; empty where each class has a column of its own.
        guessed: Whether they were found by other names than those that label files have.
    """

    path: str
    label: str
    guessed: bool


def is_path_column(name: str) -> bool:
    """Whether a column of this name, in lower case, holds images."""
    return name in _PATHS or name.endswith(_PATH_ENDINGS)


def is_known_column(name: str) -> bool:
    """Whether a column of this name, in lower case, holds images or their labels."""
    return is_path_column(name) or is_label_column(name)


def is_label_column(name: str) -> bool:
    """Whether a column of this name, in lower case, holds labels."""
    return name == LABEL or name in _LABELS


def find_paths(header: Sequence[str]) -> list[str]:
    """The columns that can hold the images, the most telling one first."""
    return [name for name in _PATHS if name in header] or [name for name in header if name.endswith(_PATH_ENDINGS)]


def find_columns(file: Path, header: Sequence[str], wanted: str | None, key: str | None = None) -> Columns:
    """Choose the columns of a table.

    Args:
        file: The table, for messages.
        header: The names of its columns, in lower case.
        wanted: The column of the labels that is taken where there is one of that name.
        key: The column of the labels that the user has named.

    Raises:
        DatasetError: If there is no column of images or of labels, or several could be either.
    """
    paths = find_paths(header)
    if key is not None and key.lower() not in header:
        raise DatasetError(f"{file} has no column {key!r}", f"Its columns are {_named(header)}.")
    if not paths:
        raise wrong_header(file, header, f"path,{wanted or LABEL}")
    path = paths[0]
    if paths[0] not in _PATHS and len(paths) > 1:
        raise DatasetError(
            f"{file}: each of the columns {_named(paths)} could hold the images", "Call one of them file_name."
        )
    label = _label_column(file, header, path, wanted, key)
    usual = path in _PATHS[:4] and label in (wanted, LABEL)
    return Columns(path, label, guessed=not usual and key is None)


def _label_column(file: Path, header: Sequence[str], path: str, wanted: str | None, key: str | None) -> str:
    for name in (key and key.lower(), wanted, LABEL):
        if name and name in header and name != path:
            return name
    labels = [name for name in _LABELS if name in header and name != path]
    if len(labels) > 1:
        raise DatasetError(
            f"{file}: each of the columns {_named(labels)} could hold the labels",
            f"Say which one after a colon: {file.name}:{labels[0]}.",
        )
    others = [name for name in header if name != path and name]
    if labels or len(others) == 1:
        return (labels or others)[0]
    if len(others) > 1:
        return ""
    raise wrong_header(file, header, f"path,{wanted or LABEL}")


def wrong_header(file: Path, header: Sequence[str], expected: str) -> DatasetError:
    """The error about a header in which a column is missing."""
    shown = ",".join(header[:_COLUMNS_SHOWN]) + (",..." if len(header) > _COLUMNS_SHOWN else "")
    return DatasetError(
        f"{file}, line 1: the header is {shown!r}",
        f"Begin with the header `{expected}`, or say which column has the labels: {file.name}:COLUMN.",
    )


def _named(columns: Sequence[str]) -> str:
    rest = f" and {len(columns) - _COLUMNS_SHOWN} more" if len(columns) > _COLUMNS_SHOWN else ""
    return ", ".join(repr(name) for name in columns[:_COLUMNS_SHOWN]) + rest
