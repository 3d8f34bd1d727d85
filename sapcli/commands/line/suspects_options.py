"""The options of `sap suspects` alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sapcli.commands.line.options import MOST, SUSPECTS, option
from sapcli.commands.line.parsing import finite
from sapcli.settings import (
    LabelForm,
    SuspectsFormat,
)


@dataclass(frozen=True)
class SuspectsOptions:
    """Which suspects, and what is made of them."""

    count: Annotated[
        int | None,
        option("-n", "--count", panel=SUSPECTS, min=1, max=MOST, help="At most so many, the most suspicious."),
    ] = None
    min_score: Annotated[
        float,
        option(
            "--min-score",
            panel=SUSPECTS,
            min=0.0,
            callback=finite,
            help="Only those whose label costs the model this many nats.",
        ),
    ] = 0.0
    every: Annotated[
        bool,
        option(
            "--all", panel=SUSPECTS, help="List every sample with its score and chance, also where the model agrees."
        ),
    ] = False
    most_of_class: Annotated[
        float,
        option(
            "--most-of-class",
            panel=SUSPECTS,
            metavar="SHARE",
            min=0.0,
            max=1.0,
            callback=finite,
            help="Of each class list at most this share of its images, so that acting on the list empties no class.",
        ),
    ] = 0.5
    format: Annotated[
        SuspectsFormat,
        option(
            "--format",
            panel=SUSPECTS,
            help="How the list is written; paths are one a line, with escapes for what is no visible character.",
        ),
    ] = SuspectsFormat.JSONL
    null: Annotated[
        bool,
        option(
            "-0", "--null", panel=SUSPECTS, help="Write the exact paths, each ended by a null byte, as for xargs -0."
        ),
    ] = False
    html: Annotated[
        Path | None,
        option("--html", panel=SUSPECTS, metavar="FILE", help="Also write a page with the pictures of the first 200."),
    ] = None
    review: Annotated[
        Path | None,
        option(
            "--review",
            panel=SUSPECTS,
            metavar="FILE",
            help="Also write a page on which to decide about each label; it exports a file for --labels.",
        ),
    ] = None
    estimate: Annotated[
        Path | None,
        option(
            "--estimate",
            panel=SUSPECTS,
            metavar="FILE",
            help="Also write how many labels are likely wrong, in all and for each pair of classes, as JSON.",
        ),
    ] = None
    apply: Annotated[
        LabelForm | None,
        option(
            "--apply",
            panel=SUSPECTS,
            help="Also write all labels with the suggestions in place: a file for --labels, or a folder of class"
            " folders with links to the images. Nothing in DATA is changed.",
        ),
    ] = None
    apply_to: Annotated[
        Path | None,
        option("--apply-to", panel=SUSPECTS, metavar="PATH", help="Instead of corrected.csv or the folder corrected."),
    ] = None
    truth: Annotated[
        Path | None,
        option(
            "--truth",
            panel=SUSPECTS,
            metavar="FILE",
            help="A CSV with path,true: also tell precision, recall and the area under the ROC curve.",
        ),
    ] = None
