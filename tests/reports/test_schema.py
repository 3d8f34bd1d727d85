"""The report as a document: what is written is what is read, and what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.reports import hostile_report

from sapcli.errors import SapError
from sapcli.reports.schema import from_json, schema, to_json


def test_a_report_comes_back_as_it_was(tmp_path: Path) -> None:
    report = hostile_report()
    file = tmp_path / "report.json"
    file.write_bytes(to_json(report))
    assert from_json(file) == report


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "sap.report/2"}, "format"),
        ({"trusted": "many"}, "trusted"),
        ({"layers": [{"name": "conv"}]}, "layers.0"),
        ({"search": None}, "search"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, object], named: str) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(json.loads(to_json(hostile_report())) | change))
    with pytest.raises(SapError, match=named) as caught:
        from_json(file)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"\xff\xfe"])
def test_what_is_no_report_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "report.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SapError, match=r"report\.json"):
        from_json(file)


def test_the_schema_tells_the_version() -> None:
    assert schema()["properties"]["format"]["const"] == "sap.report/1"
