"""The stages on one checkpoint and one data folder: the trusted set and the bases, made once and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sapcli.activations.bases import Bases, collect_bases
from sapcli.activations.bases_file import read_bases, write_bases
from sapcli.datasets.contents import contents_of, find_contents, same_files
from sapcli.datasets.dataset import Role
from sapcli.datasets.images import Images
from sapcli.errors import CheckpointError
from sapcli.repairs.artifact_files import write_trusted
from sapcli.repairs.bases_origin import check_origin, origin_of
from sapcli.repairs.candidates import candidates_of
from sapcli.repairs.layer_plan import LayerPlan, plan_layers
from sapcli.repairs.passes.cached_passes import CachedPasses
from sapcli.repairs.selection import (
    TrustedSet,
    likely_lowest,
    parse_trusted,
    random_scores,
    select_lowest,
    shared_curvatures,
)
from sapcli.settings import ProjectionSettings, SelectionSettings, Strategy


@dataclass(frozen=True)
class Samples:
    """Images to run: positions in the images of a dataset, and the digest of which they are."""

    images: Images
    indices: tuple[int, ...]
    digest: str


class Session(CachedPasses):
    """A checkpoint and a data folder with the stages of a repair as methods; what was made once is kept."""

    candidates: int | None = None
    """Among how many training images trusted samples were looked for, where these were not all."""
    fitted: float | None = None
    """The share of their labels that the model as it was agrees with, in [0, 1], where their losses were looked at."""

    def select(self, settings: SelectionSettings) -> TrustedSet:
        """The trusted set: class-balanced, never a validation sample, cached."""
        if settings.count > len(self.training.paths) // 2:
            self.progress.warn(
                f"{settings.count:,} trusted samples are more than half of the {len(self.training.paths):,} training"
                " images, wrong labels among them: a smaller -n leaves the doubtful ones out"
            )
        candidates: Sequence[int] = range(len(self.training.paths))
        if settings.strategy is not Strategy.RANDOM:
            self.check_forward(self.training, stop=True)
            candidates = candidates_of(self.training, settings, self.settings.seed, self.progress)
        if settings.strategy is not Strategy.LOSS:
            self.ensure_order_checked()
        excluded = self._shared_with_validation(candidates)
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
        if len(candidates) < len(self.training.paths):
            self.candidates = len(candidates)
            parts["candidates"] = len(candidates), self.settings.seed
        self.fitted = None
        trusted = self._fetch_made_of(
            self.training_images,
            candidates if settings.strategy is not Strategy.RANDOM else (),
            "trusted",
            parts,
            make=lambda: self._select(settings, candidates, excluded),
            read=lambda path: parse_trusted(path.read_text().splitlines(), str(path), self.training),
            write=write_trusted,
        )
        if settings.strategy is Strategy.LOSS:
            self._order_checked = self._order_checked or self.source.class_map is None
            # What the losses told beside the trusted set is kept beside it, and never worth another pass.
            if self.fitted is None:
                self.fitted = self.cache.find("fitted", parts, lambda path: float(path.read_text()))
            else:
                self.cache.keep("fitted", parts, self.fitted, _write_share)
        return trusted

    def _select(self, settings: SelectionSettings, candidates: Sequence[int], excluded: frozenset[int]) -> TrustedSet:
        by_loss = settings.strategy is Strategy.LOSS
        if settings.strategy is Strategy.CURVATURE:
            indices, scores = shared_curvatures(
                self.ranks, self.classifier, self.training_images, self.progress, self.settings.seed, candidates
            )
        elif settings.strategy is Strategy.RANDOM:
            indices = torch.arange(len(self.training.paths))
            scores = random_scores(len(indices), self.settings.seed)
        else:
            outcomes = self.training_outcomes(candidates)
            self.fitted = outcomes.accuracy
            indices, scores = outcomes.indices, outcomes.losses
        while True:
            if excluded:
                allowed = ~torch.isin(indices, torch.tensor(sorted(excluded)))
                indices, scores = indices[allowed], scores[allowed]
            among, exact = indices, scores
            if by_loss and self.fast_dtype is not None:
                likely = likely_lowest(self.training, indices, scores, settings.count)
                outcomes = self.score(self.training_images, "scoring the most believable ones in float32", likely)
                among, exact = outcomes.indices, outcomes.losses
            losses = exact if by_loss else None
            trusted = select_lowest(self.training, among, exact, settings.count, losses, self.progress)
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

    def _shared_with_validation(self, candidates: Sequence[int]) -> frozenset[int]:
        """Those of these training images that are validation images too: the same files, whatever their names."""
        if self.validation is None:
            return frozenset()
        shared = same_files(self.training, candidates, self.validation)
        if shared:
            self.progress.note(f"{len(shared)} training images are validation images too and are not trusted")
        return shared

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
                    ranks=self.ranks,
                ),
                origin=origin_of(self.architecture, self.training.fingerprint),
            ),
            read=read_bases,
            write=write_bases,
        )

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
        check_origin(
            bases.origin,
            origin_of(self.architecture, self.training.fingerprint),
            source,
            self.architecture.name,
            self.progress,
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
            if name not in self.classifier.loaded.kept
        }
        kept = {name: why for name, why in self.classifier.loaded.kept.items() if name in bases.pieces}
        products = {
            name: float(sum(piece.view.products * piece.basis.rows for piece in bases.pieces[name])) for name in outputs
        }
        return plan_layers(
            outputs,
            {**bases.skipped, **kept},
            self.architecture.num_classes,
            products,
            layers=settings.layers,
            skip_layers=settings.skip_layers,
            keep_classifier=settings.keep_classifier,
        )


def _write_share(share: float, path: Path) -> None:
    path.write_text(repr(share))
