"""The options of `sap project` alone: how weights are changed, and what is written about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sapcli.commands.line import completion
from sapcli.commands.line.options import REPAIR, RUN, Summary, option
from sapcli.commands.line.parsing import parse_alpha
from sapcli.settings import (
    BatchNorm,
    ForgetMode,
    Importance,
    ProjectionSettings,
    ResultFormat,
    WeightsFormat,
    WritingFormat,
)


@dataclass(frozen=True)
class ProjectionOptions:
    """How the weights are changed."""

    bases: Annotated[
        str | None,
        option("--bases", panel=REPAIR, metavar="FILE|-", help="What `sap activations` wrote, instead of making it."),
    ] = None
    alpha: Annotated[
        str,
        option(
            "--alpha",
            panel=REPAIR,
            metavar="auto|VALUE",
            help="How much is kept: a small value keeps only the strongest directions, a large one all. auto tries a"
            " range and takes the best on the validation images; without any, the smallest that keeps 98% of the"
            " trusted samples right. With --importance gpm, the fraction of the energy.",
        ),
    ] = "auto"
    importance: Annotated[
        Importance, option("--importance", panel=REPAIR, help="How a direction's strength becomes its importance.")
    ] = Importance.SAP
    layers: Annotated[
        list[str] | None,
        option(
            "--layers",
            panel=REPAIR,
            metavar="PATTERN",
            autocompletion=completion.layers,
            help="Project only these (layer4, *.qkv.weight), or half of the network: early or late; repeatable.",
        ),
    ] = None
    skip_layers: Annotated[
        list[str] | None,
        option(
            "--skip-layers",
            panel=REPAIR,
            metavar="PATTERN",
            autocompletion=completion.layers,
            help="Leave these; repeatable.",
        ),
    ] = None
    keep_classifier: Annotated[
        bool, option("--keep-classifier", panel=REPAIR, help="Leave the last layer as it is.")
    ] = False
    batchnorm: Annotated[
        BatchNorm,
        option("--batchnorm", panel=REPAIR, help="BatchNorm statistics after the projection, on unlabeled images."),
    ] = BatchNorm.REESTIMATE
    forget: Annotated[
        str | None,
        option(
            "--forget",
            panel=REPAIR,
            metavar="FILE",
            help="Suspected samples whose directions are taken away; a list, or a table with is_label_issue.",
        ),
    ] = None
    forget_mode: Annotated[
        ForgetMode,
        option("--forget-mode", panel=REPAIR, help="Spare the directions that trusted samples share, or take all."),
    ] = ForgetMode.KEEP_SHARED

    def to_settings(self) -> ProjectionSettings:
        """The options that say how.

        Raises:
            UsageError: The value of alpha is none.
        """
        return ProjectionSettings(
            parse_alpha(self.alpha, self.importance),
            self.importance,
            tuple(self.layers or ()),
            tuple(self.skip_layers or ()),
            self.keep_classifier,
            self.forget_mode,
            self.batchnorm,
        )


@dataclass(frozen=True)
class WritingOptions:
    """In which form the result is told, and a training file is written."""

    formats: Annotated[
        list[WritingFormat] | None,
        option(
            "--format",
            panel=RUN,
            help="json writes the result to stdout as JSON for programs. pth writes a training file as it came"
            " (optimizer, epoch, ...) with the weights replaced, to go on training. Both may be given.",
        ),
    ] = None
    keep_extra: Annotated[
        bool,
        option(
            "--keep-extra",
            panel=RUN,
            help="Also write what a training file holds beside the network: optimizers, averages, losses.",
        ),
    ] = False

    @property
    def form(self) -> WeightsFormat:
        """How the checkpoint is written."""
        return WeightsFormat.PTH if WritingFormat.PTH in (self.formats or ()) else WeightsFormat.SAFETENSORS

    @property
    def result(self) -> ResultFormat:
        """How the result is written to stdout."""
        return ResultFormat.JSON if WritingFormat.JSON in (self.formats or ()) else ResultFormat.TEXT


@dataclass(frozen=True)
class RecordOptions:
    """What is written about a repair, beside the checkpoint."""

    report: Annotated[
        list[Path] | None,
        option(
            "--report",
            panel=RUN,
            metavar="FILE",
            help="Also write a report, as the ending says: .html, .md or .json; repeatable. Scores the training images"
            " once more, and both models on DATA/test where there is one.",
        ),
    ] = None
    summary: Summary = None
