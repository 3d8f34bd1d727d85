"""The stages on one checkpoint and one data folder: the trusted set and the bases, made once and cached."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from sapcli.activations.bases import Bases, Origin, collect_bases
from sapcli.activations.bases_file import read_bases, write_bases
from sapcli.activations.probe import Fault, Finding, images_to_probe, probe, read_findings, write_findings
from sapcli.activations.scoring import Outcomes, logits_of
from sapcli.activations.views import Views, view
from sapcli.datasets.contents import contents_of, find_contents
from sapcli.datasets.dataset import Dataset, Role
from sapcli.datasets.images import Images, Remarks
from sapcli.errors import ArchitectureError, CheckpointError
from sapcli.machine.cache import Content
from sapcli.repairs import artifact_files
from sapcli.repairs.bases_origin import check_origin
from sapcli.repairs.class_order.check import compare_order
from sapcli.repairs.layer_plan import LayerPlan, plan_layers
from sapcli.repairs.model_and_data import ModelAndData, some_of_each_class
from sapcli.repairs.selection import TrustedSet, curvatures, likely_lowest, parse_trusted, random_scores, select_lowest
from sapcli.settings import ProjectionSettings, SelectionSettings, Strategy


@dataclass(frozen=True)
class Samples:
    """Images to run: positions in the images of a dataset, and the digest of which they are."""

    images: Images
    indices: tuple[int, ...]
    digest: str


class Session(ModelAndData):
    """A checkpoint and a data folder with the stages of a repair as methods; what was made once is kept."""

    _findings: tuple[Finding, ...] | None = None
    _order_checked = False

    def _cache_key(self, fingerprint: str) -> dict[str, object]:
        """What every cached artifact depends on: the weights, how images are fed to them, and the images."""
        settings = self.settings
        return {
            "weights": self.checkpoint.digest,
            "architecture": self.architecture.to_metadata(),
            "code": self.architecture.code_digest,
            "data": fingerprint,
            "device": settings.device.type,
            "batch_size": self.batch_size,
            "versions": _versions(self.architecture.name.partition(":")[0]),
        }

    @property
    def key(self) -> dict[str, object]:
        """What every cached artifact of the training images depends on."""
        return self._cache_key(self.training.fingerprint)

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
        """A cached artifact that is made of these images, and with it what was to be said of them while it was made.

        So images that cannot be read are named, or stop the run, when the artifact is there already too; see
        `Cache.fetch` for the rest.
        """
        made = False

        def make_here() -> Content:
            nonlocal made
            content = make()
            made = True
            return content

        def remarks() -> Remarks:
            if not made:
                for _ in images.batches(indices):
                    pass
            return images.remarks(indices)

        content = self.cache.fetch(kind, parts, make_here, read, write)
        known = self.cache.fetch(
            "remarks",
            {**parts, "of": kind},
            remarks,
            read=lambda path: artifact_files.read_remarks(path, len(images.dataset.paths)),
            write=artifact_files.write_remarks,
        )
        images.add_remarks(known)
        return content

    def check_forward(self, dataset: Dataset, *, stop: bool) -> None:
        """Look once, on a few images, whether the network is a function from an image to its logits; see `probe`.

        What is found is said once. What was found for these weights before is remembered in the cache.

        Args:
            dataset: Whose images.
            stop: Whether a network whose numbers would all be wrong is an error.

        Raises:
            ArchitectureError: Its logits depend on other images or on chance.
        """
        source = self.checkpoint.source
        if self._findings is None:
            self._findings = self.cache.fetch(
                "probe",
                self._cache_key(dataset.fingerprint),
                make=lambda: probe(self.classifier, images_to_probe(dataset, self.architecture.preprocessing)),
                read=read_findings,
                write=write_findings,
            )
            for finding in self._findings:
                # An error says it by itself.
                if not (stop and finding.fault.spoils_everything):
                    finding.tell(source, self.progress)
                if finding.fault is Fault.WRITES:
                    self.classifier.copies_inputs = True
        worst = next((finding for finding in self._findings if finding.fault.spoils_everything), None)
        if stop and worst is not None:
            raise ArchitectureError(f"{source}: {worst.text}", worst.advice)

    def score(
        self, images: Images, stage: str, indices: Sequence[int] | None = None, *, exact: bool = True
    ) -> Outcomes:
        """Run the classifier over images, after a look at whether it can be trusted; see `scoring.score`."""
        self.check_forward(images.dataset, stop=False)
        return super().score(images, stage, indices, exact=exact)

    def training_outcomes(self) -> Outcomes:
        """What the checkpoint's own weights make of every training image, need not be exactly, cached."""
        every = range(len(self.training.paths))
        outcomes = self._outcomes(self.training_images, every, "scores", "scoring training images")
        self.check_class_order(self.training_images, outcomes)
        return outcomes

    def validation_outcomes(self, images: Images, indices: Sequence[int]) -> Outcomes:
        """What the checkpoint's own weights make of validation images, need not be exactly, cached."""
        outcomes = self._outcomes(images, indices, "validation", "validating the unchanged model")
        self.check_class_order(images, outcomes)
        return outcomes

    def answers(self, images: Images, indices: Sequence[int]) -> Outcomes:
        """What the network makes of some images, need not be exactly, cached."""
        return self._outcomes(images, indices, "order", "finding the order of the classes")

    def ensure_order_checked(self) -> None:
        """Compare the order of the classes with the network's answers on some training images, unless it has been.

        Raises:
            DatasetError: Another order explains the answers far better.
        """
        if not self._order_checked:
            indices = some_of_each_class(self.training)
            self.check_class_order(self.training_images, self.answers(self.training_images, indices))

    def check_class_order(self, images: Images, outcomes: Outcomes, *, stop: bool = True) -> None:
        """Compare the order of the classes with the network's own answers, once in a run that stops.

        Args:
            images: The images.
            outcomes: What the checkpoint's own weights, which the network still has, made of them.
            stop: Whether another order ends the run; it is a warning alone where a class map says the order.

        Raises:
            DatasetError: Another order explains the answers far better.
        """
        if stop and self._order_checked:
            return
        self._order_checked = self._order_checked or stop
        confirm = None
        if stop and images is self.training_images and (validation := self.validation_images) is not None:
            every = range(len(validation.dataset.paths))

            def confirm() -> Outcomes:
                return self.validation_outcomes(validation, every)

        def look(indices: Sequence[int], outputs: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            stage = "looking closer at classes that are in doubt"
            labels, logits = logits_of(
                self.classifier, images, self.progress, stage, indices, torch.tensor(outputs, dtype=torch.int64)
            )
            return labels.numpy(), logits.numpy()

        source = self.checkpoint.source
        compare_order(images.dataset, outcomes, source, self.source, self.progress, look, confirm, stop=stop)

    def views(self, images: Images, stage: str) -> Views:
        """What the checkpoint's own weights make of all of these images, with logits and features, cached."""
        sizes = len(images.dataset.paths), len(images.dataset.classes)
        make = functools.partial(view, self.classifier, images, self.progress, stage)
        read = functools.partial(artifact_files.read_views, samples=sizes[0], classes=sizes[1])
        return self._fetch_run(images, range(sizes[0]), "views", make, read, artifact_files.write_views)

    def _outcomes(self, images: Images, indices: Sequence[int], kind: str, stage: str) -> Outcomes:
        dataset = images.dataset
        make = functools.partial(self.score, images, stage, indices, exact=False)
        read = functools.partial(artifact_files.read_outcomes, samples=len(dataset.paths), classes=len(dataset.classes))
        return self._fetch_run(images, indices, kind, make, read, artifact_files.write_outcomes)

    def _fetch_run(
        self,
        images: Images,
        indices: Sequence[int],
        kind: str,
        make: Callable[[], Content],
        read: Callable[[Path], Content],
        write: Callable[[Content, Path], None],
    ) -> Content:
        """What a pass over images, which need not be exact, made of them, cached."""
        self.check_forward(images.dataset, stop=False)
        parts = self._cache_key(images.dataset.fingerprint) | {
            "dtype": str(self.fast_dtype),
            "of": hashlib.sha256(json.dumps(list(indices)).encode()).hexdigest(),
        }
        return self._fetch_made_of(images, indices, kind, parts, make, read, write)

    def select(self, settings: SelectionSettings) -> TrustedSet:
        """The trusted set: class-balanced, never a validation sample, cached."""
        if settings.count > len(self.training.paths) // 2:
            self.progress.warn(
                f"{settings.count:,} trusted samples are more than half of the {len(self.training.paths):,} training"
                " images, wrong labels among them: a smaller -n leaves the doubtful ones out"
            )
        if settings.strategy is not Strategy.RANDOM:
            self.check_forward(self.training, stop=True)
        if settings.strategy is not Strategy.LOSS:
            self.ensure_order_checked()
        excluded = self._shared_with_validation()
        parts = self._cache_key(self.training.fingerprint) | {
            "count": settings.count,
            "strategy": settings.strategy,
            "seed": self.settings.seed if settings.strategy is not Strategy.LOSS else 0,
            "dtype": str(self.fast_dtype) if settings.strategy is Strategy.LOSS else "",
            "excluded": sorted(excluded),
            "validation": "" if self.validation is None else self.validation.fingerprint,
            # A list that is kept was made of classes in an order that the network's answers do not contradict.
            "order": "stated" if self.source.class_map is not None else "checked by logits",
        }
        trusted = self._fetch_made_of(
            self.training_images,
            range(len(self.training.paths)) if settings.strategy is not Strategy.RANDOM else (),
            "trusted",
            parts,
            make=lambda: self._select(settings, excluded),
            read=lambda path: parse_trusted(path.read_text().splitlines(), str(path), self.training),
            write=artifact_files.write_trusted,
        )
        if settings.strategy is Strategy.LOSS and self.source.class_map is None:
            self._order_checked = True
        return trusted

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

    def _shared_with_validation(self) -> frozenset[int]:
        """Training images that are validation images too: the same files, whatever their names."""
        validation = self.validation
        if validation is None:
            return frozenset()
        files = {_identity(f"{validation.root}/{path}") for path in validation.paths} - {None}
        root = self.training.root
        shared = {index for index, path in enumerate(self.training.paths) if _identity(f"{root}/{path}") in files}
        if shared:
            self.progress.note(f"{len(shared)} training images are validation images too and are not trusted")
        return frozenset(shared)

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
        self.check_forward(samples.images.dataset, stop=True)
        parts = self._cache_key(samples.images.dataset.fingerprint) | {
            "samples": samples.digest,
            "all_rows": self.settings.all_rows,
        }
        return self._fetch_made_of(
            samples.images,
            samples.indices,
            "bases",
            parts,
            make=lambda: replace(
                collect_bases(
                    self.classifier,
                    samples.images,
                    samples.indices,
                    checkpoint=self.checkpoint.digest,
                    samples=samples.digest,
                    progress=self.progress,
                    all_rows=self.settings.all_rows,
                ),
                origin=self._origin,
            ),
            read=read_bases,
            write=write_bases,
        )

    @property
    def _origin(self) -> Origin:
        """What bases are made with here."""
        architecture = self.architecture
        settings = json.loads(json.dumps(architecture.preprocessing.to_settings()))
        return Origin(settings, architecture.code_digest, self.training.fingerprint)

    def check_bases(self, bases: Bases, source: str) -> None:
        """Make sure that `bases` were made from this checkpoint as it is run here, and say where the rest differs.

        Raises:
            CheckpointError: They were made from other weights, or of images that were prepared in another way.
        """
        again = "make them again with `sap activations` and this checkpoint"
        if bases.checkpoint != self.checkpoint.digest:
            raise CheckpointError(
                f"{source} holds bases of other weights than those of {self.checkpoint.source}", again
            )
        check_origin(bases.origin, self._origin, source, self.architecture.name, self.progress)
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
            if name not in self.classifier.loaded.kept
        }
        kept = {name: why for name, why in self.classifier.loaded.kept.items() if name in bases.pieces}
        return plan_layers(
            outputs,
            {**bases.skipped, **kept},
            self.architecture.num_classes,
            layers=settings.layers,
            skip_layers=settings.skip_layers,
            keep_classifier=settings.keep_classifier,
        )


@functools.cache
def _versions(library: str) -> dict[str, str]:
    """The versions of what decodes images, builds networks (a library of its own among them) and computes."""
    found = {"torch": str(torch.__version__)}
    for package in (
        "timm",
        "torchvision",
        "pillow",
        "numpy",
        *(("transformers",) if library == "transformers" else ()),
    ):
        # What was put on the path by hand has no version that is known.
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _identity(path: str) -> tuple[int, int] | None:
    """Device and file number, the same for all names of one file; `None` for a file that is gone."""
    try:
        status = os.stat(path)  # noqa: PTH116 (of thousands, without making an object of each name)
    except OSError:
        return None
    return status.st_dev, status.st_ino
