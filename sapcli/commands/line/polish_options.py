"""The options of `sap polish` alone: how a model is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sapcli.commands.line import completion
from sapcli.commands.line.options import DATA, MOST, option
from sapcli.commands.line.parsing import finite
from sapcli.settings import Augment, PolishSettings

TRAINING = "The training"


@dataclass(frozen=True)
class PolishOptions:
    """How a model is trained on."""

    validation: Annotated[
        Path | None,
        option(
            "--val",
            panel=DATA,
            metavar="DATA",
            help="The validation images, given as DATA is, instead of DATA/val: the result is written only if it is"
            " better on these.",
        ),
    ] = None
    epochs: Annotated[
        int | None,
        option(
            "--epochs",
            panel=TRAINING,
            min=1,
            max=MOST,
            help="Passes over the training images; 3 by default, and more where images are few.",
        ),
    ] = None
    max_time: Annotated[
        float | None,
        option(
            "--max-time",
            panel=TRAINING,
            metavar="MINUTES",
            min=0.01,
            callback=finite,
            help="How long the run may take: it trains as much as fits. The result then depends on the speed.",
        ),
    ] = None
    labels_as_given: Annotated[
        bool,
        option(
            "--labels-as-given",
            panel=TRAINING,
            help="Train on the labels as they are, instead of blending each with the model's own answer.",
        ),
    ] = False
    no_repair: Annotated[
        bool,
        option("--no-repair", panel=TRAINING, help="Begin with the model as it is, instead of repairing it first."),
    ] = False
    flip: Annotated[
        bool | None,
        option(
            "--flip/--no-flip",
            panel=TRAINING,
            envvar="SAP_FLIP",
            help="Whether to mirror half of the images; by default where that does not change the model's answers,"
            " as it does with digits and text.",
        ),
    ] = None
    augment: Annotated[
        Augment,
        option(
            "--augment",
            panel=TRAINING,
            help="How images are varied otherwise: auto crops them a little, trivial and rand change colours and shapes"
            " as well.",
        ),
    ] = Augment.AUTO
    freeze: Annotated[
        list[str] | None,
        option(
            "--freeze",
            panel=TRAINING,
            metavar="PATTERN",
            autocompletion=completion.layers,
            help="Leave these parameters as they are (layer1, *.bias); repeatable.",
        ),
    ] = None
    head_only: Annotated[bool, option("--head-only", panel=TRAINING, help="Train the last layer alone.")] = False

    def to_settings(self) -> PolishSettings:
        """The options that say how."""
        return PolishSettings(
            epochs=self.epochs,
            max_minutes=self.max_time,
            labels_as_given=self.labels_as_given,
            repair_first=not self.no_repair,
            flip=self.flip,
            augment=self.augment,
            freeze=tuple(self.freeze or ()),
            head_only=self.head_only,
        )
