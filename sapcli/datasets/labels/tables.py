"""Tables as text: columns parted by commas, tabs, semicolons or bars, with a header or without one."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sapcli.datasets.labels.texts import blank_line
from sapcli.errors import DatasetError

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_SEPARATOR_LINE = re.compile(r'"?sep=([,;|\t])"?[^\S\n]*\n', re.IGNORECASE)
_DELIMITERS = (",", "\t", ";", "|")


@dataclass(frozen=True)
class Table:
    """A table with named columns.

    Attributes:
        header: The names of the columns, in lower case; empty where the table has none.
        records: The number of the line that each record begins at, and its fields.
    """

    header: list[str]
    records: list[tuple[int, list[str]]]

    def column(self, name: str) -> int:
        """The position of a column."""
        return self.header.index(name)


def read_table(file: Path, text: str, is_wanted: Callable[[str], bool], is_value: Callable[[str], bool]) -> Table:
    """Read a table.

    Args:
        file: Where it comes from, for messages.
        text: Its text.
        is_wanted: Whether a name is that of a column that tells by what the columns are parted.
        is_value: Whether a field of the first line is a value and no column's name, so that there is no header.

    Raises:
        DatasetError: If a line is blank, has another number of fields than the first, or is no line of CSV.
    """
    # Excel writes in a first line of its own by what the columns are parted.
    stated = _SEPARATOR_LINE.match(text.lstrip())
    lines_before = 0
    if stated is not None:
        text, lines_before = text.lstrip()[stated.end() :], 1
    reader = csv.reader(
        # A file in memory would take four bytes for each character.
        (found[0] for found in _LINE.finditer(text.rstrip())),
        delimiter=_delimiter(text.lstrip(), is_wanted, is_value) if stated is None else stated[1],
        strict=True,
    )
    header: list[str] = []
    first: list[str] = []
    records: list[tuple[int, list[str]]] = []
    line = 1 + lines_before
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                raise blank_line(file, line)
            if not first:
                first = fields
                if any(is_value(field.strip()) for field in fields):
                    records.append((line, fields))
                else:
                    header = [field.strip().lower() for field in fields]
            elif len(fields) != len(first):
                raise DatasetError(
                    f"{file}, line {line}: {len(fields)} fields where the header has {len(first)}",
                    "Quote fields that hold a comma.",
                )
            else:
                records.append((line, fields))
            line = reader.line_num + 1 + lines_before
    except csv.Error as error:
        raise DatasetError(f"{file}, line {line}: not a line of CSV: {error}", "Check the line's quotes.") from error
    if len(set(header)) != len(header):
        raise DatasetError(f"{file}: a column is named twice in {','.join(header)!r}", "Name each column once.")
    return Table(header, records)


def _delimiter(text: str, is_wanted: Callable[[str], bool], is_value: Callable[[str], bool]) -> str:
    """What parts the columns: that with which the header has most of the wanted columns, else most columns."""
    first = text.partition("\n")[0]

    def parted(delimiter: str) -> tuple[int, int]:
        fields = {field.strip(' \r"') for field in first.split(delimiter)}
        return sum(is_wanted(field.lower()) or is_value(field) for field in fields), len(fields)

    return max(_DELIMITERS, key=parted)
