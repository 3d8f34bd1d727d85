"""What a repair did, as one document: written to JSON, read back, and rendered from nothing else.

The JSON is versioned by `format`; `schema()` describes it. Accuracies are in percent, losses in nats, shares in [0, 1].
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticSerializationError

from sapcli.errors import SapError
from sapcli.machine.reading import read_input
from sapcli.machine.text import encodable
from sapcli.repairs.alpha_search import Evidence


@dataclass(frozen=True)
class Estimate:
    """A percentage with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Attempt:
    """One alpha that was tried, and its score in percent of so many samples."""

    alpha: float
    score: Estimate
    samples: int


@dataclass(frozen=True)
class Search:
    """How alpha was chosen.

    Attributes:
        alpha: The choice; `None` where the model stays as it was.
        evidence: By what.
        explanation: The same in words.
        samples: How many samples each score is of.
        attempts: By ascending alpha.
        unchanged: The score of the unchanged model; `None` where nothing was tried.
        log_scale: Whether alpha is a coefficient, and not a fraction of the energy.
    """

    alpha: float | None
    evidence: Evidence
    explanation: str
    samples: int
    attempts: tuple[Attempt, ...]
    unchanged: Estimate | None
    log_scale: bool


@dataclass(frozen=True)
class Scores:
    """A model on the images that it is judged on."""

    top1: float
    top5: float
    loss: float
    ece: float


@dataclass(frozen=True)
class ClassChange:
    """One class's accuracy before and after, in percent; `None` for a class without images."""

    name: str
    images: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Confusion:
    """How often which class was taken for which: rows are labels, columns predictions.

    Of many classes only those with the most errors have a row; all others share the last column.
    """

    labels: tuple[str, ...]
    predictions: tuple[str, ...]
    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Measurement:
    """Both models on images that neither learned from.

    Attributes:
        images: How many.
        where: The folder.
        noisy: Whether alpha was chosen on these images, whose labels may be wrong like those of the training set.
        before: The model as it was.
        after: The repaired model.
        gain: The difference in top-1 accuracy, in points, from paired outcomes.
        classes: Every class, in the order of the model's outputs.
        confusion: Before and after.
    """

    images: int
    where: str
    noisy: bool
    before: Scores
    after: Scores
    gain: Estimate
    classes: tuple[ClassChange, ...]
    confusion: Confusion


@dataclass(frozen=True)
class Layer:
    """One projected weight.

    Attributes:
        name: The parameter.
        outputs: Number of output channels or features.
        row_length: Length of the rows that it multiplies.
        groups: Independent sets of rows.
        rows: How many rows were seen.
        directions99: How many directions hold 99% of the energy, of `row_length`; the mean over groups.
        spectrum: The energy held by the leading directions, at points evenly spaced in the logarithm of their number.
        removed: `||W - W M|| / ||W||`.
    """

    name: str
    outputs: int
    row_length: int
    groups: int
    rows: int
    directions99: float
    spectrum: tuple[float, ...]
    removed: float


@dataclass(frozen=True)
class Skipped:
    """A weight that stays as it is, or an image that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class LossHistogram:
    """The training samples by their cross-entropy with the given label.

    Attributes:
        edges: Of the bins, ascending, in nats; samples beyond are counted in the outer bins.
        before: Samples per bin with the model as it was.
        trusted: Those of them that are trusted.
        after: Samples per bin with the repaired model; `None` where it was not changed.
    """

    edges: tuple[float, ...]
    before: tuple[int, ...]
    trusted: tuple[int, ...]
    after: tuple[int, ...] | None


@dataclass(frozen=True)
class Picture:
    """A sample whose label the repaired model contradicts, with its image as a `data:` address where it can be read."""

    path: str
    given: str
    suggested: str
    score: float
    image: str | None


@dataclass(frozen=True)
class Suspicion:
    """The labels that the repaired model contradicts: how many of how many samples, and the first of them."""

    samples: int
    contradicted: int
    shown: tuple[Picture, ...]


@dataclass(frozen=True)
class Provenance:
    """What it takes to do it again.

    Attributes:
        command: The command line, as typed.
        versions: Of programs and libraries.
        facts: What was read and how, by name, in words.
        digests: SHA-256 of what was read, by name.
    """

    command: str
    versions: dict[str, str]
    facts: dict[str, str]
    digests: dict[str, str]


@dataclass(frozen=True)
class RepairReport:
    """The whole report.

    Attributes:
        format: The version of this schema.
        title: The checkpoint's name.
        changed: Whether any weight was changed.
        verdict: The outcome, in a sentence.
        search: How alpha was chosen.
        measurement: The gain; `None` without images that the model did not learn from.
        trusted: Number of trusted samples.
        batchnorm_images: How many images the BatchNorm statistics were re-estimated on.
        layers: The projected weights, in the order of execution.
        skipped_weights: The others of two or more dimensions.
        skipped_images: The images that could not be read.
        losses: The training samples by loss.
        suspicion: `None` where the model was not changed.
        provenance: What it takes to do it again.
        weak_points: What is to be said against the evidence, a sentence each.
    """

    format: Literal["sap.report/1"]
    title: str
    changed: bool
    verdict: str
    search: Search
    measurement: Measurement | None
    trusted: int
    batchnorm_images: int
    layers: tuple[Layer, ...]
    skipped_weights: tuple[Skipped, ...]
    skipped_images: tuple[Skipped, ...]
    losses: LossHistogram
    suspicion: Suspicion | None
    provenance: Provenance
    weak_points: tuple[str, ...] = ()


@dataclass(frozen=True)
class EpochLine:
    """One pass over the training images: the mean loss in nats, and the learning rate at its end."""

    number: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class PolishReport:
    """The whole report of a polish.

    Attributes:
        format: The version of this schema.
        title: The checkpoint's name.
        changed: Whether another model than the given one was written.
        verdict: The outcome, in a sentence.
        facts: What was done, by name, in words.
        epochs: The passes over the training images.
        measurement: The gain; `None` without images that the model did not learn from.
        losses: The training samples by loss, as labels were given.
        suspicion: `None` where the model was not changed.
        skipped_images: The images that could not be read.
        provenance: What it takes to do it again.
        weak_points: What is to be said against the evidence, a sentence each.
    """

    format: Literal["sap.polish/1"]
    title: str
    changed: bool
    verdict: str
    facts: dict[str, str]
    epochs: tuple[EpochLine, ...]
    measurement: Measurement | None
    losses: LossHistogram
    suspicion: Suspicion | None
    skipped_images: tuple[Skipped, ...]
    provenance: Provenance
    weak_points: tuple[str, ...] = ()


_ADAPTER = TypeAdapter(RepairReport)
_POLISH_ADAPTER = TypeAdapter(PolishReport)
# Inside of a text, quotes are escaped.
_OF_POLISH = re.compile(rb'"format"\s*:\s*"sap\.polish/')


def to_json(report: RepairReport | PolishReport) -> bytes:
    """The report as indented JSON; names that are not UTF-8, which JSON cannot hold, have escapes in their place."""
    adapter: TypeAdapter[Any] = _POLISH_ADAPTER if isinstance(report, PolishReport) else _ADAPTER
    try:
        return adapter.dump_json(report, indent=2) + b"\n"
    except PydanticSerializationError:
        return adapter.dump_json(_encodable(report), indent=2) + b"\n"


def _encodable(value: Any) -> Any:
    """A report, or a part of it, with all texts as UTF-8 can hold them."""
    if isinstance(value, str) and not isinstance(value, Enum):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable(name): _encodable(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_encodable, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{part.name: _encodable(getattr(value, part.name)) for part in fields(value)})
    return value


def from_json(file: Path) -> RepairReport | PolishReport:
    """Read a report, of a repair or of a polish.

    Raises:
        SapError: The file cannot be read or is no report of this version; what does not fit is named.
    """
    try:
        content = read_input(file)
        if _OF_POLISH.search(content):
            return _POLISH_ADAPTER.validate_json(content)
        return _ADAPTER.validate_json(content)
    except OSError as error:
        raise SapError(f"{file} cannot be read: {error.strerror}", "name a report in JSON") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise SapError(
            f"{file} is no report that can be read: {place + ': ' if place else ''}{first['msg']}",
            "make one with `sap project --report FILE.json`, of this version of sap",
        ) from error


def schema() -> dict[str, Any]:
    """The JSON Schema of a report."""
    return _ADAPTER.json_schema()
