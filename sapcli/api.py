"""The repair from Python.

    >>> from sapcli import repair
    >>> repaired = repair(checkpoint, data, trusted_count=60, alpha=3000)
    >>> repaired.outcome.changed, repaired.outcome.trusted
    (True, 60)
    >>> path = repaired.save(folder / "repaired.safetensors")
    >>> logits = repaired.module(torch.zeros(2, 3, 32, 32))
    >>> logits.shape
    torch.Size([2, 10])

The same in stages, each of which can be looked at or replaced:

    >>> from sapcli import open_session
    >>> from sapcli.settings import ProjectionSettings, SelectionSettings
    >>> session = open_session(checkpoint, data)
    >>> trusted = session.select(SelectionSettings(count=60))
    >>> trusted.samples[0].label
    '0'
    >>> bases = session.bases(session.trusted_samples(trusted))
    >>> session.plan(bases, ProjectionSettings()).projected[0]
    'conv1.0.weight'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sapcli.activations.bases import Bases
from sapcli.checkpoints import saving
from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.machine.cache import Cache
from sapcli.machine.device import resolve_device
from sapcli.machine.progress import Progress, SilentProgress
from sapcli.repairs.correction import Correction
from sapcli.repairs.metadata import repair_metadata
from sapcli.repairs.pipeline import Repair, run_repair
from sapcli.repairs.session import Session
from sapcli.settings import (
    BatchNorm,
    DataSource,
    Importance,
    ModelSource,
    PreprocessingOverrides,
    ProjectionSettings,
    RunSettings,
    SelectionSettings,
)


@dataclass(frozen=True)
class Repaired:
    """A repair that was done.

    Attributes:
        outcome: What was done, and the gain on the validation images where there are any.
        session: The stages, with the network as the repair left it.
        bases: What the trusted samples say about every weight.
        settings: How the weights were changed.
        correction: The weights of every alpha.
    """

    outcome: Repair
    session: Session
    bases: Bases
    settings: ProjectionSettings
    correction: Correction

    @property
    def module(self) -> nn.Module:
        """The repaired network, in eval mode; it takes normalised images."""
        return self.session.classifier.module

    def save(self, path: str | Path) -> Path:
        """Write the corrected checkpoint, replacing an existing file, and return its path.

        Raises:
            CheckpointError: It cannot be written.
        """
        path = Path(path)
        alpha = self.outcome.choice.alpha
        replacements = {} if alpha is None else self.correction.replacements(alpha)
        metadata = repair_metadata(self.session, self.outcome, self.correction, self.settings, self.bases, None)
        saving.write_checkpoint(self.session.checkpoint, path, replacements, metadata)
        return path


def open_session(
    checkpoint: str | Path,
    data: str | Path,
    *,
    arch: str | None = None,
    arch_arguments: Mapping[str, object] | None = None,
    preprocessing: PreprocessingOverrides | None = None,
    labels: str | Path | None = None,
    class_map: str | Path | None = None,
    validation: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 0,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Session:
    """The stages of a repair as methods, for one checkpoint and one data folder.

    Args:
        checkpoint: A safetensors file, or a folder that holds one.
        data: A folder of class folders, or of `train/`, `val/` and `test/` with them.
        arch: The architecture, as `--arch` takes it; found by itself where `None`.
        arch_arguments: What its factory is called with.
        preprocessing: Instead of what the checkpoint says of how images are prepared.
        labels: A label file, as `--labels` takes it.
        class_map: Which folder is which class, as `--class-map` takes it.
        validation: A folder of validation images, instead of `data/val`.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        batch_size: Images at a time; as many as fit their size where `None`.
        workers: Processes that decode images; with more than 0, call from under `if __name__ == "__main__"`.
        seed: For all that is random.
        cache_dir: Where artifacts are kept; the user's cache folder where `None`.
        progress: Told how far the stages are; nobody where `None`.

    Raises:
        SapError: The checkpoint cannot be opened, or the device is missing.
    """
    listener = progress or SilentProgress()
    return Session(
        open_checkpoint(checkpoint),
        DataSource(
            Path(data),
            validation=None if validation is None else Path(validation),
            labels=None if labels is None else Path(labels),
            class_map=None if class_map is None else Path(class_map),
        ),
        RunSettings(resolve_device(device), batch_size, workers, seed),
        listener,
        Cache(None if cache_dir is None else Path(cache_dir), listener),
        ModelSource(arch, arch_arguments or {}, preprocessing or PreprocessingOverrides()),
    )


def repair(
    checkpoint: str | Path,
    data: str | Path,
    *,
    alpha: float | None = None,
    importance: Importance = Importance.SAP,
    layers: Sequence[str] = (),
    skip_layers: Sequence[str] = (),
    batchnorm: BatchNorm = BatchNorm.REESTIMATE,
    trusted_count: int = 1000,
    arch: str | None = None,
    arch_arguments: Mapping[str, object] | None = None,
    preprocessing: PreprocessingOverrides | None = None,
    labels: str | Path | None = None,
    class_map: str | Path | None = None,
    validation: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 0,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Repaired:
    """Repair a classifier that was trained on mislabeled data; nothing is written before `Repaired.save`.

    Args:
        checkpoint: See `open_session`, as for all that is not listed here.
        data: The noisy training data.
        alpha: How much is kept; searched where `None`.
        importance: How a direction's strength becomes its importance.
        layers: Patterns of the weights to project; all where empty.
        skip_layers: Patterns of weights to leave.
        batchnorm: What becomes of BatchNorm statistics.
        trusted_count: How many samples to trust, in all.
        arch: See `open_session`.
        arch_arguments: See `open_session`.
        preprocessing: See `open_session`.
        labels: See `open_session`.
        class_map: See `open_session`.
        validation: See `open_session`.
        device: See `open_session`.
        batch_size: See `open_session`.
        workers: See `open_session`.
        seed: See `open_session`.
        cache_dir: See `open_session`.
        progress: See `open_session`.

    Raises:
        SapError: The input cannot be used; `message` says why and `hint` what to do.
    """
    session = open_session(
        checkpoint,
        data,
        arch=arch,
        arch_arguments=arch_arguments,
        preprocessing=preprocessing,
        labels=labels,
        class_map=class_map,
        validation=validation,
        device=device,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        cache_dir=cache_dir,
        progress=progress,
    )
    settings = ProjectionSettings(
        alpha, importance, layers=tuple(layers), skip_layers=tuple(skip_layers), batchnorm=batchnorm
    )
    with torch.no_grad():
        samples = session.trusted_samples(session.select(SelectionSettings(trusted_count)))
        bases = session.bases(samples)
        outcome, correction = run_repair(session, settings, bases, samples)
    return Repaired(outcome, session, bases, settings, correction)
