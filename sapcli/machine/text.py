"""Text from files and users, made harmless for where it is shown: a line, a log, JSON, a cell in Markdown."""

from __future__ import annotations

import os
import re
import unicodedata

# What no name that is shown to people may hold: controls, halves of surrogate pairs, separators of lines.
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
# What splits a text for a renderer of Markdown without being seen.
_SPLIT = "<!-- -->"
# Where GitHub makes links and mentions of plain text, after its markup was read: @name, #12, GH-12, addresses.
_LINKED = re.compile(
    r"(?P<before>@(?=\w)|\\?#(?=\w)|\bGH-(?=\d)|\w:(?=//)|\bwww(?=\.)|\b(?:mailto|xmpp):)", re.IGNORECASE
)


def printable(text: str) -> str:
    """`text` in one line, with control characters and undecodable bytes shown as escapes."""
    return escaped(" ".join(text.splitlines()))


def escaped(text: str) -> str:
    r"""`text` with all that is no visible character shown as an escape: a line break as `\n`, a byte as `\udcff`.

    So a name stays on its line, and moves neither the cursor nor the direction of what stands beside it.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def can_be_printed(text: str) -> bool:
    """Whether a text holds no control character, half of a surrogate pair, or separator of lines."""
    return not any(unicodedata.category(character) in _UNPRINTABLE for character in text)


def encodable(text: str) -> str:
    r"""`text` as UTF-8 can hold it: undecodable bytes of a name are shown as `\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def markdown_cell(text: object) -> str:
    """Text for a cell of a Markdown table: in one line, its markup, links and mentions shown and not obeyed."""
    shown = re.sub(r"([\\`*_{}\[\]<>|#&~$])", r"\\\1", printable(str(text)))
    return _LINKED.sub(lambda found: found["before"] + _SPLIT, shown)


def in_github_actions() -> bool:
    """Whether this runs in a GitHub Actions job, whose log obeys commands and shows annotations beside the code."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def without_commands(text: str) -> str:
    r"""`text` as a log may hold it: in GitHub Actions, `::` and `##[`, which begin its commands, as `:\:` and `##\[`.

    `##[...]` is obeyed anywhere in a line (actions/runner, `ActionCommand.TryParse`), `::...::` at its beginning.
    """
    if not in_github_actions():
        return text
    return text.replace("##[", "##\\[").replace("::", ":\\:").replace("::", ":\\:")


def json_without_commands(text: str) -> str:
    """The same of JSON, whose meaning stays: both stand only inside of its strings, where escapes are understood."""
    if not in_github_actions():
        return text
    return text.replace("##[", "##\\u005b").replace("::", ":\\u003a")


def json_array(lines: str) -> str:
    """JSON Lines as one array, an element a line."""
    rows = lines.split("\n")[:-1]
    return "[\n" + ",\n".join(rows) + "\n]\n" if rows else "[]\n"


def in_one_line(error: BaseException) -> str:
    """An exception's kind and text, as one line of a message."""
    try:
        text = str(error)
    except Exception:  # an exception's own code can fail as any other
        text = ""
    return f"{type(error).__name__}: {' '.join(text.split())}".rstrip(": ")
