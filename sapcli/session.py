"""One checkpoint and one data folder: the model, the images, the trusted set and the bases, made once and cached."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file

from sapcli import device
from sapcli.architecture import (
    Architecture,
    Preprocessing,
    PreprocessingOverrides,
    load_model,
    resolve_architecture,
)
from sapcli.bases import Bases, collect_bases, read_bases, write_bases
from sapcli.cache import Cache, Content
from sapcli.checkpoint import Checkpoint
from sapcli.contents import contents_of, find_contents
from sapcli.correction import LayerPlan, plan_layers
from sapcli.dataset import Dataset, Role, open_dataset
from sapcli.description import describes_itself
from sapcli.errors import ArchitectureError, CheckpointError, DatasetError
from sapcli.files import atomic_write
from sapcli.folders import split_folders
from sapcli.images import Images
from sapcli.progress import Progress
from sapcli.saving import write_safetensors
from sapcli.scoring import Classifier, Outcomes, score
from sapcli.selection import TrustedSet, curvatures, likely_lowest, parse_trusted, random_scores, select_lowest
from sapcli.settings import (
    DataSource,
    ModelSource,
    ProjectionSettings,
    RunSettings,
    SelectionSettings,
    Strategy,
)


@dataclass(frozen=True)
class Samples:
    """Images to run: positions in the images of a dataset, and the digest of which they are."""

    images: Images
    indices: tuple[int, ...]
    digest: str


@dataclass
class Session:
    """One checkpoint and one data folder, with the stages as methods; what was made once is kept.

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
        used = {self.training.fingerprint, "" if self.validation is None else self.validation.fingerprint}
        return None if dataset.fingerprint in used else dataset

    def _open(self, folder: Path, role: Role, split: str | None) -> Dataset:
        dataset = open_dataset(
            folder,
            role,
            self.architecture.num_classes,
            split=split,
            label_names=self.architecture.label_names,
            labels=self.source.labels,
            class_map=self.source.class_map,
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

    def _made_from(self, fingerprint: str) -> dict[str, object]:
        """What every cached artifact depends on: the weights, how images are fed to them, and the images."""
        settings = self.settings
        return {
            "weights": self.checkpoint.digest,
            "architecture": self.architecture.to_metadata(),
            "code": self.architecture.code_digest,
            "data": fingerprint,
            "device": settings.device.type,
            "batch_size": self.batch_size,
            "torch": torch.__version__,
        }

    def _fetch_made_of(
        self,
        images: Images,
        indices: Sequence[int],
        kind: str,
        parts: Mapping[str, object],
        make: Callable[[], Content],
        read: Callable[[Path], Content],
        write: Callable[[Content, Path], None],
    ) -> Content:
        """A cached artifact that is made of these images, and with it which of them cannot be read.

        So they are named, or stop the run, when the artifact is there already too; see `Cache.fetch` for the rest.
        """
        made = False

        def make_here() -> Content:
            nonlocal made
            content = make()
            made = True
            return content

        def unreadable() -> dict[int, str]:
            if not made:
                for _ in images.batches(indices):
                    pass
            return {index: images.unreadable[index] for index in indices if index in images.unreadable}

        content = self.cache.fetch(kind, parts, make_here, read, write)
        known = self.cache.fetch("unreadable", {**parts, "of": kind}, unreadable, _read_reasons, _write_reasons)
        images.leave_out(known)
        return content

    def training_outcomes(self) -> Outcomes:
        """What the checkpoint's own weights make of every training image, need not be exactly, cached."""
        every = range(len(self.training.paths))
        return self._outcomes(self.training_images, every, "scores", "scoring training images")

    def validation_outcomes(self, images: Images, indices: Sequence[int]) -> Outcomes:
        """What the checkpoint's own weights make of validation images, need not be exactly, cached."""
        return self._outcomes(images, indices, "validation", "validating the unchanged model")

    def _outcomes(self, images: Images, indices: Sequence[int], kind: str, stage: str) -> Outcomes:
        parts = self._made_from(images.dataset.fingerprint) | {
            "dtype": str(self.fast_dtype),
            "of": hashlib.sha256(json.dumps(list(indices)).encode()).hexdigest(),
        }
        return self._fetch_made_of(
            images,
            indices,
            kind,
            parts,
            make=lambda: self.score(images, stage, indices, exact=False),
            read=_read_outcomes,
            write=_write_outcomes,
        )

    def select(self, settings: SelectionSettings) -> TrustedSet:
        """The trusted set: class-balanced, never a validation sample, cached."""
        if settings.count > len(self.training.paths) // 2:
            self.progress.warn(
                f"{settings.count:,} trusted samples are more than half of the {len(self.training.paths):,} training"
                " images, wrong labels among them: a smaller -n leaves the doubtful ones out"
            )
        excluded = self._validation_twins()
        parts = self._made_from(self.training.fingerprint) | {
            "count": settings.count,
            "strategy": settings.strategy,
            "seed": self.settings.seed if settings.strategy is not Strategy.LOSS else 0,
            "dtype": str(self.fast_dtype) if settings.strategy is Strategy.LOSS else "",
            "excluded": sorted(excluded),
            "validation": "" if self.validation is None else self.validation.fingerprint,
        }
        return self._fetch_made_of(
            self.training_images,
            range(len(self.training.paths)) if settings.strategy is not Strategy.RANDOM else (),
            "trusted",
            parts,
            make=lambda: self._select(settings, excluded),
            read=lambda path: parse_trusted(path.read_text().splitlines(), str(path), self.training),
            write=_write_trusted,
        )

    def _select(self, settings: SelectionSettings, excluded: frozenset[int]) -> TrustedSet:
        by_loss = settings.strategy is Strategy.LOSS
        if settings.strategy is Strategy.CURVATURE:
            indices, scores = curvatures(self.classifier, self.training_images, self.progress, self.settings.seed)
        elif settings.strategy is Strategy.RANDOM:
            indices = torch.arange(len(self.training.paths))
            scores = random_scores(len(indices), self.settings.seed)
        else:
            outcomes = self.training_outcomes()
            indices, scores = outcomes.indices, outcomes.losses
        while True:
            if excluded:
                allowed = ~torch.isin(indices, torch.tensor(sorted(excluded)))
                indices, scores = indices[allowed], scores[allowed]
            candidates, exact = indices, scores
            if by_loss and self.fast_dtype is not None:
                likely = likely_lowest(self.training, indices, scores, settings.count)
                outcomes = self.score(self.training_images, "scoring the most believable ones in float32", likely)
                candidates, exact = outcomes.indices, outcomes.losses
            losses = exact if by_loss else None
            trusted = select_lowest(self.training, candidates, exact, settings.count, losses, self.progress)
            excluded = self._copies_of_validation(trusted.indices)
            if not excluded:
                return trusted
            self.progress.note(f"{len(excluded)} training images are copies of validation images and are not trusted")

    def _copies_of_validation(self, indices: Sequence[int]) -> frozenset[int]:
        """Those of these training images that have the content of a validation image."""
        if self.validation is None:
            return frozenset()
        contents = contents_of(self.training, indices)
        shared = set(find_contents(self.validation, contents.values()).values())
        return frozenset(index for index, content in contents.items() if content in shared)

    def _validation_twins(self) -> frozenset[int]:
        """Training images that are validation images too: the same files, whatever their names."""
        validation = self.validation
        if validation is None:
            return frozenset()
        files = {_identity(f"{validation.root}/{path}") for path in validation.paths} - {None}
        root = self.training.root
        twins = {index for index, path in enumerate(self.training.paths) if _identity(f"{root}/{path}") in files}
        if twins:
            self.progress.note(f"{len(twins)} training images are validation images too and are not trusted")
        return frozenset(twins)

    def trusted_samples(self, trusted: TrustedSet) -> Samples:
        """The images of a trusted set, or a forget set, of the training data."""
        return Samples(self.training_images, trusted.indices, trusted.digest)

    def folder_samples(self, folder: Path) -> Samples:
        """All images of a folder of trusted images."""
        dataset = self._open(folder, Role.JUDGE, None)
        digest = hashlib.sha256(json.dumps([dataset.fingerprint]).encode()).hexdigest()
        return Samples(self.images(dataset), tuple(range(len(dataset.paths))), digest)

    def bases(self, samples: Samples) -> Bases:
        """The bases of all weights from the samples' activations, cached."""
        parts = self._made_from(samples.images.dataset.fingerprint) | {
            "samples": samples.digest,
            "all_rows": self.settings.all_rows,
        }
        return self._fetch_made_of(
            samples.images,
            samples.indices,
            "bases",
            parts,
            make=lambda: collect_bases(
                self.classifier,
                samples.images,
                samples.indices,
                checkpoint=self.checkpoint.digest,
                samples=samples.digest,
                progress=self.progress,
                all_rows=self.settings.all_rows,
            ),
            read=read_bases,
            write=write_bases,
        )

    def check_bases(self, bases: Bases, source: str) -> None:
        """Make sure that `bases` were made from this checkpoint.

        Raises:
            CheckpointError: They were made from other weights.
        """
        again = "make them again with `sap activations` and this checkpoint"
        if bases.checkpoint != self.checkpoint.digest:
            raise CheckpointError(
                f"{source} holds bases of other weights than those of {self.checkpoint.source}", again
            )
        elements = {name: tensor.numel() for name, tensor in self.classifier.module.named_parameters()}
        for name in bases.pieces:
            if not bases.fit(name, elements.get(name, 0)):
                raise CheckpointError(
                    f"{source} holds bases of a layer {name} that {self.checkpoint.source} has not", again
                )

    def plan(self, bases: Bases, settings: ProjectionSettings) -> LayerPlan:
        """Which weights are projected."""
        outputs = {
            name: sum(piece.view.groups * piece.view.outputs for piece in pieces)
            for name, pieces in bases.pieces.items()
        }
        return plan_layers(
            outputs,
            bases.skipped,
            self.architecture.num_classes,
            layers=settings.layers,
            skip_layers=settings.skip_layers,
            keep_classifier=settings.keep_classifier,
        )


def _as_given(preprocessing: Preprocessing) -> PreprocessingOverrides:
    """A preprocessing as if the user had asked for it."""
    names = (field.name for field in fields(PreprocessingOverrides))
    return PreprocessingOverrides(**{name: getattr(preprocessing, name) for name in names})


def _identity(path: str) -> tuple[int, int] | None:
    """Device and file number, the same for all names of one file; `None` for a file that is gone."""
    try:
        status = os.stat(path)  # noqa: PTH116 (of thousands, without making an object of each name)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _write_reasons(unreadable: Mapping[int, str], path: Path) -> None:
    with atomic_write(path) as handle:
        handle.write(json.dumps(unreadable).encode())


def _read_reasons(path: Path) -> dict[int, str]:
    return {int(index): reason for index, reason in json.loads(path.read_text()).items()}


def _write_outcomes(outcomes: Outcomes, path: Path) -> None:
    write_safetensors(path, vars(outcomes))


def _read_outcomes(path: Path) -> Outcomes:
    return Outcomes(**{name: column.clone() for name, column in load_file(path).items()})


def _write_trusted(trusted: TrustedSet, path: Path) -> None:
    with atomic_write(path) as handle:
        handle.write(trusted.to_json_lines().encode("utf-8", "surrogateescape"))
