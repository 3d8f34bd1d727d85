"""The files that say which image has which label, or which folder is which class."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sapcli.errors import DatasetError

# The first is ours, the second that of Hugging Face's image folders.
_PATH_COLUMNS = ("path", "file_name", "filename", "file")
_MAP_COLUMNS = ("class", "label", "name", "index")


@dataclass(frozen=True)
class LabelRow:
    """One line of a label file.

    Attributes:
        line: The line's number, from 1.
        path: The image's path as it stands there.
        label: The class, by name or by number; empty in a plain list.
    """

    line: int
    path: str
    label: str


@dataclass(frozen=True)
class LabelFile:
    """A label file or a plain list of images.

    Attributes:
        file: Where it lies.
        rows: Its lines, at least one.
    """

    file: Path
    rows: tuple[LabelRow, ...]

    def where(self, row: LabelRow) -> str:
        """The place of a line, for messages."""
        return f"{self.file}, line {row.line}"


def read_labels(file: Path, column: str = "label") -> LabelFile:
    """Read a label file: CSV or tab-separated text with the columns `path` and `label`, or JSON Lines with those keys.

    `file_name`, `filename` and `file` are understood as `path`. Columns may stand in any order among others; the form
    is told by the content, not by the name.

    Args:
        file: The file.
        column: The column of the labels; where there is none of that name, `label`.

    Raises:
        DatasetError: If the file cannot be read, is not UTF-8, has another header, or a line is blank or incomplete.
    """
    text = _text(file)
    read = _json_lines if text.lstrip().startswith("{") else _csv_rows
    rows = read(file, text, column) if text.strip() else []
    if not rows:
        raise DatasetError(f"{file}: the label file names no image", "Give a header `path,label` and a line per image.")
    return LabelFile(file, tuple(rows))


def read_path_list(file: Path) -> LabelFile:
    """Read a plain list of image paths, one a line.

    Raises:
        DatasetError: If the file cannot be read, is not UTF-8, names nothing, or a line is blank.
    """
    rows = [LabelRow(number, line, "") for number, line in _numbered_lines(file, _text(file))]
    if not rows:
        raise DatasetError(f"{file}: the list names no image", "Give the path of one image a line.")
    return LabelFile(file, tuple(rows))


def read_class_map(file: Path) -> dict[str, str | int]:
    """Read which class folder is which class of the model.

    A JSON object or a CSV with a column `folder` and a column `class` gives each folder a class name or a number; a
    JSON array or a text file with one folder a line gives each folder its position, as timm's class maps do.

    Raises:
        DatasetError: If the file cannot be read, is not UTF-8, is none of these forms, or names a folder twice.
    """
    text = _text(file)
    if text.lstrip()[:1] in ("{", "["):
        pairs = _json_class_map(file, text)
    elif file.suffix.lower() in (".csv", ".tsv"):
        header, records = _csv_table(file, text)
        columns = [name for name in _MAP_COLUMNS if name in header]
        if "folder" not in header or not columns:
            raise _wrong_header(file, header, "folder,class")
        pairs = [(record["folder"], _number_or_name(record[columns[0]])) for _line, record in records]
    else:
        pairs = [(line.strip(), index) for index, (_number, line) in enumerate(_numbered_lines(file, text))]
    class_map: dict[str, str | int] = {}
    for folder, name in pairs:
        if folder in class_map:
            raise DatasetError(f"{file}: the folder {folder!r} is named twice", "Keep one line per folder.")
        class_map[folder] = name
    if not class_map:
        raise DatasetError(f"{file}: the class map names no folder", "Give the header `folder,class` and the folders.")
    return class_map


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{file}, line {line}: not UTF-8 text", "Save the file as UTF-8.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{file}: cannot read the file: {reason}", "Check its name and permissions.") from error


def _numbered_lines(file: Path, text: str) -> Iterator[tuple[int, str]]:
    # str.splitlines would also split at separators that are legal inside names.
    for number, line in enumerate(text.rstrip().replace("\r\n", "\n").split("\n") if text.strip() else (), start=1):
        if not line.strip():
            raise _blank_line(file, number)
        yield number, line


def _csv_rows(file: Path, text: str, column: str) -> list[LabelRow]:
    header, records = _csv_table(file, text)
    if not set(_PATH_COLUMNS) & set(header) or not {column, "label"} & set(header):
        raise _wrong_header(file, header, f"path,{column}")
    return [_label_row(file, line, record, column) for line, record in records]


def _csv_table(file: Path, text: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The column names in lower case, and the records with the number of the line that each begins at."""
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.reader(io.StringIO(text.rstrip() + "\n", newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    records = []
    line = 1
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                raise _blank_line(file, line)
            if not header:
                header = [field.strip().lower() for field in fields]
            elif len(fields) != len(header):
                raise DatasetError(
                    f"{file}, line {line}: {len(fields)} fields where the header has {len(header)}",
                    "Quote fields that hold a comma.",
                )
            else:
                records.append((line, dict(zip(header, fields, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(f"{file}, line {line}: not a line of CSV: {error}", "Check the line's quotes.") from error
    if len(set(header)) != len(header):
        raise DatasetError(f"{file}: a column is named twice in {','.join(header)!r}", "Name each column once.")
    return header, records


def _json_lines(file: Path, text: str, column: str) -> list[LabelRow]:
    return [_label_row(file, number, _json(file, line, number), column) for number, line in _numbered_lines(file, text)]


def _json_class_map(file: Path, text: str) -> list[tuple[str, str | int]]:
    content = _json(file, text)
    if isinstance(content, list):
        items: Iterable[tuple[object, object]] = ((folder, index) for index, folder in enumerate(content))
    elif isinstance(content, Mapping):
        items = content.items()
    pairs = []
    for folder, name in items:
        if not isinstance(folder, str) or isinstance(name, bool) or not isinstance(name, str | int):
            raise DatasetError(
                f"{file}: {folder!r} is mapped to {name!r}", "Map folder names to class names or to numbers from 0."
            )
        pairs.append((folder, name))
    return pairs


def _json(file: Path, text: str, line: int | None = None) -> object:
    where = f"{file}, line {line}" if line else str(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not JSON: {error}", "Give one JSON object a line.") from error


def _label_row(file: Path, line: int, record: object, column: str) -> LabelRow:
    if not isinstance(record, Mapping):
        raise DatasetError(
            f"{file}, line {line}: not a JSON object", 'Give lines such as {"path": "a.png", "label": "cat"}.'
        )
    path = next((record[name] for name in _PATH_COLUMNS if name in record), None)
    label = record.get(column, record.get("label"))
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    if not isinstance(path, str) or not isinstance(label, str) or not path.strip() or not label.strip():
        raise DatasetError(
            f"{file}, line {line}: the path is {path!r} and the label is {label!r}",
            "Give each line the path of an image and the name of its class.",
        )
    return LabelRow(line, path, label.strip())


def _number_or_name(text: str) -> str | int:
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text


def _wrong_header(file: Path, header: list[str], expected: str) -> DatasetError:
    return DatasetError(f"{file}, line 1: the header is {','.join(header)!r}", f"Begin with the header `{expected}`.")


def _blank_line(file: Path, line: int) -> DatasetError:
    return DatasetError(f"{file}, line {line}: the line is blank", "Remove the line.")
