"""JSON that comes from outside: a header, an index, a `config.json`, within bounds and without doubled keys."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import NoReturn

from sapcli.errors import CheckpointError

MAX_HEADER = 16 << 20
"""Bytes of JSON that are read at once: 100,000 tensors with names of 80 characters; networks have less than 5,000.

Python's objects of such a text take up to 25 times its size, so their number is bounded as well.
"""
_MAX_VALUES = 2_000_000
COPY_HINT = "Copy or download the file again, or save it again where it was made."
"""What to do about a damaged file."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlist = 8


def parse_json_object(text: bytes, source: str) -> dict[str, object]:
    """Parse a JSON object that comes from outside.

    Args:
        text: The bytes.
        source: What messages call it.

    Returns:
        The object, with texts that are valid Unicode.

    Raises:
        CheckpointError: The text is not UTF-8, not JSON, not an object, has a doubled key, is nested too deeply, or is
            larger than what a checkpoint can need.
    """
    if len(text) > MAX_HEADER:
        raise CheckpointError(f"Cannot read {source}: it is larger than {MAX_HEADER} bytes", COPY_HINT)
    # Each value of the text has one of these before it, as do some characters in names.
    values = text.count(b",") + text.count(b"[") + text.count(b"{")
    if values > _MAX_VALUES:
        raise CheckpointError(f"Cannot read {source}: it has more than {_MAX_VALUES} values", COPY_HINT)
    try:
        value = json.loads(text.decode(), object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
        # Half a pair of surrogates can stand in an escape alone.
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise CheckpointError(f"Cannot read {source}: not valid JSON ({reason})", COPY_HINT) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"Cannot read {source}: {shown(value)} is not a JSON object", COPY_HINT)
    return value


def read_json_file(path: Path) -> dict[str, object]:
    """The JSON object in a file that comes from outside.

    Raises:
        CheckpointError: It cannot be read, or `parse_json_object` refuses it.
    """
    try:
        with path.open("rb") as handle:
            text = handle.read(MAX_HEADER + 1)  # one more, by which it shows
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}", "Check its permissions and its disk.") from error
    return parse_json_object(text, str(path))


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping: dict[str, object] = {}
    for name, value in pairs:
        if name in mapping:
            raise ValueError(f"the key {shown(name)} is there twice")
        mapping[name] = value
    return mapping


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def shown(value: object) -> str:
    """A value from a file as a message can hold it: on one line, without control characters, not too long."""
    return _SHORT.repr(value)
