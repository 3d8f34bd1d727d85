"""Text from files and users: what becomes of it where it could steer who reads it."""

from __future__ import annotations

import json
import re

import pytest

from sapcli.machine.text import (
    can_be_printed,
    encodable,
    escaped,
    json_without_commands,
    markdown_cell,
    printable,
    without_commands,
)

STEERING = [
    *("\n", "\r", "\x1b[31m", "\x1b]0;owned\x07", "\x07", "\x7f", "\x85", "\x9b31m", "\x00"),
    *(chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)),
    *("\u200b", "\u2028", "\u2029", "\ufeff", "\udcff"),
]


@pytest.mark.parametrize("steering", STEERING)
def test_what_is_no_visible_character_is_shown_as_an_escape(steering: str) -> None:
    shown = escaped(f"a{steering}b")
    assert shown.isprintable()
    assert shown.encode().decode("unicode_escape") == f"a{steering}b"
    assert printable(f"a{steering}b").isprintable()


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("Käse", "日本語", "ein Name", "a\\b", "n02123045", "émoji 😀"):
        assert escaped(name) == name
        assert can_be_printed(name)


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "a\nb", "\x1b[2J", "\x85", "\u2029"])
def test_names_that_cannot_be_printed(name: str) -> None:
    assert not can_be_printed(name)
    assert encodable(name).encode()


def obeyed(line: str) -> bool:
    """Whether the runner of GitHub Actions takes a line for a command (actions/runner, ActionCommand.cs)."""
    start = line.lstrip()
    if start.startswith("::") and start.find("::", 2) >= 0:
        return True
    place = line.find("##[")
    return place >= 0 and line.find("]", place) >= 0


@pytest.mark.parametrize(
    "text", ["::error::x", "  ::set-output name=a::1", "a ##[set-output name=a;]1", "###[[error]x", ":::a::b", "::::"]
)
def test_no_command_of_a_job_is_left(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_commands(text) == text
    assert json_without_commands(text) == text
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "::" not in without_commands(text)
    assert not obeyed(without_commands(text))
    document = json.dumps({"name": text})
    assert not obeyed(json_without_commands(document))
    assert "::" not in json_without_commands(document)
    assert json.loads(json_without_commands(document)) == {"name": text}


# Where GitHub's renderer makes links of text (GFM's extended autolinks, mentions, references).
LINKED = re.compile(r"@\w|#\d|https?://|ftp://|\bwww\.|\bGH-\d|mailto:\w|xmpp:\w", re.IGNORECASE)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "@org/team",
            "see #123",
            "org/repo#12",
            "https://evil.example",
            "HTTP://evil.example/x.png",
            "www.evil.example",
        ),
        *(
            "a@b.example",
            "mailto:a@b.example",
            "GH-12",
            "gh-7",
            "![x](http://evil.example)",
            "<img src=https://e.example>",
        ),
        "org/repo@0123456789abcdef",
    ],
)
def test_a_cell_mentions_and_links_nobody(text: str) -> None:
    cell = markdown_cell(text)
    assert not LINKED.search(cell)
    # What is seen is the text itself: comments are invisible, and a backslash shows the character after it.
    assert re.sub(r"\\(.)", r"\1", cell.replace("<!-- -->", "")) == text
    assert not re.search(r"(?<!\\)[<\[|`]", cell.replace("<!-- -->", ""))


def test_a_cell_is_one_line() -> None:
    assert markdown_cell("a\n\n# Approved") == "a  \\# Approved"
