"""The block about a repair in a model card, as the Hub shows it beside a model's files.

All else in the card stays as it is, byte for byte: its YAML header, its line ends, what stands around the block.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from sapcli.errors import SapError
from sapcli.machine.files import atomic_write, write_error
from sapcli.machine.reading import read_input
from sapcli.reports.pages import render
from sapcli.reports.schema import PolishReport, RepairReport

BEGIN, END = "<!-- sap:begin -->", "<!-- sap:end -->"
# A card is written by hand; what is larger is none.
_LARGEST = 1 << 24


def write_card(card: Path, report: RepairReport | PolishReport) -> None:
    """Add the block about a repair to a model card, or put it in the place of an earlier one; make a missing card.

    Raises:
        SapError: The card cannot be read or written, is no text, or holds half a block.
    """
    text = updated(_read(card) if card.exists() else "", block(report), card)
    with atomic_write(card) as handle:
        handle.write(text.encode())


def block(report: RepairReport | PolishReport) -> str:
    """What a card says of a repair, between its marks; paths are no business of those who read it."""
    name = PurePath(report.title.replace("\\", "/")).name or report.title
    return f"{BEGIN}\n{render('card.md.j2', report=report, name=name).strip()}\n{END}"


def updated(text: str, block: str, card: Path) -> str:
    """A card's text with the block in it.

    Args:
        text: The text as it is.
        block: The block, with its marks.
        card: What messages call it.

    Raises:
        SapError: There is one of the marks without the other.
    """
    line_end = "\r\n" if "\r\n" in text else "\n"
    block = block.replace("\n", line_end)
    begun, ended = text.count(BEGIN), text.count(END)
    if begun != ended or begun > 1 or text.find(END) < text.find(BEGIN):
        raise SapError(
            f"{card} has {begun} times {BEGIN} and {ended} times {END}, not one of each in this order",
            "remove the marks, and what is between them, by hand",
        )
    if begun:
        return re.sub(rf"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _found: block, text, count=1, flags=re.DOTALL)
    if not text.strip("\ufeff \r\n"):
        return f"{text}{block}{line_end}"
    return f"{text}{'' if text.endswith(line_end) else line_end}{line_end}{block}{line_end}"


def _read(card: Path) -> str:
    try:
        return read_input(card, _LARGEST).decode("utf-8")
    except OSError as error:
        raise write_error(str(card), error, SapError) from error
    except ValueError as error:
        raise SapError(f"{card} is no text in UTF-8", "name the README.md of a model") from error
