"""The files that say which image has which label, or which folder is which class."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sapcli.datasets.labels.label_numbers import UNLABELLED, whole_number
from sapcli.errors import DatasetError, SapError
from sapcli.machine.reading import read_input

LABEL_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""What the names of label files end in."""

# The first is ours, the second that of Hugging Face's image folders.
_PATH_COLUMNS = ("path", "file_name", "filename", "file")
_MAP_COLUMNS = ("class", "label", "name", "index")
# The marks of the longer form first: that of UTF-16 begins that of UTF-32.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LONGEST_FIRST_LINE = 1 << 16
_DELIMITERS = (",", "\t", ";", "|")


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
    text = _read_text(file)
    read = _json_lines if text.lstrip().startswith("{") else _csv_rows
    rows = read(file, text, column) if text.strip() else []
    if not rows:
        raise DatasetError(f"{file}: the label file names no image", "Give a header `path,label` and a line per image.")
    return LabelFile(file, tuple(rows))


def read_decided(file: Path) -> frozenset[str]:
    """The paths that a person has decided about, as they stand in a label file: those with text in `decision`.

    Raises:
        DatasetError: If the file cannot be read, or is neither CSV nor JSON Lines.
    """
    text = _read_text(file)
    if text.lstrip().startswith("{"):
        found = [_json(file, line, number) for number, line in _numbered_lines(file, text)]
        records = [record for record in found if isinstance(record, Mapping)]
    else:
        header, rows = _csv_table(file, text, (*_PATH_COLUMNS, "label", "decision"))
        records = [record for _line, record in rows] if "decision" in header else []
    decided = set()
    for record in records:
        path = next((record[name] for name in _PATH_COLUMNS if name in record), None)
        if isinstance(path, str) and str(record.get("decision") or "").strip():
            decided.add(path)
    return frozenset(decided)


def label_files_in(folder: Path) -> list[Path]:
    """The label files that lie directly in a folder, by their endings and their first line; hidden ones aside."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in LABEL_SUFFIXES)
        files = [file for file in files if not file.name.startswith(".")]
        return [file for file in files if file.is_file() and _begins_with_labels(file)]
    except OSError:  # They are only looked for to be told of.
        return []


def read_path_list(file: Path) -> LabelFile:
    """Read a plain list of image paths, one a line.

    Raises:
        DatasetError: If the file cannot be read, is not UTF-8, names nothing, or a line is blank.
    """
    rows = [LabelRow(number, line, "") for number, line in _numbered_lines(file, _read_text(file))]
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
    text = _read_text(file)
    if text.lstrip()[:1] in ("{", "["):
        pairs = _json_class_map(file, text)
    elif file.suffix.lower() in (".csv", ".tsv"):
        header, records = _csv_table(file, text, ("folder", *_MAP_COLUMNS))
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


def _read_text(file: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with the mark that tells so.

    Raises:
        DatasetError: If the file cannot be read or decoded.
    """
    try:
        content = read_input(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{file}: cannot read the file: {reason}", "Check its name and permissions.") from error
    encoding = _encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        raise DatasetError(f"{file}, line {line}: not {name} text", "Save the file as UTF-8.") from error


def _begins_with_labels(file: Path) -> bool:
    with file.open("rb") as handle:
        begin = handle.read(_LONGEST_FIRST_LINE)
    text = begin.decode(_encoding(begin), "replace").lstrip("\ufeff")
    first = text.lstrip().partition("\n")[0]
    with contextlib.suppress(SapError):
        read = _json_lines if first.startswith("{") else _csv_rows
        read(file, first, "label")
        return True
    return False


def _encoding(content: bytes) -> str:
    """In what a text is written: by its mark, else by the zeros that UTF-16 puts beside plain letters, else UTF-8."""
    unmarked = {(False, True): "utf-16-le", (True, False): "utf-16-be"}
    zeros = content[:1] == b"\0", content[1:2] == b"\0"
    return next((name for mark, name in _MARKS if content.startswith(mark)), unmarked.get(zeros, "utf-8"))


def _numbered_lines(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text with their numbers, from 1.

    Raises:
        DatasetError: If a line is blank.
    """
    # str.splitlines would also split at separators that are legal inside names.
    for number, line in enumerate(text.rstrip().replace("\r\n", "\n").split("\n") if text.strip() else (), start=1):
        if not line.strip():
            raise _blank_line(file, number)
        yield number, line


def _csv_rows(file: Path, text: str, column: str) -> list[LabelRow]:
    header, records = _csv_table(file, text, (*_PATH_COLUMNS, column, "label"))
    if not set(_PATH_COLUMNS) & set(header) or not {column, "label"} & set(header):
        raise _wrong_header(file, header, f"path,{column}")
    return [_label_row(file, line, record, column) for line, record in records]


def _csv_table(
    file: Path, text: str, wanted: Collection[str] = ()
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The column names of a table in lower case, and its records with the number of the line that each begins at.

    Args:
        file: Where it comes from, for messages.
        text: Its text, the columns parted by commas, tabs, semicolons or bars.
        wanted: Names of columns that tell which of these it is, where the header holds several.

    Raises:
        DatasetError: If a line is blank, has another number of fields than the header, or is no line of CSV.
    """
    reader = csv.reader(
        io.StringIO(text.rstrip() + "\n", newline=""), delimiter=_delimiter(text.lstrip(), wanted), strict=True
    )
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


def _delimiter(text: str, wanted: Collection[str]) -> str:
    """What parts the columns: that with which the header has most of the wanted columns, else most columns."""
    first = text.partition("\n")[0]

    def parted(delimiter: str) -> tuple[int, int]:
        fields = {field.strip(' \r"').lower() for field in first.split(delimiter)}
        return len(fields.intersection(wanted)), len(fields)

    return max(_DELIMITERS, key=parted)


def _blank_line(file: Path, line: int) -> DatasetError:
    return DatasetError(f"{file}, line {line}: the line is blank", "Remove the line.")


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
        if isinstance(name, float) and name.is_integer():
            name = int(name)
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
    if isinstance(label, int | float) and not isinstance(label, bool):
        label = repr(label)
    if not isinstance(path, str) or not isinstance(label, str) or not path.strip() or not label.strip():
        raise DatasetError(
            f"{file}, line {line}: the path is {path!r} and the label is {label!r}",
            "Give each line the path of an image and the name of its class.",
        )
    return LabelRow(line, path, label.strip())


def _number_or_name(text: str) -> str | int:
    number = whole_number(text.strip())
    return text.strip() if number is None else number


def _wrong_header(file: Path, header: list[str], expected: str) -> DatasetError:
    return DatasetError(f"{file}, line 1: the header is {','.join(header)!r}", f"Begin with the header `{expected}`.")
