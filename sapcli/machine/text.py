"""Text from files and users, made harmless for where it is shown: a terminal's line, a cell in Markdown."""

from __future__ import annotations

import re


def printable(text: str) -> str:
    """`text` in one line, with control characters and undecodable bytes shown as escapes."""
    shown = []
    for character in " ".join(text.splitlines()):
        if character.isprintable():
            shown.append(character)
        else:
            shown.append(character.encode("unicode_escape", "surrogatepass").decode())
    return "".join(shown)


def markdown_cell(text: object) -> str:
    """Text for a cell of a Markdown table: in one line, its markup shown and not obeyed."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~$])", r"\\\1", printable(str(text)))


def in_one_line(error: BaseException) -> str:
    """An exception's kind and text, as one line of a message."""
    try:
        text = str(error)
    except Exception:  # an exception's own code can fail as any other
        text = ""
    return f"{type(error).__name__}: {' '.join(text.split())}".rstrip(": ")
