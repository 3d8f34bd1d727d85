"""The command line's options that several commands share: their types, names and help, once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sapcli.commands.line import completion
from sapcli.commands.line.parsing import finite, parse_candidates, parse_input_size, parse_numbers
from sapcli.commands.line.settings_file import NO_SETTINGS, UsedSettings
from sapcli.machine.parallel.membership import local_world_size
from sapcli.settings import (
    DataSource,
    Exif,
    ModelSource,
    Precision,
    PreprocessingOverrides,
    ResultFormat,
    RunSettings,
    SelectionSettings,
    Strategy,
)

MODEL = "The model"
DATA = "The data"
IMAGES = "Preprocessing, where the checkpoint does not say it"
REPAIR = "The repair"
SUSPECTS = "The suspects"
RUN = "The run"
GATES = "Gates for CI"

# What the libraries take at most for a count, and for a seed.
MOST = 2**31 - 1
LARGEST_SEED = 2**63 - 1


def option(*names: str, panel: str, help: str, **more: Any) -> Any:  # noqa: A002
    """A Typer option under a panel of the help, which `SAP_` and its long name in capitals sets in the environment."""
    (long,) = (name for name in names if name.startswith("--"))
    more.setdefault("envvar", "SAP_" + long.removeprefix("--").replace("-", "_").upper())
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A .safetensors, .pt, .pth or .ckpt file, a folder that holds one, hf-hub:OWNER/NAME, or - for stdin.",
        autocompletion=completion.files(".safetensors", ".safetensors.index.json", ".pt", ".pth", ".ckpt"),
    ),
]
CheckpointArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="CHECKPOINT",
        help="A .safetensors, .pt, .pth or .ckpt file, a folder that holds one, hf-hub:OWNER/NAME, or - for stdin; or"
        " several.",
        autocompletion=completion.files(".safetensors", ".safetensors.index.json", ".pt", ".pth", ".ckpt"),
    ),
]
DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A folder of class folders, or of train/, val/ and test/ with them; or a CSV with path,label, an archive,"
        " WebDataset shards, Parquet files and others.",
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
    weights: Annotated[
        str | None,
        option(
            "--weights",
            panel=MODEL,
            metavar="ema|NAME",
            help="Which weights of a training file that holds several: ema for their average, or the key that they have"
            " in the file. Without it, those that were trained.",
        ),
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
        option(
            "--crop-pct",
            panel=IMAGES,
            min=0.01,
            max=1.0,
            callback=finite,
            help="The crop's side over that of the resized image.",
        ),
    ] = None
    exif: Annotated[
        Exif | None,
        option(
            "--exif",
            panel=IMAGES,
            help="The orientation that cameras write into images; apply turns them upright. Give what the training"
            " did: torchvision's and timm's loaders ignore it.",
        ),
    ] = None

    def to_source(self) -> ModelSource:
        """The options, parsed.

        Raises:
            UsageError: One cannot be.
        """
        from sapcli.commands.line.parsing import parse_arguments

        overrides = PreprocessingOverrides(
            parse_input_size(self.input_size),
            parse_numbers("--mean", self.mean),
            parse_numbers("--std", self.std),
            self.interpolation,
            self.crop_pct,
            self.exif,
        )
        return ModelSource(self.arch, parse_arguments(self.arch_arguments or ()), overrides)


@dataclass(frozen=True)
class DataOptions:
    """Which images, and what says which class they show."""

    split: Annotated[
        str | None, option("--split", panel=DATA, help="The split of DATA to use, in any spelling; . is DATA itself.")
    ] = None
    labels: Annotated[
        Path | None,
        option(
            "--labels",
            panel=DATA,
            metavar="FILE",
            help="A CSV with path,label, instead of the folders' labels; or FILE:COLUMN.",
        ),
    ] = None
    class_map: Annotated[
        Path | None,
        option("--class-map", panel=DATA, metavar="FILE", help="Which class folder is which class of the model."),
    ] = None
    suggest_class_map: Annotated[
        Path | None,
        option(
            "--suggest-class-map",
            panel=DATA,
            metavar="FILE",
            help="Where the model's answers fit another order of the classes, write it here, for --class-map.",
        ),
    ] = None
    strict_images: Annotated[
        bool, option("--strict-images", panel=DATA, help="Stop at an unreadable image instead of leaving it out.")
    ] = False

    def to_source(self, folder: Path, validation: Path | None = None) -> DataSource:
        """The options beside the data folder that they are about."""
        return DataSource(folder, self.split, validation, self.labels, self.class_map, self.suggest_class_map)


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
        int,
        option("-n", "--trusted-count", panel=DATA, min=1, max=MOST, help="How many samples to trust, in all."),
    ] = 1000
    strategy: Annotated[
        Strategy, option("--strategy", panel=DATA, help="What makes a label believable; random is a control.")
    ] = Strategy.LOSS
    candidates: Annotated[
        str,
        option(
            "--candidates",
            panel=DATA,
            metavar="auto|all|N",
            help="Among how many training images, drawn at random, trusted samples are looked for. auto: 20 a trusted"
            " sample, at least 50 a class; what is smaller is scored whole.",
        ),
    ] = "auto"

    def to_settings(self) -> SelectionSettings:
        """The options that say which samples."""
        return SelectionSettings(self.count, self.strategy, parse_candidates(self.candidates))


FormatOfResult = Annotated[
    ResultFormat,
    option("--format", panel=RUN, help="How the result is written to stdout: for people, or as JSON for programs."),
]

Summary = Annotated[
    Path | None,
    option("--summary", panel=GATES, metavar="FILE", help="Append the result as Markdown, as to $GITHUB_STEP_SUMMARY."),
]

RequireGain = Annotated[
    float | None,
    option(
        "--require-gain",
        panel=GATES,
        metavar="POINTS",
        callback=finite,
        help="Write nothing and exit 3 unless validation accuracy rises by this many points.",
    ),
]


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
            max=MOST,
            help="Images at a time; by default as many as fit their size: 256 of 64 pixels, 32 of 224 on a CPU.",
        ),
    ] = None
    workers: Annotated[
        int | None,
        option("--workers", panel=RUN, min=0, max=MOST, help="Processes that decode images; one a core by default."),
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
    seed: Annotated[int, option("--seed", panel=RUN, min=0, max=LARGEST_SEED, help="For all that is random.")] = 0
    cache_dir: Annotated[
        Path | None,
        option("--cache-dir", panel=RUN, metavar="DIR", envvar="SAP_CACHE", help="Where artifacts are kept."),
    ] = None
    quiet: Annotated[bool, option("-q", "--quiet", panel=RUN, help="Say nothing but errors.")] = False
    progress_json: Annotated[
        int | None,
        option(
            "--progress-json",
            panel=RUN,
            min=1,
            max=MOST,
            metavar="FD",
            help="Tell progress as NDJSON on a file descriptor.",
        ),
    ] = None
    settings: UsedSettings = NO_SETTINGS
    verbose: Annotated[
        bool, option("-v", "--verbose", panel=RUN, help="Also name every weight that is left as it is, and why.")
    ] = False

    def to_settings(self, strict_images: bool = False, all_rows: bool = False) -> RunSettings:
        """The options, the device looked for.

        Raises:
            SapError: This machine has no such device.
        """
        from sapcli.machine.device import resolve_device

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
    """The number of cores that this process may use, at most 16; processes of one run share a machine's."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(available // local_world_size(), 1), 16)
