"""HTML pages and Markdown from templates. Everything that comes from files or users is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from sapcli.suspects import Suspect
from sapcli.thumbnails import thumbnail


@dataclass(frozen=True)
class Picture:
    """A suspect with its image: a `data:` address, `None` where it cannot be read."""

    path: str
    given: str
    suggested: str
    score: float
    image: str | None


def picture(root: Path, suspect: Suspect) -> Picture:
    """The suspect's picture, read from the data folder `root`."""
    return Picture(suspect.path, suspect.given, suspect.suggested, suspect.score, thumbnail(root / suspect.path))


def render(template: str, **values: object) -> str:
    """The template's text; names that are not UTF-8 show a replacement character."""
    text = _environment().get_template(template).render(**values)
    return text.encode("utf-8", "replace").decode()


def contact_sheet(root: Path, model: str, samples: int, suspects: Sequence[Suspect], shown: int = 200) -> str:
    """A page with the pictures of the first `shown` suspects.

    Args:
        root: The data folder.
        model: The checkpoint's name.
        samples: How many samples there are in all.
        suspects: The most suspicious first.
        shown: How many to show; more make the page heavy.
    """
    pictures = [picture(root, suspect) for suspect in suspects[:shown]]
    return render(
        "suspects.html.j2", data=str(root), model=model, samples=samples, total=len(suspects), pictures=pictures
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("sapcli"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
