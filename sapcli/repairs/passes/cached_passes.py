"""The passes of the checkpoint's own network over images: cached, in parts while they come, and seen with doubt."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sapcli.activations.probe import Fault, Finding, images_to_probe, probe, read_findings, write_findings
from sapcli.activations.scoring import Outcomes, logits_of
from sapcli.activations.shared.resuming import Parts, score_in_parts
from sapcli.activations.shared.shares import view_in_shares
from sapcli.activations.views import Views
from sapcli.datasets.dataset import Dataset
from sapcli.datasets.images import Images, Remarks
from sapcli.errors import ArchitectureError
from sapcli.machine.cache import Content
from sapcli.repairs import artifact_files
from sapcli.repairs.class_order.check import compare_order
from sapcli.repairs.model_and_data import ModelAndData, some_of_each_class


class CachedPasses(ModelAndData):
    """A checkpoint and a data folder with the passes of the unchanged network over images; what was made is kept."""

    _findings: tuple[Finding, ...] | None = None
    _order_checked = False

    def _cache_key(self, fingerprint: str) -> dict[str, object]:
        """What every cached artifact depends on: the weights, how images are fed to them, and the images."""
        return {
            "weights": self.checkpoint.digest,
            "architecture": self.architecture.to_metadata(),
            "code": self.architecture.code_digest,
            "data": fingerprint,
            "device": self.settings.device.type,
            "batch_size": self.batch_size,
            "versions": artifact_files.library_versions(self.architecture.name.partition(":")[0]),
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
                make=lambda: self.ranks.from_first(
                    lambda: probe(self.classifier, images_to_probe(dataset, self.architecture.preprocessing))
                ),
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

    def training_outcomes(self, indices: Sequence[int] | None = None) -> Outcomes:
        """What the checkpoint's own weights make of training images, all by default, need not be exactly, cached."""
        chosen = range(len(self.training.paths)) if indices is None else indices
        outcomes = self._outcomes(self.training_images, chosen, "scores", "scoring training images")
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
            chosen = torch.tensor(outputs, dtype=torch.int64)
            # They are few: the first process looks at all of them.
            labels, logits = self.ranks.from_first(
                lambda: logits_of(self.classifier, images, self.progress, stage, indices, chosen)
            )
            return labels.numpy(), logits.numpy()

        # A class map is written by the first process alone.
        order = self.source if self.ranks.is_first else replace(self.source, suggested_class_map=None)
        source = self.checkpoint.source
        compare_order(images.dataset, outcomes, source, order, self.progress, look, confirm, stop=stop)

    def views(self, images: Images, stage: str) -> Views:
        """What the checkpoint's own weights make of all of these images, with logits and features, cached."""
        sizes = len(images.dataset.paths), len(images.dataset.classes)
        every = range(sizes[0])
        key = self._pass_key(images, every)
        make = functools.partial(view_in_shares, self.ranks, self.classifier, images, self.progress, stage)
        read = functools.partial(artifact_files.read_views, samples=sizes[0], classes=sizes[1])
        return self._fetch_made_of(images, every, "views", key, make, read, artifact_files.write_views)

    def judge(self, images: Images, stage: str) -> Outcomes:
        """Run the classifier over all images exactly, going on where a run that was killed had come to."""
        self.check_forward(images.dataset, stop=False)
        key = self._cache_key(images.dataset.fingerprint) | {"of": "all", "dtype": ""}
        parts = Parts(self.cache, key, images, range(len(images.dataset.paths)))
        outcomes = self._in_parts(images, stage, parts, exact=True)
        parts.discard()
        return outcomes

    def _outcomes(self, images: Images, indices: Sequence[int], kind: str, stage: str) -> Outcomes:
        """What the network makes of some images, which need not be exact, cached; also in parts while they come."""
        key = self._pass_key(images, indices)
        begun: list[Parts] = []

        def make() -> Outcomes:
            begun.append(Parts(self.cache, key, images, indices))
            return self._in_parts(images, stage, begun[0], exact=False)

        dataset = images.dataset
        read = functools.partial(artifact_files.read_outcomes, samples=len(dataset.paths), classes=len(dataset.classes))
        outcomes = self._fetch_made_of(images, indices, kind, key, make, read, artifact_files.write_outcomes)
        for made in begun:
            made.discard()
        return outcomes

    def _in_parts(self, images: Images, stage: str, parts: Parts, *, exact: bool) -> Outcomes:
        return score_in_parts(self.classifier, images, self.progress, stage, parts, self.ranks, exact=exact)

    def _pass_key(self, images: Images, indices: Sequence[int]) -> dict[str, object]:
        """What a pass over images, which need not be exact, depends on, after a look at whether it can be trusted."""
        self.check_forward(images.dataset, stop=False)
        return self._cache_key(images.dataset.fingerprint) | {
            "dtype": str(self.fast_dtype),
            "of": hashlib.sha256(json.dumps(list(indices)).encode()).hexdigest(),
        }
