"""What a user can choose: enums and frozen groups of options. Nothing here imports torch, for the sake of start-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def names_own_code(architecture: str) -> bool:
    """Whether an `--arch` names code outside of the libraries that are known, which only the user may ask for."""
    library, colon, _ = architecture.partition(":")
    return bool(colon) and library not in {"timm", "torchvision", "transformers"}


class Strategy(StrEnum):
    """What makes a label believable."""

    LOSS = "loss"
    """A low cross-entropy with the given label (Kodge et al., arXiv 2403.08618)."""
    CURVATURE = "curvature"
    """A low curvature of the loss in the input (Garg et al., ICML 2024), as in the published procedure."""
    RANDOM = "random"
    """Nothing: a uniform choice, the control."""


class Importance(StrEnum):
    """How eigenvalues become importances in (0, 1]."""

    SAP = "sap"
    """`alpha s / ((alpha - 1) s + 1)` with `s` the share of the energy (Kodge et al., arXiv 2403.08618, eq. 4)."""
    SGP = "sgp"
    """`alpha sigma / ((alpha - 1) sigma + max sigma)` (scaled gradient projection, Saha and Roy, AAAI 2023)."""
    GPM = "gpm"
    """1 for the leading directions that hold the fraction `alpha` of the energy, 0 for the rest (gradient projection
    memory, Saha et al., ICLR 2021)."""

    @property
    def takes_fraction(self) -> bool:
        """Whether `alpha` is a fraction of the energy, in (0, 1], and not a coefficient above 0."""
        return self is Importance.GPM


class ForgetMode(StrEnum):
    """What a forget set takes away; `Mr` keeps the trusted rows' space, `Mf` the forget rows'."""

    KEEP_SHARED = "keep-shared"
    """`W (I - (Mf - Mf Mr))^T`: the forget set's directions, except where the trusted set has them too."""
    ALL = "all"
    """`W (I - Mf)^T`: the forget set's directions, all of them."""


class BatchNorm(StrEnum):
    """What becomes of BatchNorm statistics after a projection."""

    REESTIMATE = "reestimate"
    KEEP = "keep"


class Augment(StrEnum):
    """How training images are varied beside being flipped."""

    AUTO = "auto"
    """By their size: small reflected crops up to 64 pixels, resized crops above."""
    TRIVIAL = "trivial"
    """One random change of colour or shape an image as well (TrivialAugment, Mueller and Hutter, ICCV 2021)."""
    RAND = "rand"
    """Two of them (RandAugment, Cubuk et al., NeurIPS 2020)."""
    NONE = "none"
    """Not at all."""


class Precision(StrEnum):
    """What the network computes in where it need not be exact: to choose alpha, and to look through samples."""

    AUTO = "auto"
    """bfloat16 where the device is fast at it and the network is large enough to gain from it, else float32."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Exif(StrEnum):
    """What becomes of the EXIF orientation that cameras write into an image file."""

    IGNORE = "ignore"
    """The picture is taken as it is stored, as torchvision and timm take it."""
    APPLY = "apply"
    """The picture is turned upright."""


class OutputFormat(StrEnum):
    """How metrics are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class ResultFormat(StrEnum):
    """How the result of a command is written that is a path, or a few lines, to people."""

    TEXT = "text"
    JSON = "json"


class SamplesFormat(StrEnum):
    """How a list of samples is written: an object a line, or one array of them."""

    JSONL = "jsonl"
    JSON = "json"


class SuspectsFormat(StrEnum):
    """How a list of suspects is written."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    PATHS = "paths"


class NoiseKind(StrEnum):
    """How labels become wrong that are made so on purpose."""

    SYMMETRIC = "symmetric"
    """Any other class."""
    ASYMMETRIC = "asymmetric"
    """Classes are taken for one that looks alike."""
    HIERARCHICAL = "hierarchical"
    """Another class of the same group."""


class LabelForm(StrEnum):
    """How corrected labels are written: a label file, or class folders of symbolic links to the images."""

    CSV = "csv"
    LINKS = "links"


class WeightsFormat(StrEnum):
    """How a corrected checkpoint is written."""

    SAFETENSORS = "safetensors"
    PTH = "pth"
    """The training file itself, with new weights in the place of the old ones."""


class WritingFormat(StrEnum):
    """What `--format` asks of a command that writes a checkpoint: how the result is told, or the file is written."""

    TEXT = "text"
    JSON = "json"
    PTH = "pth"


class PlanFormat(StrEnum):
    """How a plan is written."""

    TABLE = "table"
    JSON = "json"


class ReportForm(StrEnum):
    """How a report is written; the values are the endings of its files."""

    HTML = "html"
    MARKDOWN = "md"
    JSON = "json"


@dataclass(frozen=True)
class PreprocessingOverrides:
    """How images are prepared, as the user says; what is None is as the checkpoint says.

    Attributes:
        input_size: Channels, height and width.
        mean: Of each channel, subtracted from pixels in [0, 1].
        std: Of each channel, divided by.
        interpolation: The filter that resizes, by timm's name.
        crop_pct: The crop's side over that of the resized image.
        exif: What becomes of the images' EXIF orientation.
    """

    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    exif: Exif | None = None


@dataclass(frozen=True)
class RunSettings:
    """What means the same to every command."""

    device: torch.device
    batch_size: int | None = None
    workers: int = 0
    seed: int = 0
    strict_images: bool = False
    precision: Precision = Precision.AUTO
    all_rows: bool = False


@dataclass(frozen=True)
class ModelSource:
    """What the user says of the architecture: its name, its factory's arguments, its preprocessing."""

    arch: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    overrides: PreprocessingOverrides = field(default_factory=PreprocessingOverrides)


@dataclass(frozen=True)
class DataSource:
    """Where the images are, and what says which class they show.

    A class map that the network's answers suggest instead is written to `suggested_class_map`.
    """

    folder: Path
    split: str | None = None
    validation: Path | None = None
    labels: Path | None = None
    class_map: Path | None = None
    suggested_class_map: Path | None = None


@dataclass(frozen=True)
class SelectionSettings:
    """How the trusted set is chosen: how many samples in all, by what, and among how many.

    `candidates` is `None` where a part that is large enough will do.
    """

    count: int = 1000
    strategy: Strategy = Strategy.LOSS
    candidates: int | None = None


@dataclass(frozen=True)
class ProjectionSettings:
    """How the weights are changed; `alpha` is `None` where it is to be searched."""

    alpha: float | None = None
    importance: Importance = Importance.SAP
    layers: tuple[str, ...] = ()
    skip_layers: tuple[str, ...] = ()
    keep_classifier: bool = False
    forget_mode: ForgetMode = ForgetMode.KEEP_SHARED
    batchnorm: BatchNorm = BatchNorm.REESTIMATE


@dataclass(frozen=True)
class PolishSettings:
    """How a model is trained on; what is `None` is found out.

    Attributes:
        epochs: Passes over the training images.
        max_minutes: What the run may take in all; its schedule fits itself to that.
        labels_as_given: Whether labels are believed as they are, and not blended with the model's own answers.
        repair_first: Whether training begins with the repaired model, and not with the one that is given.
        flip: Whether images are mirrored.
        augment: How images are varied otherwise.
        freeze: Patterns of parameters that stay as they are.
        head_only: Whether the classifier alone is trained.
    """

    epochs: int | None = None
    max_minutes: float | None = None
    labels_as_given: bool = False
    repair_first: bool = True
    flip: bool | None = None
    augment: Augment = Augment.AUTO
    freeze: tuple[str, ...] = ()
    head_only: bool = False
