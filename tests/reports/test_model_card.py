"""The block in a model card: added, replaced, and nothing else touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.reports import hostile_report
from support.small_project import run_here

from sapcli.errors import SapError
from sapcli.reports.model_card import BEGIN, END, block, updated, write_card
from sapcli.reports.schema import to_json

HEADER = "---\nlicense: mit\ntags:\n- image-classification\nmodel-index: []\n---\n"
BODY = "# Cats & dogs\n\nSome *text* without an end"


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_rest_of_a_card_stays(tmp_path: Path, line_end: str) -> None:
    card = tmp_path / "README.md"
    before = f"\ufeff{HEADER}{BODY}".replace("\n", line_end).encode()
    card.write_bytes(before)
    report = hostile_report()
    write_card(card, report)
    first = card.read_bytes()
    assert first.startswith(before)
    assert first.count(BEGIN.encode()) == first.count(END.encode()) == 1
    assert (b"\r\n" in first) == (line_end == "\r\n")
    assert first.count(b"\n") == first.count(line_end.encode())
    card.write_bytes(first + f"more below{line_end}".encode())
    write_card(card, report)
    assert card.read_bytes() == first + f"more below{line_end}".encode()
    header = card.read_text(encoding="utf-8-sig").split("---")[1]
    assert yaml.safe_load(header) == {"license": "mit", "tags": ["image-classification"], "model-index": []}


def test_the_block_says_what_was_done() -> None:
    report = hostile_report()
    text = block(report)
    assert report.measurement is not None
    assert f"{report.measurement.after.top1:.2f}%" in text
    assert f"{report.measurement.gain.low:+.2f} to {report.measurement.gain.high:+.2f}" in text
    assert report.measurement.where not in text
    for digest in report.provenance.digests.values():
        assert f"| {digest} |" in text
    inside = text.removeprefix(BEGIN).removesuffix(END)
    assert BEGIN not in inside
    assert END not in inside
    assert "<script" not in inside


@pytest.mark.parametrize("text", [BEGIN, END, f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_half_a_block_is_an_error(text: str) -> None:
    with pytest.raises(SapError, match="not one of each"):
        updated(text, "block", Path("README.md"))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("repair.json").write_bytes(to_json(hostile_report()))
    ended = run_here("report", "repair.json", "--model-card", "card.md")
    assert (ended.status, ended.stdout) == (0, b"card.md\n")
    made = Path("card.md").read_text()
    assert made.startswith(BEGIN)
    ended = run_here("report", "repair.json", "--model-card", "card.md", "-o", "report.html")
    assert ended.status == 0, ended.stderr
    assert Path("card.md").read_text() == made
    assert Path("report.html").read_text().startswith("<!doctype html>")
    ended = run_here("report", "repair.json", "--model-card", "repair.json")
    assert ended.status == 1
    assert "never overwritten" in ended.stderr
    Path("card.md").write_bytes(b"\xff\xfe")
    ended = run_here("report", "repair.json", "--model-card", "card.md")
    assert ended.status == 1
    assert "no text" in ended.stderr
