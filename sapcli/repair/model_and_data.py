"""One checkpoint and one data folder, opened: the network and the images, each made when it is first asked for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import torch

from sapcli.activations.scoring import Classifier, Outcomes, score
from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.datasets.dataset import Dataset, Role, open_dataset
from sapcli.datasets.file_digests import FileDigests
from sapcli.datasets.folders import split_folders
from sapcli.datasets.images import Images
from sapcli.errors import ArchitectureError, DatasetError
from sapcli.machine import device
from sapcli.machine.cache import Cache
from sapcli.machine.progress import Progress
from sapcli.networks.architecture import Architecture, load_model, resolve_architecture
from sapcli.networks.description import describes_itself
from sapcli.networks.preprocessing import Preprocessing
from sapcli.settings import DataSource, ModelSource, PreprocessingOverrides, RunSettings


@dataclass
class ModelAndData:
    """One checkpoint and one data folder, and how they are run.

    Args:
        checkpoint: The model's file.
        source: The data.
        settings: What means the same to every command.
        progress: Told how far the stages are.
        cache: Where artifacts are kept between runs.
        model: What the user says of the architecture and the preprocessing.
        like: The architecture of a checkpoint that this one is compared with, for one that does not name a fitting one.
    """

    checkpoint: Checkpoint
    source: DataSource
    settings: RunSettings
    progress: Progress
    cache: Cache
    model: ModelSource = field(default_factory=ModelSource)
    like: Architecture | None = None

    @cached_property
    def architecture(self) -> Architecture:
        """What the checkpoint's network is."""
        if self.like is None:
            return self._own_architecture()
        if describes_itself(self.checkpoint):
            # A config.json in its folder may be about another file.
            with contextlib.suppress(ArchitectureError):
                return self._own_architecture()
        like = self.like
        found = resolve_architecture(self.checkpoint, like.name, like.arguments, _as_given(like.preprocessing))
        return replace(
            found, label_names=like.label_names, preprocessing=like.preprocessing, source="as the other checkpoint"
        )

    def _own_architecture(self) -> Architecture:
        return resolve_architecture(self.checkpoint, self.model.arch, self.model.arguments, self.model.overrides)

    @cached_property
    def classifier(self) -> Classifier:
        """The network, filled and on the device."""
        loaded = load_model(self.checkpoint, self.architecture, self.settings.device)
        if loaded.extra_entries:
            named = ", ".join(loaded.extra_entries[:3]) + (", ..." if len(loaded.extra_entries) > 3 else "")
            self.progress.note(
                f"{len(loaded.extra_entries)} entries are not the network's and stay as they are: {named}"
            )
        return Classifier(loaded, self.architecture, self.settings.device, self.fast_dtype)

    @property
    def weight_names(self) -> list[str]:
        """The network's weights of two or more dimensions."""
        return [name for name, parameter in self.classifier.module.named_parameters() if parameter.dim() > 1]

    @cached_property
    def fast_dtype(self) -> torch.dtype | None:
        """What passes that need not be exact are converted to."""
        parameters = sum(math.prod(entry.shape) for entry in self.checkpoint.entries.values())
        return device.fast_dtype(self.settings.device, self.settings.precision, parameters)

    @cached_property
    def batch_size(self) -> int:
        """How many images run at a time."""
        _, height, width = self.architecture.preprocessing.input_size
        return self.settings.batch_size or device.usual_batch_size(self.settings.device, height, width)

    @cached_property
    def training(self) -> Dataset:
        """The images to learn from."""
        return self._open(self.source.folder, Role.LEARN, self.source.split)

    @cached_property
    def training_images(self) -> Images:
        """The training images, decoded when they are asked for."""
        return self.images(self.training)

    @cached_property
    def validation_images(self) -> Images | None:
        """The validation images, decoded when they are asked for."""
        return None if self.validation is None else self.images(self.validation)

    @cached_property
    def validation(self) -> Dataset | None:
        """The images to choose alpha on, where there are any."""
        dedicated = self.source.validation is not None
        return open_dataset(
            self.source.validation or self.source.folder,
            Role.CHOOSE,
            self.architecture.num_classes,
            label_names=self.training.classes,
            # A label file names the images of DATA.
            labels=None if dedicated else self.source.labels,
            class_map=self.source.class_map,
            dedicated=dedicated,
            digests=self._digests,
        )

    def check_data(self, *, test: bool = False) -> None:
        """Open the training and the validation data, so that what is wrong with them shows before any work is done.

        Args:
            test: Whether to open the test images too.

        Raises:
            SapError: They do not fit the network, or there are no images.
        """
        _ = self.training, self.validation, self.test if test else None

    def evaluation(self) -> Dataset:
        """The images to judge on."""
        return self._open(self.source.folder, Role.JUDGE, self.source.split)

    @cached_property
    def test(self) -> Dataset | None:
        """The images of the data folder's test split, where there are any that have no part in the repair."""
        name = split_folders(self.training.root, without_classes=self.source.labels is not None).get("test")
        if name is None:
            return None
        dataset = self._open(self.source.folder, Role.JUDGE, name)
        used = [(data.root, data.paths) for data in (self.training, self.validation) if data is not None]
        return None if (dataset.root, dataset.paths) in used else dataset

    @cached_property
    def _digests(self) -> FileDigests:
        return FileDigests(self.cache, self.progress)

    def _open(self, folder: Path, role: Role, split: str | None) -> Dataset:
        dataset = open_dataset(
            folder,
            role,
            self.architecture.num_classes,
            split=split,
            label_names=self.architecture.label_names,
            labels=self.source.labels,
            class_map=self.source.class_map,
            digests=self._digests,
        )
        if dataset is None:
            raise DatasetError(f"{folder} has no images for this", "name the folder with --split")
        return dataset

    def images(self, dataset: Dataset) -> Images:
        """The images of a dataset, as the network takes them."""
        return Images(
            dataset,
            self.architecture.preprocessing,
            batch_size=self.batch_size,
            workers=self.settings.workers,
            strict=self.settings.strict_images,
        )

    def score(
        self, images: Images, stage: str, indices: Sequence[int] | None = None, *, exact: bool = True
    ) -> Outcomes:
        """Run the classifier over images; see `scoring.score`."""
        return score(self.classifier, images, self.progress, stage, indices, exact=exact)


def _as_given(preprocessing: Preprocessing) -> PreprocessingOverrides:
    """A preprocessing as if the user had asked for it."""
    names = (field.name for field in fields(PreprocessingOverrides))
    return PreprocessingOverrides(**{name: getattr(preprocessing, name) for name in names})
