"""The stages in order, from a checkpoint and a data folder to a corrected checkpoint, and what is cached in between."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file

from sapcli import __version__
from sapcli.architecture import Architecture, load_model, resolve_architecture
from sapcli.bases import Bases, collect_bases, read_bases, write_bases
from sapcli.cache import Cache, Content
from sapcli.calibration import BATCHNORM_BATCH, BATCHNORM_IMAGES, batchnorm_layers, reestimate
from sapcli.checkpoint import Checkpoint
from sapcli.contents import contents_of, find_contents, from_text, to_text
from sapcli.correction import Correction, LayerPlan, plan_layers
from sapcli.dataset import Dataset, Role, open_dataset
from sapcli.errors import CheckpointError, DatasetError, UsageError
from sapcli.estimate import Workload
from sapcli.evaluation import Gain, Metrics, measure, paired_gain
from sapcli.evidence import weak_points
from sapcli.files import atomic_write
from sapcli.folders import split_folders
from sapcli.images import Images
from sapcli.progress import Progress
from sapcli.saving import write_safetensors, written_digest
from sapcli.scoring import Classifier, Outcomes, score
from sapcli.search import Choice, Evidence, best_on_validation, knee, usual_trials
from sapcli.selection import TrustedSet, curvatures, parse_trusted, random_scores, select_lowest
from sapcli.settings import (
    BatchNorm,
    DataSource,
    Importance,
    ModelSource,
    ProjectionSettings,
    RunSettings,
    SelectionSettings,
    Strategy,
)

TRUSTED_IMAGES = "sap.trusted_images"
"""The metadata's key for the contents of all images that a checkpoint was repaired with, by this or earlier repairs."""


@dataclass(frozen=True)
class Samples:
    """Images to run: positions in the images of a dataset, and the digest of which they are."""

    images: Images
    indices: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        choice: Which alpha, and why; its `alpha` is `None` where the model stays as it was.
        plan: The weights that were projected and those that were not.
        removed: Per projected weight, `||W - W M|| / ||W||`.
        batchnorm_images: How many images the BatchNorm statistics were re-estimated on; 0 where they were kept.
        trusted: How many samples were trusted.
        validation: How many validation images there were.
        before: The metrics on the validation images of the model as it was; `None` without any.
        after: The same of the repaired model.
        gain: The difference, from paired outcomes.
        outcomes_before: What the model as it was made of the validation images; `None` without any.
        outcomes_after: The same of the repaired model.
        weak_points: What is to be said against the evidence.
    """

    choice: Choice
    plan: LayerPlan
    removed: Mapping[str, float]
    batchnorm_images: int
    trusted: int
    validation: int
    before: Metrics | None = None
    after: Metrics | None = None
    gain: Gain | None = None
    outcomes_before: Outcomes | None = None
    outcomes_after: Outcomes | None = None
    weak_points: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the corrected checkpoint differs from the input."""
        return self.choice.alpha is not None


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
    """

    checkpoint: Checkpoint
    source: DataSource
    settings: RunSettings
    progress: Progress
    cache: Cache
    model: ModelSource = field(default_factory=ModelSource)

    @cached_property
    def architecture(self) -> Architecture:
        """What the checkpoint's network is."""
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
        return Classifier(loaded, self.architecture, self.settings.device)

    @cached_property
    def training(self) -> Dataset:
        """The images to learn from."""
        return self._open(self.source.folder, Role.LEARN, self.source.split)

    @cached_property
    def training_images(self) -> Images:
        """The training images, decoded when they are asked for."""
        return self.images(self.training)

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
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
            strict=self.settings.strict_images,
        )

    def score(self, images: Images, stage: str, indices: Sequence[int] | None = None) -> Outcomes:
        """Run the classifier over images; see `scoring.score`."""
        return score(self.classifier, images, self.progress, stage, indices)

    def _made_from(self, fingerprint: str) -> dict[str, object]:
        """What every cached artifact depends on: the weights, how images are fed to them, and the images."""
        settings = self.settings
        return {
            "weights": self.checkpoint.digest,
            "architecture": self.architecture.to_metadata(),
            "code": self.architecture.code_digest,
            "data": fingerprint,
            "device": settings.device.type,
            "batch_size": settings.batch_size,
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
        """What the model makes of every training image, cached."""
        return self._fetch_made_of(
            self.training_images,
            range(len(self.training.paths)),
            "scores",
            self._made_from(self.training.fingerprint),
            make=lambda: self.score(self.training_images, "scoring training images"),
            read=_read_outcomes,
            write=_write_outcomes,
        )

    def select(self, settings: SelectionSettings) -> TrustedSet:
        """The trusted set: class-balanced, never a validation sample, cached."""
        excluded = self._validation_twins()
        parts = self._made_from(self.training.fingerprint) | {
            "count": settings.count,
            "strategy": settings.strategy,
            "seed": self.settings.seed if settings.strategy is not Strategy.LOSS else 0,
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
        losses = None
        if settings.strategy is Strategy.CURVATURE:
            indices, scores = curvatures(self.classifier, self.training_images, self.progress, self.settings.seed)
        elif settings.strategy is Strategy.RANDOM:
            indices = torch.arange(len(self.training.paths))
            scores = random_scores(len(indices), self.settings.seed)
        else:
            outcomes = self.training_outcomes()
            indices, scores = outcomes.indices, outcomes.losses
            losses = outcomes.losses
        while True:
            if excluded:
                allowed = ~torch.isin(indices, torch.tensor(sorted(excluded)))
                indices, scores = indices[allowed], scores[allowed]
                losses = losses[allowed] if losses is not None else None
            trusted = select_lowest(self.training, indices, scores, settings.count, losses, self.progress)
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
        files = {_identity(validation.root / path) for path in validation.paths} - {None}
        twins = {
            index for index, path in enumerate(self.training.paths) if _identity(self.training.root / path) in files
        }
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
        parts = self._made_from(samples.images.dataset.fingerprint) | {"samples": samples.digest}
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

    def workload(self, settings: ProjectionSettings, trusted: int, *, selects: bool, captures: bool) -> Workload:
        """What a repair runs, for an estimate.

        Args:
            settings: How the weights are to be changed.
            trusted: The number of trusted samples.
            selects: Whether they are chosen first, which scores all training images.
            captures: Whether bases are made of them.
        """
        validation = 0 if self.validation is None else len(self.validation.paths)
        evidence = Evidence.FIXED if settings.alpha is not None else Evidence.KNEE
        if settings.alpha is None and validation:
            evidence = Evidence.VALIDATION
        return Workload(
            scored=len(self.training.paths) if selects else 0,
            trusted=trusted,
            captured=captures,
            judged=trusted if evidence is Evidence.KNEE else validation,
            trials=usual_trials(evidence, settings.importance is Importance.GPM),
            batchnorm=len(self._batchnorm_indices(settings)),
            batch_size=self.settings.batch_size,
        )

    def repair(
        self, settings: ProjectionSettings, bases: Bases, trusted: Samples | None, forget: Bases | None = None
    ) -> tuple[Repair, Correction]:
        """Choose alpha and leave the network as the choice says: repaired, or as it was.

        Args:
            settings: How the weights are changed.
            bases: Of the trusted samples.
            trusted: The trusted samples, which alpha is chosen on where there is no validation data.
            forget: Bases of the forget set.

        Raises:
            UsageError: Alpha is to be searched, and there is neither validation data nor a trusted set.
        """
        stage = "choosing alpha" if settings.alpha is None else f"projecting with alpha {settings.alpha:g}"
        # One stage to those who listen: what is inside it shows only while it runs.
        with self.progress.stage(stage, None, "alphas") as advance:
            repair, correction = self._repair(settings, bases, trusted, forget)
            advance(len(repair.choice.trials))
        return repair, correction

    def _repair(
        self, settings: ProjectionSettings, bases: Bases, trusted: Samples | None, forget: Bases | None
    ) -> tuple[Repair, Correction]:
        plan = self.plan(bases, settings)
        correction = self._correction(settings, bases, plan, forget)
        judges = self._judges(bases)
        validation = self.images(self.validation) if self.validation is not None and judges else None
        before = None if validation is None else self.score(validation, "validating the unchanged model", judges)
        outcomes: dict[float, Outcomes] = {}

        def accuracy(alpha: float) -> float:
            assert validation is not None
            correction.apply(alpha)
            outcomes[alpha] = self.score(validation, f"validating alpha {alpha:g}", judges)
            return float(outcomes[alpha].correct.double().mean())

        energies = settings.importance is Importance.GPM
        if settings.alpha is not None:
            choice = Choice(settings.alpha, Evidence.FIXED, ())
            if validation is not None:
                accuracy(settings.alpha)
        elif before is not None and len(before):
            unchanged = float(before.correct.double().mean())
            choice = best_on_validation(accuracy, unchanged, energies, len(before))
            choice = replace(choice, samples=len(before))
        elif trusted is not None:
            choice = self._knee(correction, trusted, energies)
        else:
            raise UsageError(
                "--alpha auto needs validation images or trusted samples to choose on",
                "give --val DIR, --trusted, or a value for --alpha",
            )
        removed: Mapping[str, float] = {}
        if choice.alpha is None:
            correction.restore()
        else:
            correction.apply(choice.alpha)
            removed = correction.removed(choice.alpha)
        after = before if choice.alpha is None else outcomes.get(choice.alpha)
        classes = self.training.classes
        gain = None if before is None or after is None else paired_gain(before, after)
        repair = Repair(
            choice=choice,
            plan=plan,
            removed=removed,
            batchnorm_images=len(self._batchnorm_indices(settings)) if choice.alpha is not None else 0,
            trusted=0 if trusted is None else len(trusted.indices),
            validation=0 if before is None else len(before),
            before=None if before is None else measure(before, classes),
            after=None if after is None else measure(after, classes),
            gain=gain,
            outcomes_before=before,
            outcomes_after=after,
            weak_points=weak_points(choice, gain, 0 if before is None else len(before), bases.facts, classes),
        )
        return repair, correction

    def _judges(self, bases: Bases) -> Sequence[int]:
        """The validation images that are not, by their content, among the samples that the bases were made of."""
        if self.validation is None:
            return ()
        trusted = find_contents(self.validation, from_text(bases.facts.contents))
        if trusted:
            self.progress.note(f"{len(trusted)} validation images are trusted samples too and do not judge")
        return [index for index in range(len(self.validation.paths)) if index not in trusted]

    def _correction(
        self, settings: ProjectionSettings, bases: Bases, plan: LayerPlan, forget: Bases | None
    ) -> Correction:
        indices = self._batchnorm_indices(settings)
        batch_size = BATCHNORM_BATCH

        def calibrate() -> None:
            nonlocal batch_size
            batch_size = reestimate(
                self.classifier, self.training_images, indices, self.progress, "re-estimating BatchNorm", batch_size
            )

        return Correction(
            self.classifier,
            self.checkpoint,
            bases,
            plan,
            settings.importance,
            forget=forget,
            forget_mode=settings.forget_mode,
            calibrate=calibrate if indices else None,
        )

    def _batchnorm_indices(self, settings: ProjectionSettings) -> list[int]:
        """The training images that BatchNorm is re-estimated on; none where it is kept or there is none."""
        if settings.batchnorm is BatchNorm.KEEP or not batchnorm_layers(self.classifier.module):
            return []
        generator = torch.Generator().manual_seed(self.settings.seed)
        order: list[int] = torch.randperm(len(self.training.paths), generator=generator)[:BATCHNORM_IMAGES].tolist()
        return sorted(order)

    def _knee(self, correction: Correction, trusted: Samples, energies: bool) -> Choice:
        before = self.score(trusted.images, "scoring the trusted samples", trusted.indices)
        right = before.indices[before.correct].tolist()
        if not right:
            return Choice(None, Evidence.KNEE, ())

        def kept_right(alpha: float) -> float:
            correction.apply(alpha)
            after = self.score(trusted.images, f"trying alpha {alpha:g}", right)
            return float(after.correct.double().mean())

        return replace(knee(kept_right, energies), samples=len(right))

    def metadata(
        self,
        repair: Repair,
        correction: Correction,
        settings: ProjectionSettings,
        bases: Bases,
        forget: Bases | None = None,
    ) -> dict[str, str]:
        """The corrected checkpoint's metadata: the input's own, and how it came to be under `sap.*` keys."""
        choice = repair.choice
        trusted_images = from_text(bases.facts.contents)
        changed = correction.changed_entries() if repair.changed else {}
        projected = {entry: name for entry, name in changed.items() if name in {*repair.plan.projected, *bases.gains}}
        replacements = {} if choice.alpha is None else correction.replacements(choice.alpha)
        described = {
            "sap.version": __version__,
            "sap.torch": torch.__version__,
            "sap.input": self.checkpoint.digest,
            "sap.output": written_digest(self.checkpoint, replacements),
            "sap.repaired": "true" if repair.changed else "false",
            "sap.alpha": "" if choice.alpha is None else f"{choice.alpha:.12g}",
            "sap.evidence": choice.evidence.value,
            "sap.importance": settings.importance.value,
            "sap.trusted": bases.samples,
            TRUSTED_IMAGES: to_text(from_text(self.checkpoint.metadata.get(TRUSTED_IMAGES, "")) | trusted_images),
            "sap.projected": json.dumps(projected),
            "sap.batchnorm": json.dumps(sorted(changed.keys() - projected.keys())),
            "sap.batchnorm_images": str(repair.batchnorm_images),
            "sap.validation_images": str(repair.validation),
        }
        if repair.gain is not None:
            gain = repair.gain
            described["sap.gain"] = json.dumps({"points": gain.points, "interval": [gain.low, gain.high]})
        if forget is not None:
            described |= {"sap.forget": forget.samples, "sap.forget_mode": settings.forget_mode.value}
        kept = {key: text for key, text in self.checkpoint.metadata.items() if not key.startswith("sap.")}
        return kept | self.architecture.to_metadata() | described


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and file number, the same for all names of one file; `None` for a file that is gone."""
    try:
        status = path.stat()
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
