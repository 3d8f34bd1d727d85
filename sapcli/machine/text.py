"""Text in Markdown."""

from __future__ import annotations

import re

from sapcli.console import printable


def cell(text: object) -> str:
    """Text for a cell of a table: in one line, its markup shown and not obeyed."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~$])", r"\\\1", printable(str(text)))
