"""What commands write as JSON, held against the published schemas."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from sapcli.reports.schemas import adapter

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def validated(name: str, text: str | bytes) -> Any:
    """The JSON that a command wrote, once it fits the schema: by the published file, and by the models themselves."""

    def no_constant(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads(text, parse_constant=no_constant)
    adapter(name).validate_json(text)
    # An extra for development.
    with contextlib.suppress(ImportError):
        from jsonschema import Draft202012Validator

        schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
        Draft202012Validator.check_schema(schema)
        Draft202012Validator(schema).validate(document)
    return document
