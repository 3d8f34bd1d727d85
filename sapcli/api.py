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

Without any file: a module in memory, which is repaired in place, and a dataset of `(image, label)`:

    >>> repaired = repair(module=net, dataset=dataset, trusted_count=60, alpha=3000)
    >>> repaired.module is net
    True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack, cast

import torch
from torch import nn

from sapcli.activations.bases import Bases
from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.checkpoints.folder_saving import write_model
from sapcli.datasets.live.samples import SampleSource, first_image, ready_shape
from sapcli.machine.cache import Cache, MemoryCache
from sapcli.machine.device import resolve_device
from sapcli.machine.notebook import usual_progress
from sapcli.machine.progress import Progress
from sapcli.networks.live_module import device_of, take_over
from sapcli.polishing.metadata import polish_metadata
from sapcli.polishing.pipeline import Polish, check_polish, run_polish
from sapcli.repairs.correction import Correction
from sapcli.repairs.metadata import repair_metadata
from sapcli.repairs.model_and_data import LiveSamples
from sapcli.repairs.pipeline import Repair, run_repair
from sapcli.repairs.session import Session
from sapcli.reports.summaries import repair_table
from sapcli.settings import (
    BatchNorm,
    DataSource,
    Importance,
    ModelSource,
    PolishSettings,
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
        """The repaired network, in eval mode, that which was handed over or a new one; it takes normalised images."""
        return self.session.classifier.module

    def _repr_html_(self) -> str:
        """The repair as a notebook shows it: a small report."""
        return repair_table(self.session.checkpoint.source, self.outcome)

    def save(self, path: str | Path) -> Path:
        """Write the corrected checkpoint, replacing an existing file, and return its path.

        Of a module that was handed over, the names are those of its state dict.

        Raises:
            CheckpointError: It cannot be written.
        """
        path = Path(path)
        alpha = self.outcome.choice.alpha
        names = self.session.classifier.loaded.written_names
        replacements = {} if alpha is None else self.correction.replacements(alpha, names)
        metadata = repair_metadata(self.session, self.outcome, self.correction, self.settings, self.bases, None)
        write_model(self.session.written, path, replacements, metadata)
        return path


@dataclass(frozen=True)
class Polished:
    """A polish that was done.

    Attributes:
        outcome: What was done, which model was chosen, and the gain on the validation images where there are any.
        session: The checkpoint and the data, with the network as the choice left it.
    """

    outcome: Polish
    session: Session

    @property
    def module(self) -> nn.Module:
        """The network that was chosen, in eval mode; it takes normalised images."""
        return self.session.classifier.module

    def save(self, path: str | Path) -> Path:
        """Write the polished checkpoint, replacing an existing file, and return its path.

        Raises:
            CheckpointError: It cannot be written.
        """
        path = Path(path)
        metadata = polish_metadata(self.session, self.outcome)
        names = self.session.classifier.loaded.written_names
        write_model(self.session.written, path, self.outcome.replacements(names), metadata)
        return path


class SessionOptions(TypedDict, total=False):
    """What `open_session` and `repair` take beside the checkpoint and the data, by name.

    Attributes:
        module: A network in memory, instead of a checkpoint. It is put into eval mode and repaired in place; nothing is
            cached on disk, since its code is not known. `arch` does not go with it.
        dataset: The training data in memory, instead of a data folder: a `torch.utils.data.Dataset`, or a list, whose
            items are `(image, label)`. Images of PIL, and tensors and arrays of 8 bits, are prepared as those of files
            are; tensors of floats `[C, H, W]` are the network's inputs as they are. A label is the position of the
            network's output, -1 for none. An image has to be the same whenever it is asked for.
        arch: The architecture, as `--arch` takes it; found by itself where `None`.
        weights: Which weights of a training file that holds several, as `--weights` takes it.
        arch_arguments: What its factory is called with.
        preprocessing: Instead of what the checkpoint says of how images are prepared.
        labels: A label file, as `--labels` takes it.
        class_map: Which folder is which class, as `--class-map` takes it.
        validation: A folder of validation images, instead of `data/val`; beside `dataset`, a dataset too.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; by default `auto`, or where the module is.
        batch_size: Images at a time; as many as fit their size where `None`.
        workers: Processes that decode images, none by default; with more, call from under `if __name__ == "__main__"`.
        seed: For all that is random; 0 by default.
        cache_dir: Where artifacts are kept; the user's cache folder where `None`.
        progress: Told how far the stages are; where `None`, bars of a notebook, elsewhere nobody.
    """

    module: nn.Module | None
    dataset: SampleSource | None
    arch: str | None
    weights: str | None
    arch_arguments: Mapping[str, object] | None
    preprocessing: PreprocessingOverrides | None
    labels: str | Path | None
    class_map: str | Path | None
    validation: str | Path | SampleSource | None
    device: str
    batch_size: int | None
    workers: int
    seed: int
    cache_dir: str | Path | None
    progress: Progress | None


def open_session(
    checkpoint: str | Path | None = None, data: str | Path | None = None, **options: Unpack[SessionOptions]
) -> Session:
    """The stages of a repair as methods, for one network and its training data.

    Args:
        checkpoint: A safetensors file, or a folder that holds one; `None` where there is a `module`.
        data: A folder of class folders, or of `train/`, `val/` and `test/` with them; `None` where there is a
            `dataset`.
        **options: See `SessionOptions`.

    Raises:
        SapError: The checkpoint cannot be opened, the module or the dataset cannot be used, or the device is missing.
        TypeError: An option is none of these, or does not go with another.
    """
    _check_options(checkpoint, data, options)
    listener = options.get("progress") or usual_progress()
    module, dataset = options.get("module"), options.get("dataset")
    overrides = options.get("preprocessing") or PreprocessingOverrides()
    validation = options.get("validation")
    samples = None
    if dataset is not None:
        assert not isinstance(validation, str | Path)
        samples = LiveSamples(dataset, validation, ready_shape(first_image(dataset)))
        if samples.ready is not None and overrides != PreprocessingOverrides():
            raise TypeError("preprocessing says how pictures are prepared, and the dataset has tensors that are ready")
    name = options.get("device")
    device = device_of(module) if name is None and module is not None else resolve_device(name or "auto")
    live = None if module is None else take_over(module, device, overrides, None if samples is None else samples.ready)
    is_in_memory = live is not None or samples is not None
    return Session(
        live.checkpoint
        if live is not None
        else open_checkpoint(cast("str | Path", checkpoint), weights=options.get("weights")),
        DataSource(
            Path("the dataset" if data is None else data),
            validation=Path(validation) if isinstance(validation, str | Path) else None,
            labels=_path(options.get("labels")),
            class_map=_path(options.get("class_map")),
        ),
        RunSettings(device, options.get("batch_size"), options.get("workers", 0), options.get("seed", 0)),
        listener,
        MemoryCache(listener) if is_in_memory else Cache(_path(options.get("cache_dir")), listener),
        ModelSource(options.get("arch"), options.get("arch_arguments") or {}, overrides),
        live=live,
        samples=samples,
    )


def _check_options(checkpoint: object, data: object, options: SessionOptions) -> None:
    """Raise what is wrong with the options themselves.

    Raises:
        TypeError: One is unknown, missing, or does not go with another.
    """
    unknown = options.keys() - SessionOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(SessionOptions.__annotations__)
        raise TypeError(f"there is no option {min(unknown)!r}, but {known}")
    given = {name for name, value in options.items() if value is not None}
    for place, instead in (((checkpoint, "checkpoint"), "module"), ((data, "data"), "dataset")):
        if (place[0] is None) == (instead not in given):
            raise TypeError(f"give either {place[1]} or {instead}=")
    for name, others in (("module", {"arch", "arch_arguments", "weights"}), ("dataset", {"labels", "class_map"})):
        if name in given and others & given:
            raise TypeError(f"{min(others & given)} does not go with {name}")
    validation = options.get("validation")
    if validation is not None and isinstance(validation, str | Path) == ("dataset" in given):
        raise TypeError("validation is a dataset where the training data are, and a folder where they are one")


def repair(
    checkpoint: str | Path | None = None,
    data: str | Path | None = None,
    *,
    alpha: float | None = None,
    importance: Importance = Importance.SAP,
    layers: Sequence[str] = (),
    skip_layers: Sequence[str] = (),
    batchnorm: BatchNorm = BatchNorm.REESTIMATE,
    trusted_count: int = 1000,
    **options: Unpack[SessionOptions],
) -> Repaired:
    """Repair a classifier that was trained on mislabeled data; nothing is written before `Repaired.save`.

    A `module` that is handed over is repaired in place, and is as it was, but for eval mode, where an error ends this.

    Args:
        checkpoint: See `open_session`.
        data: The noisy training data.
        alpha: How much is kept; searched where `None`.
        importance: How a direction's strength becomes its importance.
        layers: Patterns of the weights to project, or `early` or `late` for half of the network; all where empty.
        skip_layers: The same of weights to leave.
        batchnorm: What becomes of BatchNorm statistics.
        trusted_count: How many samples to trust, in all.
        **options: See `SessionOptions`.

    Raises:
        SapError: The input cannot be used; `message` says why and `hint` what to do.
        TypeError: The arguments do not go together.
    """
    session = open_session(checkpoint, data, **options)
    settings = ProjectionSettings(
        alpha, importance, layers=tuple(layers), skip_layers=tuple(skip_layers), batchnorm=batchnorm
    )
    live = session.live
    try:
        with torch.no_grad():
            samples = session.trusted_samples(session.select(SelectionSettings(trusted_count)))
            bases = session.bases(samples)
            outcome, correction = run_repair(session, settings, bases, samples)
    except BaseException:
        if live is not None:
            live.undo()
        raise
    if live is not None:
        live.give_back()
    return Repaired(outcome, session, bases, settings, correction)


def polish(
    checkpoint: str | Path,
    data: str | Path,
    *,
    settings: PolishSettings = PolishSettings(),  # noqa: B008 - frozen
    **options: Unpack[SessionOptions],
) -> Polished:
    """Train a classifier on for a few epochs, from its repaired weights; nothing is written before `Polished.save`.

    Args:
        checkpoint: See `open_session`.
        data: The noisy training data.
        settings: How it is trained.
        **options: See `SessionOptions`; `batch_size` is that of the training too.

    Raises:
        SapError: The input cannot be used; `message` says why and `hint` what to do.
    """
    session = open_session(checkpoint, data, **options)
    check_polish(session, settings)
    return Polished(run_polish(session, settings), session)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
