"""What a person has decided about labels, as a column of a label file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sapcli.datasets.labels.columns import find_paths, is_known_column
from sapcli.datasets.labels.label_files import LABEL_SUFFIXES, file_and_key
from sapcli.datasets.labels.tables import read_table
from sapcli.datasets.labels.texts import json_value, numbered_lines, read_text

DECISION = "decision"
"""The column that says what was decided about an image."""


def read_decided(file: Path) -> frozenset[str]:
    """The paths that a person has decided about, as they stand in a label file: those with text in `decision`.

    Files in forms that have no such column hold no decisions.

    Raises:
        DatasetError: If the file cannot be read, or is not of the form that its ending says.
    """
    file, _key = file_and_key(file)
    if file.suffix.lower() not in LABEL_SUFFIXES:
        return frozenset()
    text = read_text(file)
    if text.lstrip()[:1] in ("{", "["):
        found = [json_value(file, line, number) for number, line in numbered_lines(file, text)]
        records = [record for record in found if isinstance(record, Mapping)]
    else:
        table = read_table(file, text, lambda name: is_known_column(name) or name == DECISION, lambda _field: False)
        records = [dict(zip(table.header, fields, strict=True)) for _line, fields in table.records]
    decided = set()
    for record in records:
        path = next((record[name] for name in find_paths(tuple(record))), None)
        if isinstance(path, str) and str(record.get(DECISION) or "").strip():
            decided.add(path)
    return frozenset(decided)
