"""The command line's options that several commands share: their types, names and help, once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sapcli import completion
from sapcli.parsing import parse_alpha, parse_input_size, parse_numbers
from sapcli.preprocessing import PreprocessingOverrides
from sapcli.settings import (
    BatchNorm,
    DataSource,
    ForgetMode,
    Importance,
    LabelForm,
    ModelSource,
    Precision,
    ProjectionSettings,
    RunSettings,
    SelectionSettings,
    Strategy,
    SuspectsFormat,
)

MODEL = "The model"
DATA = "The data"
IMAGES = "Preprocessing, where the checkpoint does not say it"
REPAIR = "The repair"
SUSPECTS = "The suspects"
RUN = "The run"
GATES = "Gates for CI"


def option(*names: str, panel: str, help: str, **more: Any) -> Any:  # noqa: A002
    """A Typer option under a panel of the help, which `SAP_` and its long name in capitals sets in the environment."""
    (long,) = (name for name in names if name.startswith("--"))
    more.setdefault("envvar", "SAP_" + long.removeprefix("--").replace("-", "_").upper())
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A .safetensors, .pt or .pth file, a folder that holds one, or - for stdin.",
        autocompletion=completion.files(".safetensors", ".safetensors.index.json", ".pt", ".pth"),
    ),
]
CheckpointArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="CHECKPOINT",
        help="A .safetensors, .pt or .pth file, a folder that holds one, or - for stdin; or several.",
        autocompletion=completion.files(".safetensors", ".safetensors.index.json", ".pt", ".pth"),
    ),
]
DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A folder of class folders, or of train/, val/ and test/ with them; or a CSV with path,label.",
    ),
]

Trusted = Annotated[
    str | None,
    option(
        "--trusted",
        panel=DATA,
        metavar="FILE|FOLDER|-",
        help="The trusted set: what `sap select` wrote, a list of paths or indices, a folder of images, or - for stdin."
        " Without it, selected as by `sap select`.",
    ),
]

AllRows = Annotated[
    bool,
    option(
        "--all-rows",
        panel=RUN,
        help="Sum all rows of every layer, also where a part of them tells the same: exact, and slower.",
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """What the checkpoint is and how images are prepared for it."""

    arch: Annotated[
        str | None,
        option(
            "--arch",
            panel=MODEL,
            autocompletion=completion.architectures,
            help="The architecture: a timm name, torchvision:NAME, package.module:factory or path/to/file.py:factory."
            " Without it, config.json beside the checkpoint, the file's metadata or its tensors tell.",
        ),
    ] = None
    arch_arguments: Annotated[
        list[str] | None,
        option("--arch-arg", panel=MODEL, metavar="KEY=VALUE", help="An argument of the factory; may be repeated."),
    ] = None
    input_size: Annotated[
        str | None,
        option("--input-size", panel=IMAGES, metavar="C,H,W", help="Also H,W or one number, for 3 channels."),
    ] = None
    mean: Annotated[
        str | None, option("--mean", panel=IMAGES, metavar="R,G,B", help="Subtracted from pixels in [0, 1].")
    ] = None
    std: Annotated[str | None, option("--std", panel=IMAGES, metavar="R,G,B", help="Divided by.")] = None
    interpolation: Annotated[
        str | None, option("--interpolation", panel=IMAGES, metavar="FILTER", help="bilinear, bicubic, lanczos, ...")
    ] = None
    crop_pct: Annotated[
        float | None,
        option("--crop-pct", panel=IMAGES, min=0.01, max=1.0, help="The crop's side over that of the resized image."),
    ] = None

    def to_source(self) -> ModelSource:
        """The options, parsed.

        Raises:
            UsageError: One cannot be.
        """
        from sapcli.architecture import parse_arguments

        overrides = PreprocessingOverrides(
            parse_input_size(self.input_size),
            parse_numbers("--mean", self.mean),
            parse_numbers("--std", self.std),
            self.interpolation,
            self.crop_pct,
        )
        return ModelSource(self.arch, parse_arguments(self.arch_arguments or ()), overrides)


@dataclass(frozen=True)
class DataOptions:
    """Which images, and what says which class they show."""

    split: Annotated[
        str | None, option("--split", panel=DATA, help="The split of DATA to use, instead of the command's own choice.")
    ] = None
    labels: Annotated[
        Path | None,
        option("--labels", panel=DATA, metavar="FILE", help="A CSV with path,label, instead of the folders' labels."),
    ] = None
    class_map: Annotated[
        Path | None,
        option("--class-map", panel=DATA, metavar="FILE", help="Which class folder is which class of the model."),
    ] = None
    strict_images: Annotated[
        bool, option("--strict-images", panel=DATA, help="Stop at an unreadable image instead of leaving it out.")
    ] = False

    def to_source(self, folder: Path, validation: Path | None = None) -> DataSource:
        """The options beside the data folder that they are about."""
        return DataSource(folder, self.split, validation, self.labels, self.class_map)


@dataclass(frozen=True)
class SelectionOptions:
    """How the trusted set is chosen where it is not given."""

    validation: Annotated[
        Path | None,
        option(
            "--val", panel=DATA, metavar="DATA", help="The validation images, given as DATA is, instead of DATA/val."
        ),
    ] = None
    count: Annotated[
        int, option("-n", "--trusted-count", panel=DATA, min=1, help="How many samples to trust, in all.")
    ] = 1000
    strategy: Annotated[
        Strategy, option("--strategy", panel=DATA, help="What makes a label believable; random is a control.")
    ] = Strategy.LOSS

    def to_settings(self) -> SelectionSettings:
        """The options that say which samples."""
        return SelectionSettings(self.count, self.strategy)


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
            help="Project only these (layer4, *.qkv.weight); repeatable.",
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
        option("--forget", panel=REPAIR, metavar="FILE", help="Suspected samples whose directions are taken away."),
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
class SuspectsOptions:
    """Which suspects, and what is made of them."""

    count: Annotated[
        int | None, option("-n", "--count", panel=SUSPECTS, min=1, help="At most so many, the most suspicious.")
    ] = None
    min_score: Annotated[
        float,
        option("--min-score", panel=SUSPECTS, min=0.0, help="Only those whose label costs the model this many nats."),
    ] = 0.0
    format: Annotated[
        SuspectsFormat, option("--format", panel=SUSPECTS, help="How the list is written; paths are one a line.")
    ] = SuspectsFormat.JSONL
    html: Annotated[
        Path | None,
        option("--html", panel=SUSPECTS, metavar="FILE", help="Also write a page with the pictures of the first 200."),
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


Summary = Annotated[
    Path | None,
    option("--summary", panel=GATES, metavar="FILE", help="Append the result as Markdown, as to $GITHUB_STEP_SUMMARY."),
]


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


@dataclass(frozen=True)
class OutputOptions:
    """Where the result goes."""

    output: Annotated[
        str | None, option("-o", "--output", panel=RUN, metavar="FILE|-", help="Where to write; - is stdout.")
    ] = None
    force: Annotated[bool, option("--force", panel=RUN, help="Overwrite an existing output.")] = False


@dataclass(frozen=True)
class RunOptions:
    """How a command runs, the same for all."""

    device: Annotated[str, option("--device", panel=RUN, help="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    batch_size: Annotated[
        int | None,
        option(
            "--batch-size",
            panel=RUN,
            min=1,
            help="Images at a time; by default as many as fit their size: 256 of 64 pixels, 32 of 224 on a CPU.",
        ),
    ] = None
    workers: Annotated[
        int | None, option("--workers", panel=RUN, min=0, help="Processes that decode images; one a core by default.")
    ] = None
    precision: Annotated[
        Precision,
        option(
            "--precision",
            panel=RUN,
            help="Of the passes that look for alpha and for samples; auto is bfloat16 where that is faster. Bases and"
            " the measurements of eval are always float32.",
        ),
    ] = Precision.AUTO
    seed: Annotated[int, option("--seed", panel=RUN, min=0, help="For all that is random.")] = 0
    cache_dir: Annotated[
        Path | None,
        option("--cache-dir", panel=RUN, metavar="DIR", envvar="SAP_CACHE", help="Where artifacts are kept."),
    ] = None
    quiet: Annotated[bool, option("-q", "--quiet", panel=RUN, help="Say nothing but errors.")] = False
    progress_json: Annotated[
        int | None,
        option("--progress-json", panel=RUN, min=1, metavar="FD", help="Tell progress as NDJSON on a file descriptor."),
    ] = None
    verbose: Annotated[
        bool, option("-v", "--verbose", panel=RUN, help="Also name every weight that is left as it is, and why.")
    ] = False

    def to_settings(self, strict_images: bool = False, all_rows: bool = False) -> RunSettings:
        """The options, the device looked for.

        Raises:
            SapError: This machine has no such device.
        """
        from sapcli.device import resolve_device

        workers = _cores() if self.workers is None else self.workers
        return RunSettings(
            resolve_device(self.device),
            self.batch_size,
            workers,
            self.seed,
            strict_images,
            self.precision,
            all_rows,
        )


def _cores() -> int:
    """The number of cores that this process may use, at most 16."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 16)
