"""The files that say which folder is which class of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from sapcli.datasets.labels.columns import wrong_header
from sapcli.datasets.labels.label_numbers import whole_number
from sapcli.datasets.labels.tables import read_table
from sapcli.datasets.labels.texts import json_value, numbered_lines, read_text
from sapcli.errors import DatasetError

# ImageNet-21k has 21,841 classes.
_MOST_ENTRIES = 500_000
_MAP_COLUMNS = ("class", "label", "name", "index")


def read_class_map(file: Path) -> dict[str, str | int]:
    """Read which class folder is which class of the model.

    A JSON object or a CSV with a column `folder` and a column `class` gives each folder a class name or a number; a
    JSON array or a text file with one folder a line gives each folder its position, as timm's class maps do.

    Raises:
        DatasetError: If the file cannot be read, is not UTF-8, is none of these forms, or names a folder twice.
    """
    text = read_text(file)
    if max(text.count("\n"), text.count(",")) > _MOST_ENTRIES:
        raise DatasetError(f"{file} has more than {_MOST_ENTRIES:,} lines, expected a class map", "Check its name.")
    if text.lstrip()[:1] in ("{", "["):
        pairs = _json_class_map(file, text)
    elif file.suffix.lower() in (".csv", ".tsv"):
        table = read_table(file, text, ("folder", *_MAP_COLUMNS).__contains__, lambda _field: False)
        columns = [name for name in _MAP_COLUMNS if name in table.header]
        if "folder" not in table.header or not columns:
            raise wrong_header(file, table.header, "folder,class")
        folder_column, column = table.column("folder"), table.column(columns[0])
        pairs = [(fields[folder_column], _number_or_name(fields[column])) for _line, fields in table.records]
    else:
        pairs = [(line.strip(), index) for index, (_number, line) in enumerate(numbered_lines(file, text))]
    class_map: dict[str, str | int] = {}
    for folder, name in pairs:
        if folder in class_map:
            raise DatasetError(f"{file}: the folder {folder!r} is named twice", "Keep one line per folder.")
        class_map[folder] = name
    if not class_map:
        raise DatasetError(f"{file}: the class map names no folder", "Give the header `folder,class` and the folders.")
    return class_map


def _json_class_map(file: Path, text: str) -> list[tuple[str, str | int]]:
    content = json_value(file, text)
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


def _number_or_name(text: str) -> str | int:
    number = whole_number(text.strip())
    return text.strip() if number is None else number
