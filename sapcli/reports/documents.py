"""What commands write as JSON: one document a command, whose schemas are published in `docs/schemas/`.

Accuracies are in percent, gains in points, losses in nats, sizes in bytes, digests are SHA-256 in hexadecimal. A field
that is `null` has nothing to tell.
"""

from __future__ import annotations

import json
import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from sapcli.machine.cache import CacheInfo
from sapcli.repairs.evidence.evaluation import Gain, Metrics
from sapcli.repairs.evidence.verification import Finding
from sapcli.repairs.pipeline import Repair


class Document(BaseModel):
    """A JSON document: nothing is in it but the fields of its class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_json(self, indent: int | None = 2) -> str:
        """The document as JSON that ends in a newline; in one line where there is no indent."""
        return json.dumps(self.model_dump(), indent=indent, allow_nan=False) + "\n"


class ScoresDocument(Document):
    """A model on images: accuracies in percent, the mean cross-entropy in nats, the calibration error in [0, 1]."""

    top1: float | None
    top5: float | None
    loss: float | None
    ece: float | None
    images: int

    @classmethod
    def of(cls, metrics: Metrics) -> Self:
        """Of metrics."""
        return cls(
            top1=rounded(metrics.top1),
            top5=rounded(metrics.top5),
            loss=rounded(metrics.loss),
            ece=rounded(metrics.ece),
            images=metrics.images,
        )


class ClassDocument(Document):
    """One class: its accuracy in percent, `null` without images."""

    accuracy: float | None
    images: int


class EvaluationDocument(ScoresDocument):
    """`sap eval`: a checkpoint, and with --baseline the difference to another one in points, with its 95% interval."""

    classes: dict[str, ClassDocument]
    unreadable: tuple[str, ...]
    baseline: ScoresDocument | None = None
    gain: float | None = None
    gain_interval: tuple[float | None, float | None] | None = None


class GainDocument(Document):
    """A difference in top-1 accuracy in points, with its 95% interval."""

    points: float | None
    interval: tuple[float | None, float | None]

    @classmethod
    def of(cls, gain: Gain) -> Self:
        """Of a gain."""
        return cls(points=rounded(gain.points), interval=(rounded(gain.low), rounded(gain.high)))


class AttemptDocument(Document):
    """An alpha that was tried, and the percentage of so many samples that it had right."""

    alpha: float
    score: float | None
    samples: int


class GateDocument(Document):
    """`--require-gain`: so many points were required, and whether they were reached."""

    required_gain: float
    met: bool


class ProjectDocument(Document):
    """`sap project`: what a repair did, one document for each checkpoint.

    `output` is the corrected checkpoint, `null` where a gate kept it from being written. `alpha` is `null` where
    nothing beat the unchanged model, and `changed` false. `before`, `after` and `gain` are of the validation images.
    """

    checkpoint: str
    output: str | None
    changed: bool
    alpha: float | None
    evidence: Literal["fixed", "validation", "trusted knee"]
    importance: str
    architecture: str
    classes: int
    device: str
    trusted: int
    validation_images: int
    batchnorm_images: int
    projected: tuple[str, ...]
    skipped: dict[str, str]
    attempts: tuple[AttemptDocument, ...]
    before: ScoresDocument | None
    after: ScoresDocument | None
    gain: GainDocument | None
    gate: GateDocument | None
    weak_points: tuple[str, ...]
    input_digest: str

    @classmethod
    def of(
        cls,
        repair: Repair,
        *,
        checkpoint: str,
        output: str | None,
        importance: str,
        architecture: str,
        classes: int,
        device: str,
        input_digest: str,
        gate: GateDocument | None,
    ) -> Self:
        """Of a repair that was done; see the fields for the rest."""
        choice = repair.choice
        return cls(
            checkpoint=checkpoint,
            output=output,
            changed=repair.changed,
            alpha=choice.alpha,
            evidence=choice.evidence.value,
            importance=importance,
            architecture=architecture,
            classes=classes,
            device=device,
            trusted=repair.trusted,
            validation_images=repair.validation,
            batchnorm_images=repair.batchnorm_images,
            projected=repair.plan.projected if repair.changed else (),
            skipped=dict(repair.plan.skipped),
            attempts=tuple(
                AttemptDocument(
                    alpha=trial.alpha, score=rounded(100 * trial.score), samples=trial.samples or choice.samples
                )
                for trial in choice.trials
            ),
            before=None if repair.before is None else ScoresDocument.of(repair.before),
            after=None if repair.after is None else ScoresDocument.of(repair.after),
            gain=None if repair.gain is None else GainDocument.of(repair.gain),
            gate=gate,
            weak_points=repair.weak_points,
            input_digest=input_digest,
        )


class PolishDocument(Document):
    """`sap polish`: what a training from the repaired weights did; `output` and `gate` as of `sap project`."""

    checkpoint: str
    output: str | None
    changed: bool
    result: str
    reason: str
    repaired: bool
    alpha: float | None
    epochs: int
    steps: int
    restarts: int
    trained: int
    held_out: int
    validation_images: int
    recipe: str
    augmentation: str
    before: ScoresDocument | None
    after: ScoresDocument | None
    gain: GainDocument | None
    gate: GateDocument | None
    weak_points: tuple[str, ...]
    input_digest: str


class BasisDocument(Document):
    """The bases of one weight: of so many windows, from so many rows, with so many directions in each of the groups."""

    name: str
    windows: int
    row_length: int
    groups: int
    rows: int
    directions: int


class ActivationsDocument(Document):
    """`sap activations`: the file of bases, and what is in it."""

    checkpoint: str
    output: str
    samples: int
    weights: tuple[BasisDocument, ...]
    skipped: dict[str, str]
    weights_digest: str
    samples_digest: str


class FindingDocument(Document):
    """One thing that was checked, and what to do where it does not hold."""

    holds: bool
    text: str
    hint: str | None

    @classmethod
    def of(cls, finding: Finding) -> Self:
        """Of a finding."""
        return cls(holds=finding.holds, text=finding.text, hint=None if finding.holds else finding.hint)


class VerificationDocument(Document):
    """`sap verify`: whether a corrected checkpoint is what its metadata says."""

    checkpoint: str
    holds: bool
    findings: tuple[FindingDocument, ...]


class CacheDocument(Document):
    """`sap cache info` and `sap cache clear`: what the folder holds, or held before it was cleared."""

    folder: str
    entries: int
    bytes: int
    limit_bytes: int
    cleared: bool

    @classmethod
    def of(cls, info: CacheInfo, *, cleared: bool) -> Self:
        """Of what was found."""
        return cls(
            folder=str(info.folder),
            entries=info.entries,
            bytes=info.bytes,
            limit_bytes=info.limit_bytes,
            cleared=cleared,
        )


SettingValue = bool | int | float | str | list[str] | None


class SettingDocument(Document):
    """An option as it would be used now, and where its value comes from."""

    name: str
    value: SettingValue
    source: str


class ConfigDocument(Document):
    """`sap config`: the options of a command."""

    command: str
    settings: tuple[SettingDocument, ...]


class DemoDocument(Document):
    """`sap demo`: the network on the test images, its repair, and the repaired network on them."""

    folder: str
    before: EvaluationDocument
    repair: ProjectDocument
    after: EvaluationDocument


class NoiseDocument(Document):
    """`sap noise`: what was written, and how many labels are wrong."""

    output: str
    truth: str | None
    kind: str
    rate: float
    seed: int
    images: int
    wrong: int
    taken_for: str


class DeviceDocument(Document):
    """A device, and what it does a second."""

    name: str
    kind: str
    memory_bytes: int | None
    threads: int | None
    operations_per_second: dict[str, int]


class EnvironmentDocument(Document):
    """`sap env`: versions by package, `null` for what is not installed; of variables and settings the names alone."""

    sap: str
    python: str
    platform: str
    versions: dict[str, str]
    extras: dict[str, dict[str, str | None]]
    optional: dict[str, str | None]
    devices: tuple[DeviceDocument, ...]
    cache: str
    cache_entries: int
    cache_bytes: int
    settings_file: str | None
    variables: tuple[str, ...]


class EventDocument(Document):
    """A line of `--progress-json`; which fields there are depends on the event."""

    event: Literal["stage", "progress", "done", "note", "warning", "summary"]
    name: str | None = None
    total: int | None = None
    unit: str | None = None
    depth: int | None = None
    done: int | None = None
    seconds: float | None = None
    text: str | None = None
    title: str | None = None
    rows: dict[str, str] | None = None


def rounded(value: float | None) -> float | None:
    """Six digits after the point, more than any number of images resolves; `None` for what is not a number."""
    return None if value is None or math.isnan(value) else round(value, 6)
