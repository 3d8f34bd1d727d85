"""Text files of labels and lists: in whatever Unicode form they were saved, line by line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from sapcli.errors import DatasetError
from sapcli.machine.reading import read_input

# The marks of the longer form first: that of UTF-16 begins that of UTF-32.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LONGEST_FIRST_LINE = 1 << 16


def read_text(file: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with the mark that tells so.

    Raises:
        DatasetError: If the file cannot be read or decoded.
    """
    try:
        content = read_input(file)
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from error
    encoding = _encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        raise DatasetError(f"{file}, line {line}: not {name} text", "Save the file as UTF-8.") from error


def unreadable(file: Path, error: Exception) -> DatasetError:
    """The error about a file that cannot be read at all."""
    reason = getattr(error, "strerror", None) or error
    return DatasetError(f"{file}: cannot read the file: {reason}", "Check its name and permissions.")


def first_line(file: Path) -> str:
    """The first line of a text file that is not blank, as far as it can be decoded; at most 64 KiB are read.

    Raises:
        OSError: If the file cannot be read.
    """
    with file.open("rb") as handle:
        begin = handle.read(_LONGEST_FIRST_LINE)
    text = begin.decode(_encoding(begin), "replace").lstrip("\ufeff")
    return text.lstrip().partition("\n")[0]


def numbered_lines(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text with their numbers, from 1.

    Raises:
        DatasetError: If a line is blank.
    """
    # str.splitlines would also split at separators that are legal inside names.
    for number, line in enumerate(text.rstrip().replace("\r\n", "\n").split("\n") if text.strip() else (), start=1):
        if not line.strip():
            raise blank_line(file, number)
        yield number, line


def blank_line(file: Path, line: int) -> DatasetError:
    """The error about a line that says nothing."""
    return DatasetError(f"{file}, line {line}: the line is blank", "Remove the line.")


def json_value(file: Path, text: str, line: int | None = None) -> object:
    """The JSON value that a text, or a line of it, is.

    Raises:
        DatasetError: If it is none.
    """
    where = f"{file}, line {line}" if line else str(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not JSON: {error}", "Give one JSON object a line.") from error


def _encoding(content: bytes) -> str:
    """In what a text is written: by its mark, else by the zeros that UTF-16 puts beside plain letters, else UTF-8."""
    unmarked = {(False, True): "utf-16-le", (True, False): "utf-16-be"}
    zeros = content[:1] == b"\0", content[1:2] == b"\0"
    return next((name for mark, name in _MARKS if content.startswith(mark)), unmarked.get(zeros, "utf-8"))
