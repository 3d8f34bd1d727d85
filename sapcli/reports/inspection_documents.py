"""What `sap inspect` and `sap project --dry-run` write as JSON; see `documents.py`."""

from __future__ import annotations

from typing import Any, Literal

from sapcli.reports.documents import Document


class WeightDocument(Document):
    """What a repair would do with one weight: why it is not projected, and the rows that it multiplies."""

    name: str
    shape: tuple[int, ...]
    projected: bool
    reason: str | None
    row_length: int | None
    groups: int | None
    windows: int


class StageDocument(Document):
    """A part of a repair: its operations, and the seconds that they take at the rates measured."""

    name: str
    operations: int
    seconds: float


class WorkloadDocument(Document):
    """What the estimate takes to be run, in numbers of images and of values of alpha."""

    scored: int
    trusted: int
    captured: bool
    judged: int
    trials: int
    batchnorm: int
    batch_size: int | None
    looks: int
    all_rows: bool
    compared: int


class EstimateDocument(Document):
    """What a repair would take on a device, without the decoding of images."""

    device: str
    seconds: float
    memory_bytes: int
    workload: WorkloadDocument
    operations_per_second: dict[str, int]
    stages: tuple[StageDocument, ...]


class PreprocessingDocument(Document):
    """How images become inputs: channels, height and width, and the mean and deviation of pixels in [0, 1].

    Mean and deviation are `null` where nothing says them: no plan depends on them. `image_processor` is empty but for
    networks of transformers, whose own one resizes and crops.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    interpolation: str
    crop_pct: float
    crop_mode: str
    source: str
    exif: Literal["ignore", "apply"]
    image_processor: str = ""


class InspectionDocument(Document):
    """`sap inspect` and `sap project --dry-run`: what a checkpoint is, and what a repair would do.

    Where `architecture` is `null`, `problem` says why and the candidates what it may be.
    """

    checkpoint: str
    form: str
    entries: int
    dtypes: dict[str, int]
    parameters: int
    architecture: str | None
    problem: str | None = None
    candidates: tuple[str, ...] | None = None
    candidates_fit: bool | None = None
    candidates_preprocessing: dict[str, str] | None = None
    architecture_source: str | None = None
    arguments: dict[str, Any] | None = None
    classes: int | None = None
    label_names: tuple[str, ...] | None = None
    preprocessing: PreprocessingDocument | None = None
    metadata: dict[str, str]
    earlier_repair: dict[str, str] | None
    extra_entries: tuple[str, ...]
    weights: tuple[WeightDocument, ...]
    estimate: EstimateDocument | None
