"""The page on which a person decides about suspicious labels: one file, which asks for nothing.

The page holds its images and texts as JSON in a block that runs nothing. Its policy allows the one script and the one
style sheet that it carries, by their hashes, and images that it holds; so no name of a file or class can do anything.

It tells how many of the next hundred images are likely wrong. That is a logistic regression of the decisions so far
(1: the label was changed or the image left out; 0: it was kept) on the log odds `x` of the chances from the model,

    P(wrong) = 1 / (1 + exp(-(offset + slope x))),   x cut at +-5,

with normal priors around "the chances are right": offset ~ N(0, 1), slope ~ N(1, 1/4^2), and twice as wide where the
chances are in doubt. The two numbers are the mode of the posterior; the interval has the variance of the hundred
outcomes and that of the two numbers (the inverse of the information at the mode), 1.96 standard deviations each way.
So the model's chances count at first, and what the person sees more and more.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from sapcli.datasets.dataset import Dataset
from sapcli.datasets.thumbnails import thumbnails
from sapcli.reports.pages import render

# Of the text of all pictures; the trusted ones beside the suspects are smaller.
_PICTURES_BYTES, _TRUSTED_BYTES = 12_000_000, 2_500_000
_KEY = "sap-review:"


@dataclass(frozen=True)
class ReviewItem:
    """A sample to decide on.

    Attributes:
        index: Of the sample in the dataset.
        given: Its label, as a position in the classes.
        choices: The most probable classes but the given one, the suggestion first; at least one.
        contradicted: Whether the model takes it for another class than its label says.
        score: The cross-entropy with the label, in nats.
        chance: That the label is wrong, in [0, 1]; `None` where it is not known.
        near: The samples nearest to it among the trusted ones of the given class and of the suggested one.
        same: Samples that show the same picture and have another label.
    """

    index: int
    given: int
    choices: tuple[int, ...]
    contradicted: bool
    score: float
    chance: float | None
    near: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    same: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReviewTexts:
    """What the page says at its top.

    Attributes:
        model: The checkpoint's name.
        listed: Which images these are, a sentence.
        wrong: How many labels are likely wrong in all, a sentence; may be empty.
        warnings: What is to be known before deciding.
        believed: Whether the chances are.
    """

    model: str
    listed: str
    wrong: str = ""
    warnings: tuple[str, ...] = ()
    believed: bool = True


def review_page(
    dataset: Dataset,
    items: Sequence[ReviewItem],
    texts: ReviewTexts,
    place: Path,
    others: Mapping[str, int] | None = None,
) -> str:
    """The page as HTML.

    Args:
        dataset: The samples.
        items: Those to decide on, the most suspicious first.
        texts: What it says of them.
        place: The file that it will be written to; whole images are opened from the data folder by their paths from
            there on.
        others: Labels that the exported file has to repeat, by path; -1 for images without one. `None` where the file
            needs to hold no more than decisions, since images that it does not name keep their folder's label.
    """
    used = list(dict.fromkeys(index for item in items for near in item.near for index in near))
    number = {index: position for position, index in enumerate(used)}
    root = dataset.root
    pictures = thumbnails([root / dataset.paths[item.index] for item in items], _PICTURES_BYTES)
    trusted = thumbnails([root / dataset.paths[index] for index in used], _TRUSTED_BYTES)
    # A class of the name that stands for no label leaves none for images without one.
    leave_out = "-1" not in dataset.classes
    content = {
        "key": _KEY + dataset.fingerprint,
        "folder": _folder(dataset, place),
        "classes": dataset.classes,
        "leaveOut": leave_out,
        "believed": texts.believed,
        "items": [
            {
                "path": dataset.paths[item.index],
                "given": item.given,
                "choices": item.choices,
                "contradicted": item.contradicted,
                "score": round(item.score, 4),
                "chance": None if item.chance is None else round(item.chance, 4),
                "image": image,
                "near": [[number[index] for index in near if trusted[number[index]] is not None] for near in item.near],
                "same": [[dataset.paths[index], dataset.labels[index]] for index in item.same],
            }
            for item, image in zip(items, pictures, strict=True)
        ],
        "neighbours": [
            {"path": dataset.paths[index], "image": image} for index, image in zip(used, trusted, strict=True)
        ],
        "others": None if others is None else list(others.items()),
    }
    style, script = _asset("style.css") + _asset("review.css"), _asset("review.js")
    return render(
        "review.html.j2",
        data=str(root),
        model=texts.model,
        count=len(items),
        listed=texts.listed,
        wrong=texts.wrong,
        warnings=texts.warnings,
        leave_out=leave_out,
        policy=(
            f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:;"
            " base-uri 'none'; form-action 'none'"
        ),
        style=Markup(style),
        script=Markup(script),
        content=Markup(_inert(content)),
    )


def _folder(dataset: Dataset, place: Path) -> str | None:
    """The address of the data folder from the page on, with a slash; `None` where it will not be there."""
    if dataset.unpacked:
        return None
    try:
        below = os.path.relpath(os.path.realpath(dataset.root), os.path.realpath(place.parent))
    except ValueError:  # another drive
        return Path(os.path.realpath(dataset.root)).as_uri() + "/"
    return "./" + quote(Path(below).as_posix(), errors="surrogateescape") + "/"


def _inert(content: object) -> str:
    """JSON that ends no block of a page and begins none."""
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _asset(name: str) -> str:
    return files("sapcli.reports").joinpath("templates", name).read_text("utf-8")
