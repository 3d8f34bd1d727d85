"""What is known of a data set in containers before an image is read: its splits, and the labels of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
MOST_OF_MEMBER = 128 << 20
"""Bytes of an image that lies inside of a file, which is in memory beside its pixels."""


@dataclass(frozen=True)
class GivenLabels:
    """One labelling of some images.

    Attributes:
        texts: The label of each image: the name of its class, or a number.
        names: The classes' names where labels are their positions.
    """

    texts: tuple[str, ...]
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Listing:
    """The images of a split.

    Attributes:
        paths: Their paths below the data set's root, in the order in which they lie there.
        labels: Their labels, by what these are called; several where there are coarse and fine ones.
        remarks: What was left out, for people.
    """

    paths: tuple[str, ...]
    labels: Mapping[str, GivenLabels]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A data set in containers.

    Attributes:
        what: What it is, for people.
        root: The folder, or the file, that holds it.
        splits: Its splits by their names, in their order; one with the empty name where it has none. Each is listed
            when it is asked for.
        is_one: Whether a single file was given, whose images then serve whatever it is called.
    """

    what: str
    root: Path
    splits: Mapping[str, Callable[[], Listing]] = field(default_factory=dict)
    is_one: bool = False


def joined(listings: list[Listing]) -> Listing:
    """The images of several files as those of one; of their labels, those that all have."""
    common = [key for key in listings[0].labels if all(key in other.labels for other in listings)]
    labels = {
        key: GivenLabels(
            tuple(text for listing in listings for text in listing.labels[key].texts), listings[0].labels[key].names
        )
        for key in common
    }
    return Listing(
        tuple(path for listing in listings for path in listing.paths),
        labels,
        tuple(dict.fromkeys(remark for listing in listings for remark in listing.remarks)),
    )
