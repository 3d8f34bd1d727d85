"""Pages and Markdown: complete, without addresses to fetch, and safe whatever files and names hold."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from support.reports import HOSTILE, hostile_report

from sapcli.reports.pages import render_html, render_markdown, render_report
from sapcli.reports.schema import RepairReport, to_json
from sapcli.settings import ReportForm

_EMPTY_ELEMENTS = {"meta", "link", "img", "br"}


class Elements(HTMLParser):
    """The elements of a page and their addresses; elements have to be closed in their order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the element."""
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in _EMPTY_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the element."""
        assert self.open.pop() == tag


def test_a_page_holds_every_part_of_the_report() -> None:
    page = render_html(hostile_report())
    elements = Elements(page)
    assert elements.open == []
    assert elements.seen.count("svg") == 6  # alpha, classes, two confusion matrices, losses, one layer
    assert elements.seen.count("img") == 1
    for text in ("raised accuracy", "Class by class", "What is taken for what", "To do it again", "other.weight"):
        assert text in page


def test_a_page_fetches_nothing_and_runs_nothing() -> None:
    elements = Elements(render_html(hostile_report()))
    assert not {"script", "iframe", "object", "form"} & set(elements.seen)
    assert all(address.startswith(("data:", "#")) for address in elements.addresses)


def test_markup_in_names_is_shown_and_not_obeyed() -> None:
    page = render_html(hostile_report())
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    "image", ["javascript:alert(1)", "https://example.org/x.png", 'data:image/png;base64,A" onload=x']
)
def test_an_image_that_is_not_held_in_the_report_is_not_shown(image: str) -> None:
    assert "img" not in Elements(render_html(hostile_report(image))).seen


def test_a_report_of_an_unmeasured_repair_is_a_page_too() -> None:
    report = hostile_report()
    bare = replace(report, measurement=None, suspicion=None, search=replace(report.search, attempts=(), unchanged=None))
    assert Elements(render_html(bare)).seen.count("svg") == 2
    assert "Measured on" not in render_markdown(bare)


def test_markdown_keeps_its_tables_whole() -> None:
    text = render_markdown(hostile_report())
    assert HOSTILE not in text.split("```")[0]
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


def test_the_form_decides_what_is_written() -> None:
    report = hostile_report()
    assert render_report(report, ReportForm.JSON) == to_json(report)
    assert render_report(report, ReportForm.HTML).startswith(b"<!doctype html>")
    assert render_report(report, ReportForm.MARKDOWN).startswith(b"## Repair of")


STEERING = "x\n\n</details>\n\n# Approved <img src=https://evil.example/x.png> @org/team #12 www.evil.example\n"
# What GitHub's renderer makes links and mentions of, and what would be a heading or an element.
OBEYED = re.compile(
    r"@\w|#\d|https?://|\bwww\.|^\s*#+ (?!Repair of)|(?<!\\)<(?!!-- -->|/?details|/?summary)", re.MULTILINE
)


def steering_reports() -> dict[str, RepairReport]:
    """A report with the same text in one field each."""
    report = hostile_report("")
    provenance = report.provenance
    return {
        "title": replace(report, title=STEERING),
        "verdict": replace(report, verdict=STEERING),
        "weak points": replace(report, weak_points=(STEERING,)),
        "explanation": replace(report, search=replace(report.search, explanation=STEERING)),
        "name of a version": replace(report, provenance=replace(provenance, versions={STEERING: "1"})),
        "version": replace(report, provenance=replace(provenance, versions={"torch": STEERING})),
        "name of a digest": replace(report, provenance=replace(provenance, digests={STEERING: "1"})),
        "digest": replace(report, provenance=replace(provenance, digests={"checkpoint": f"`{STEERING}"})),
    }


@pytest.mark.parametrize("field", steering_reports())
def test_no_field_of_a_report_is_obeyed_as_markdown(field: str) -> None:
    text = render_markdown(steering_reports()[field])
    outside = re.sub(r"^```\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not OBEYED.findall(outside)
    assert outside.count("</details>") == 1


def test_a_command_line_stays_in_its_box() -> None:
    report = hostile_report("")
    command = "sap\n```\n# Approved @org/team"
    text = render_markdown(replace(report, provenance=replace(report.provenance, command=command)))
    assert len(re.findall("^```", text, re.MULTILINE)) == 2
    assert "sap " + 3 * "'" + " # Approved @org/team" in text
