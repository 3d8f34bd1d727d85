"""The files that say which image has which label, in the forms in which they are found."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sapcli.datasets.formats import image_suffixes
from sapcli.datasets.labels.columns import LABEL, Columns, find_columns, is_known_column, is_label_column, wrong_header
from sapcli.datasets.labels.label_arrays import ARRAY_SUFFIXES, read_label_array
from sapcli.datasets.labels.label_numbers import UNLABELLED, whole_number
from sapcli.datasets.labels.parquet_labels import PARQUET, parquet_columns, parquet_header
from sapcli.datasets.labels.tables import Table, read_table
from sapcli.datasets.labels.texts import first_line, json_value, numbered_lines, read_text
from sapcli.errors import DatasetError, SapError

LABEL_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""What the names of label files end in."""
LIST_SUFFIXES = (".txt", ".lst", ".list")
"""What the names of lists end in: of images, or of images and the numbers of their classes."""

# A path and a number, as in the lists of WebVision, Clothing1M and Caffe.
_NUMBER = re.compile(r"-?\d{1,9}")
_SEPARATORS = frozenset("\t,;|")
# ImageNet's solution lists the class and the box of each object.
_PREDICTION_STRING = "predictionstring"
_EXAMPLE = 'Give lines such as {"path": "a.png", "label": "cat"}.'


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One line of a label file.

    Attributes:
        line: The line's number, from 1; of an array, the position from 1.
        path: The image's path as it stands there; empty where labels are in the order of the images.
        label: The class, by name or by number; empty in a plain list.
    """

    line: int
    path: str
    label: str

    @property
    def is_unlabelled(self) -> bool:
        """Whether the label says that the image has none, unless a class is called so."""
        return whole_number(self.label) == UNLABELLED


@dataclass(frozen=True)
class LabelFile:
    """A label file or a plain list of images.

    Attributes:
        file: Where it lies.
        rows: Its lines, at least one.
        is_ordered: Whether its labels are in the order of the images, and name none.
        understood: How it was read, where it was not in our own form, for people.
    """

    file: Path
    rows: tuple[LabelRow, ...]
    is_ordered: bool = False
    understood: str = ""

    def where(self, row: LabelRow) -> str:
        """The place of a line, for messages."""
        return f"{self.file}, {'label' if self.is_ordered else 'line'} {row.line}"


def file_and_key(file: Path) -> tuple[Path, str | None]:
    """A file, and what in it is meant: `labels.pt:worse_label` is the array of that name in `labels.pt`."""
    name, colon, key = file.name.rpartition(":")
    if not colon or not name or not key:
        return file, None
    with contextlib.suppress(OSError, ValueError):
        if file.exists():
            return file, None
    return file.with_name(name), key


def read_labels(file: Path, column: str = "label") -> LabelFile:
    """Read a label file, whatever its form; that is told by its content, but for arrays.

    Understood are tables (CSV, and parted by tabs, semicolons or bars) with a column of images and one of labels, by
    the names that these have in common tools; JSON Lines with such keys; a JSON object from path to label, or an array
    of such objects; lines of a path and a number; and labels alone, in the order of the images: a JSON array, and
    arrays in `.npy`, `.npz` and `.pt` files. `FILE:NAME` says which column or array has the labels.

    Args:
        file: The file.
        column: The column of the labels; where there is none of that name, `label`, or what is called so elsewhere.

    Raises:
        DatasetError: If the file cannot be read, is not Unicode, has another form, or a line is blank or incomplete.
    """
    file, key = file_and_key(file)
    if file.suffix.lower() == PARQUET:
        return _parquet(file, column, key)
    if file.suffix.lower() in ARRAY_SUFFIXES:
        return _ordered(file, read_label_array(file, key), f"{key} of " if key else "")
    text = read_text(file)
    start = text.lstrip()[:1]
    if not start:
        found = LabelFile(file, ())
    elif start == "{":
        found = _json_object(file, text, column, key)
    elif start == "[":
        found = _json_array(file, text, column, key)
    elif key is None and _path_and_number(_first(text)) is not None and not _is_header(_first(text)):
        found = _numbered_paths(file, text)
    else:
        found = _table(file, text, column, key)
    if not found.rows:
        raise DatasetError(f"{file}: the label file names no image", "Give a header `path,label` and a line per image.")
    return found


def holds_labels(file: Path) -> bool:
    """Whether a file begins as label files do, by its columns; what cannot be read holds none."""
    if file.suffix.lower() == PARQUET:
        with contextlib.suppress(SapError):
            return is_label_column(find_columns(file, [name.lower() for name in parquet_header(file)], LABEL).label)
        return False
    with contextlib.suppress(OSError):
        return _begins_with_labels(file)
    return False


def label_files_in(folder: Path) -> list[Path]:
    """The label files that lie directly in a folder, by their endings and their first line; hidden ones aside."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in LABEL_SUFFIXES)
        files = [file for file in files if not file.name.startswith(".")]
        return [file for file in files if file.is_file() and _begins_with_labels(file)]
    except OSError:  # They are only looked for to be told of.
        return []


def is_path_list(file: Path) -> bool:
    """Whether a list holds paths of images alone, and not their classes too.

    Raises:
        DatasetError: If it cannot be read.
    """
    first = _first(read_text(file))
    if _is_image(first):
        return True
    fields = re.split(r"[\t,;|]", first)
    if len(fields) > 1 and any(_is_image(field.strip()) for field in fields):
        return False
    return not (_path_and_number(first) is not None or first[:1] in ("{", "[") or _is_header(first))


def read_path_list(file: Path) -> LabelFile:
    """Read a plain list of image paths, one a line.

    Raises:
        DatasetError: If the file cannot be read, is not UTF-8, names nothing, or a line is blank.
    """
    rows = [LabelRow(number, line, "") for number, line in numbered_lines(file, read_text(file))]
    if not rows:
        raise DatasetError(f"{file}: the list names no image", "Give the path of one image a line.")
    return LabelFile(file, tuple(rows))


def _first(text: str) -> str:
    return text.lstrip().partition("\n")[0].strip()


def _path_and_number(line: str) -> tuple[str, str] | None:
    """The parts of a line that ends in a number after a space or a tab; None for other lines."""
    parts = line.rsplit(None, 1)
    if len(parts) != 2 or not _NUMBER.fullmatch(parts[1]) or not _SEPARATORS.isdisjoint(parts[0]):
        return None
    return parts[0].strip(), parts[1]


def _is_header(line: str) -> bool:
    """Whether a line names columns and holds no values."""
    names = [field.strip(' \r"').lower() for field in re.split(r"[,;\t|]", line)]
    return len(names) > 1 and sum(map(is_known_column, names)) > 0 and not any(map(_is_image, names))


def _is_image(field: str) -> bool:
    return field.lower().endswith(image_suffixes())


def _begins_with_labels(file: Path) -> bool:
    first = first_line(file)
    with contextlib.suppress(SapError):
        if first.startswith("{"):
            record = json_value(file, first, 1)
            header = [str(name).lower() for name in record] if isinstance(record, Mapping) else []
        else:
            header = read_table(file, first, is_known_column, _is_image).header
        return is_label_column(find_columns(file, header, LABEL).label)
    return False


def _table(file: Path, text: str, column: str, key: str | None) -> LabelFile:
    table = read_table(file, text, lambda name: name == column or is_known_column(name), _is_image)
    if not table.header and table.records:
        return _table_without_header(file, table)
    columns = find_columns(file, table.header, column, key)
    if not columns.label:
        return _one_column_a_class(file, table, columns)
    path, label = table.column(columns.path), table.column(columns.label)
    rows = [_label_row(file, line, fields[path], fields[label]) for line, fields in table.records]
    if columns.label == _PREDICTION_STRING:
        rows = [LabelRow(row.line, row.path, row.label.split()[0]) for row in rows]
    return LabelFile(file, tuple(rows), understood=_said_of(columns))


def _parquet(file: Path, column: str, key: str | None) -> LabelFile:
    names = {name.lower(): name for name in parquet_header(file)}
    columns = find_columns(file, list(names), column, key)
    if not columns.label:
        raise wrong_header(file, list(names), f"path,{column}")
    paths, labels = parquet_columns(file, [names[columns.path], names[columns.label]])
    rows = [_label_row(file, line, *pair) for line, pair in enumerate(zip(paths, labels, strict=True), start=1)]
    return LabelFile(file, tuple(rows), understood=_said_of(columns))


def _said_of(columns: Columns) -> str:
    return f"images from the column {columns.path!r}, labels from {columns.label!r}" if columns.guessed else ""


def _table_without_header(file: Path, table: Table) -> LabelFile:
    first = table.records[0][1]
    path = next(position for position, field in enumerate(first) if _is_image(field.strip()))
    others = [position for position in range(len(first)) if position != path]
    if not others:
        raise DatasetError(
            f"{file}, line 1: the image {first[path]!r:.100} has no label", "Begin with the header `path,label`."
        )
    label = others[0]
    rows = [_label_row(file, line, fields[path].strip(), fields[label]) for line, fields in table.records]
    return LabelFile(
        file, tuple(rows), understood=f"no header: images from column {path + 1}, labels from column {label + 1}"
    )


def _one_column_a_class(file: Path, table: Table, columns: Columns) -> LabelFile:
    """Labels of a table in which each class has a column, with 1 where an image is of it and 0 elsewhere."""
    path = table.column(columns.path)
    names = [name for name in table.header if name != columns.path and name]
    places = [table.column(name) for name in names]
    rows = []
    for line, fields in table.records:
        numbers = [whole_number(fields[place].strip()) for place in places]
        if sorted(number for number in numbers if number is not None) != [0] * (len(names) - 1) + [1]:
            raise DatasetError(
                f"{file}: none of the columns {', '.join(map(repr, names[:12]))} is known to hold the labels"
                f" (line {line} has not one 1 and zeros in them)",
                f"Say which one after a colon: {file.name}:{names[0]}.",
            )
        rows.append(_label_row(file, line, fields[path], names[numbers.index(1)]))
    return LabelFile(
        file, tuple(rows), understood=f"images from the column {columns.path!r}, a column of 0 and 1 for each class"
    )


def _numbered_paths(file: Path, text: str) -> LabelFile:
    rows = []
    for number, line in numbered_lines(file, text):
        found = _path_and_number(line)
        if found is None:
            raise DatasetError(
                f"{file}, line {number}: not a path and a number, as the first line is", "Give each image its class."
            )
        rows.append(LabelRow(number, *found))
    return LabelFile(file, tuple(rows), understood="a path and a number in each line")


def _json_object(file: Path, text: str, column: str, key: str | None) -> LabelFile:
    """JSON Lines, or one object from path to label."""
    with contextlib.suppress(DatasetError):
        content = json_value(file, text)
        if isinstance(content, Mapping) and not (key or _columns_of(file, content, column, None)):
            rows = [_label_row(file, 1, path, label) for path, label in content.items()]
            return LabelFile(file, tuple(rows), understood="an object from path to label")
    return _json_lines(file, text, column, key)


def _json_array(file: Path, text: str, column: str, key: str | None) -> LabelFile:
    content = json_value(file, text)
    assert isinstance(content, list)
    if all(isinstance(item, Mapping) for item in content):
        return _records(file, list(enumerate(content, start=1)), column, key)
    labels = [_label_text(item) for item in content]
    wrong = next((position for position, label in enumerate(labels) if label is None), None)
    if wrong is not None:
        raise DatasetError(
            f"{file}: item {wrong + 1} of the array is no label", "Give an array of labels, or of objects with a path."
        )
    return _ordered(file, [label for label in labels if label is not None], "")


def _json_lines(file: Path, text: str, column: str, key: str | None) -> LabelFile:
    records = [(number, json_value(file, line, number)) for number, line in numbered_lines(file, text)]
    return _records(file, records, column, key)


def _records(file: Path, records: Sequence[tuple[int, object]], column: str, key: str | None) -> LabelFile:
    """Labels of objects, each with the keys of the first one."""
    columns: Columns | None = None
    rows = []
    for line, record in records:
        if not isinstance(record, Mapping):
            raise DatasetError(f"{file}, line {line}: not a JSON object", _EXAMPLE)
        if columns is None:
            columns = _columns_of(file, record, column, key)
            if columns is None:
                raise DatasetError(f"{file}, line {line}: the path is None and the label is None", _EXAMPLE)
        plain = {str(name).lower(): value for name, value in record.items()}
        rows.append(_label_row(file, line, plain.get(columns.path), plain.get(columns.label)))
    guessed = columns is not None and columns.guessed
    understood = f"images from {columns.path!r}, labels from {columns.label!r}" if columns and guessed else ""
    return LabelFile(file, tuple(rows), understood=understood)


def _columns_of(file: Path, record: Mapping[object, object], column: str, key: str | None) -> Columns | None:
    """Which keys of an object hold the path and the label; None where they are paths themselves."""
    header = [str(name).lower() for name in record]
    if not any(map(is_known_column, header)):
        return None
    if set(header) == {"path"}:
        return Columns("path", column, guessed=False)
    return find_columns(file, header, column, key)


def _ordered(file: Path, labels: Sequence[str], what: str) -> LabelFile:
    rows = tuple(LabelRow(position, "", label) for position, label in enumerate(labels, start=1))
    return LabelFile(file, rows, is_ordered=True, understood=f"{what}{len(rows):,} labels in the order of the images")


def _label_text(label: object) -> str | None:
    """A label as text; None for what is none."""
    if isinstance(label, int | float) and not isinstance(label, bool):
        return repr(label)
    return label.strip() if isinstance(label, str) and label.strip() else None


def _label_row(file: Path, line: int, path: object, label: object) -> LabelRow:
    text = _label_text(label)
    written = str(path) if isinstance(path, int) and not isinstance(path, bool) else path  # a number is an id
    if not isinstance(written, str) or text is None or not written.strip():
        shown = label if isinstance(label, str | int | float | None) else type(label).__name__
        raise DatasetError(
            f"{file}, line {line}: the path is {path!r} and the label is {shown!r}",
            "Give each line the path of an image and the name of its class, or -1 for an image that has none.",
        )
    return LabelRow(line, written, text)
