"""What a checkpoint is, and what a repair would do with every weight of it: no data is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sapcli.activations.bases import SecondMoments
from sapcli.activations.rows import WeightView
from sapcli.activations.scoring import Classifier
from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.checkpoints.entry_names import TRAINING_STATE
from sapcli.errors import ArchitectureError
from sapcli.machine.device import full_precision
from sapcli.networks.architecture import Architecture, load_model, resolve_architecture
from sapcli.networks.recognition import Candidate, recognise
from sapcli.repairs.alpha_search import Evidence, usual_trials
from sapcli.repairs.batchnorm import BATCHNORM_IMAGES, may_reestimate
from sapcli.repairs.evidence.estimate import Estimate, Workload, estimate
from sapcli.repairs.evidence.unfamiliar_views import images_compared
from sapcli.repairs.layer_plan import LayerPlan, plan_layers
from sapcli.settings import ModelSource, ProjectionSettings

# One image could hide a dimension that only a batch has.
_IMAGES = 2

UNKNOWN = "the architecture is not known"


@dataclass(frozen=True)
class PlannedWeight:
    """What a repair would do with one weight of two or more dimensions.

    Attributes:
        name: Its name in the network, as `--layers` takes it.
        shape: Its shape.
        reason: Why it is not projected; None where it is.
        views: The windows of it that multiply activations, in the order of execution; none where nothing does.
    """

    name: str
    shape: tuple[int, ...]
    reason: str | None
    views: tuple[WeightView, ...] = ()

    @property
    def projected(self) -> bool:
        """Whether a repair changes it."""
        return self.reason is None

    @property
    def row_length(self) -> int | None:
        """The length `d` of the rows that it multiplies; of several windows, the longest."""
        return max((view.row_length for view in self.views), default=None)

    @property
    def groups(self) -> int | None:
        """The number of matrices that see rows of their own; of several windows, the most."""
        return max((view.groups for view in self.views), default=None)


@dataclass(frozen=True)
class Inspection:
    """What was found out about a checkpoint.

    Attributes:
        checkpoint: The checkpoint.
        parameters: The number of trained numbers: of the network where it is known, else of all tensors.
        architecture: What its network is; None where that is not known.
        problem: Why it is not known.
        candidates: Where it is not known, the architectures that have its tensors, else the most similar ones.
        extra_entries: Entries that are not the network's.
        weights: Every weight of two or more dimensions.
        estimate: What a repair would take; None without an architecture.
    """

    checkpoint: Checkpoint
    parameters: int
    architecture: Architecture | None
    weights: tuple[PlannedWeight, ...]
    problem: str | None = None
    candidates: tuple[Candidate, ...] = ()
    extra_entries: tuple[str, ...] = ()
    estimate: Estimate | None = None

    @property
    def dtypes(self) -> dict[torch.dtype, int]:
        """How many numbers of the file are of which type."""
        counts: dict[torch.dtype, int] = {}
        for entry in self.checkpoint.entries.values():
            counts[entry.dtype] = counts.get(entry.dtype, 0) + math.prod(entry.shape)
        return counts

    @property
    def earlier_repair(self) -> dict[str, str]:
        """What an earlier repair wrote into the metadata; nothing for a model that has never been repaired."""
        metadata = self.checkpoint.metadata
        if "sap.repaired" not in metadata:
            return {}
        return {name.removeprefix("sap."): text for name, text in metadata.items() if name.startswith("sap.")}


def usual_workload(batch_size: int | None) -> Workload:
    """What a repair runs where no data is named: 50,000 training images, 1,000 of them trusted, no validation data."""
    looks, trials = usual_trials(Evidence.KNEE)
    return Workload(
        scored=50_000,
        trusted=1_000,
        captured=True,
        judged=1_000,
        trials=trials,
        batchnorm=BATCHNORM_IMAGES,
        batch_size=batch_size,
        looks=looks,
        compared=images_compared(49_000),
    )


@dataclass(frozen=True)
class _Trial:
    """Noise that went through a network, and what was seen of its weights."""

    images: Tensor
    views: Mapping[str, tuple[WeightView, ...]]
    rows: Mapping[str, Mapping[WeightView, float]]
    skipped: Mapping[str, str]


def inspect_checkpoint(
    checkpoint: Checkpoint, model: ModelSource, device: torch.device, workload: Workload
) -> Inspection:
    """Find out what a checkpoint is; where its architecture stays unknown, why and what it may be.

    Args:
        checkpoint: The checkpoint.
        model: What the user says of the architecture.
        device: Where a repair would run.
        workload: What a repair would be run on.

    Raises:
        ArchitectureError: The user named the architecture, and it does not fit.
        SapError: A tensor cannot be read, or the network cannot run.
    """
    try:
        architecture = resolve_architecture(checkpoint, model.arch, model.arguments, model.overrides, for_images=False)
    except ArchitectureError as error:
        if model.arch is not None:
            raise
        return _unknown(checkpoint, error)
    loaded = load_model(checkpoint, architecture, device)
    return inspect_classifier(checkpoint, Classifier(loaded, architecture, device), ProjectionSettings(), workload)


def inspect_classifier(
    checkpoint: Checkpoint, classifier: Classifier, settings: ProjectionSettings, workload: Workload
) -> Inspection:
    """Plan a repair of a network: run noise through it and see which weights multiply activations.

    Args:
        checkpoint: The file that the network was loaded from.
        classifier: The network; unchanged afterwards.
        settings: Which weights are to be projected.
        workload: What the repair is run on.

    Raises:
        UsageError: The settings leave no weight, or name one that there is not.
        SapError: The network cannot run on images of its size.
    """
    if not may_reestimate(classifier):
        workload = replace(workload, batchnorm=0)
    trial = _try_noise(classifier)
    outputs = {name: sum(view.groups * view.outputs for view in views) for name, views in trial.views.items()}
    products = {name: sum(view.products * rows for view, rows in trial.rows[name].items()) for name in trial.views}
    plan = LayerPlan((), trial.skipped)
    if outputs:
        plan = plan_layers(
            outputs,
            trial.skipped,
            classifier.architecture.num_classes,
            products,
            layers=settings.layers,
            skip_layers=settings.skip_layers,
            keep_classifier=settings.keep_classifier,
        )
    weights = [
        PlannedWeight(name, tuple(parameter.shape), plan.skipped.get(name), trial.views.get(name, ()))
        for name, parameter in classifier.module.named_parameters()
        if name in trial.views or name in trial.skipped
    ]
    return Inspection(
        checkpoint,
        sum(parameter.numel() for parameter in classifier.module.parameters()),
        classifier.architecture,
        tuple(weights),
        extra_entries=classifier.loaded.extra_entries,
        estimate=estimate(classifier, {name: trial.rows[name] for name in plan.projected}, trial.images, workload),
    )


def _try_noise(classifier: Classifier) -> _Trial:
    """Run zero-mean noise through the network, watched as the trusted images are."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_IMAGES, *classifier.architecture.preprocessing.input_size, generator=generator)
    images = images.to(classifier.device)
    moments = SecondMoments(classifier.module, kept=classifier.loaded.kept)
    with full_precision(), moments.capture as capture:
        with classifier.running():
            output = capture.forward(images)
        classifier.check_output(output, _IMAGES)
    rows = {
        name: {view: count / _IMAGES for view, count in counts.items()} for name, counts in moments.counts().items()
    }
    return _Trial(images, moments.views(), rows, moments.skipped())


def _unknown(checkpoint: Checkpoint, error: ArchitectureError) -> Inspection:
    """What the tensors alone tell."""
    found = recognise(checkpoint)
    floating = [
        entry
        for entry in checkpoint.entries.values()
        if entry.dtype.is_floating_point and entry.name.partition(".")[0] not in TRAINING_STATE
    ]
    return Inspection(
        checkpoint,
        sum(math.prod(entry.shape) for entry in floating),
        None,
        tuple(PlannedWeight(entry.name, entry.shape, UNKNOWN) for entry in floating if len(entry.shape) >= 2),
        problem=error.message,
        candidates=found.matches or found.nearest,
    )
