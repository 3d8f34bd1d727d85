"""One checkpoint and one data folder, opened: the network and the images, each made when it is first asked for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import torch

from sapcli.activations.plain_comparison import choose_way
from sapcli.activations.scoring import ONE_LOGIT, Classifier, Outcomes
from sapcli.activations.shared.shares import score_in_shares
from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.checkpoints.pytorch_file import FOLDER_ORDER_KEY
from sapcli.datasets.classes import overridden_names
from sapcli.datasets.dataset import Dataset, Role, open_dataset
from sapcli.datasets.file_digests import FileDigests
from sapcli.datasets.images import Images
from sapcli.datasets.live.samples import SampleSource, open_live
from sapcli.errors import ArchitectureError, DatasetError
from sapcli.machine import device
from sapcli.machine.cache import Cache
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import Progress
from sapcli.networks.architecture import Architecture, LoadedModel, load_model, resolve_architecture
from sapcli.networks.description import describes_itself
from sapcli.networks.live_module import LiveModule
from sapcli.networks.preprocessing import Preprocessing, ready_tensors
from sapcli.repairs.class_order.likely import choose_known_order
from sapcli.repairs.class_order.orders import ClassOrder, known_orders
from sapcli.settings import DataSource, ModelSource, PreprocessingOverrides, RunSettings

# So many images of a class, and of all, tell in which order the classes are.
_ASKED_OF_A_CLASS, _ASKED = 50, 2000
# So many images tell whether the order is right; up to `_ASKED`, at least so many of a class.
_SOME, _SOME_OF_A_CLASS = 500, 10


@dataclass(frozen=True)
class LiveSamples:
    """Datasets that were handed over.

    Attributes:
        training: The samples to learn from.
        validation: Those to choose alpha on; `None` without any.
        ready: The shape of their images where they are tensors that are ready for the network; `None` of pictures.
    """

    training: SampleSource
    validation: SampleSource | None = None
    ready: tuple[int, int, int] | None = None


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
        ranks: The processes that share the work.
        like: The architecture of a checkpoint that this one is compared with, for one that does not name a fitting one.
        live: A network that was handed over, of which the checkpoint holds the tensors.
        samples: Datasets that were handed over, instead of the data folder.
    """

    checkpoint: Checkpoint
    source: DataSource
    settings: RunSettings
    progress: Progress
    cache: Cache
    model: ModelSource = field(default_factory=ModelSource)
    like: Architecture | None = None
    live: LiveModule | None = None
    samples: LiveSamples | None = None
    ranks: Ranks = field(default_factory=Ranks)
    _folder_order: tuple[str, ...] | None = field(default=None, init=False, repr=False)

    @cached_property
    def architecture(self) -> Architecture:
        """What the checkpoint's network is."""
        if self.live is not None:
            return self.live.architecture
        if self.samples is not None and self.samples.ready is not None:
            ready = ready_tensors(self.samples.ready)
            return replace(self._architecture_on(_as_given(ready, size_alone=True)), preprocessing=ready)
        if self.like is None:
            return self._own_architecture()
        if describes_itself(self.checkpoint):
            # A config.json in its folder may be about another file.
            with contextlib.suppress(ArchitectureError):
                return _with_classes_of(self.like, self._own_architecture())
        like = self.like
        found = resolve_architecture(self.checkpoint, like.name, like.arguments, _as_given(like.preprocessing))
        found = replace(found, preprocessing=like.preprocessing, source="as the other checkpoint")
        return _with_classes_of(like, found)

    def _own_architecture(self) -> Architecture:
        return self._architecture_on(self.model.overrides)

    def _architecture_on(self, overrides: PreprocessingOverrides) -> Architecture:
        return resolve_architecture(self.checkpoint, self.model.arch, self.model.arguments, overrides)

    @cached_property
    def classifier(self) -> Classifier:
        """The network, filled and on the device."""
        loaded = (
            self.live.loaded
            if self.live is not None
            else load_model(self.checkpoint, self.architecture, self.settings.device)
        )
        for remark in self.checkpoint.remarks:
            self.progress.note(remark)
        for remark in about_other_entries(self.checkpoint, loaded):
            self.progress.note(remark)
        for note in loaded.notes:
            self.progress.warn(note)
        classifier = Classifier(loaded, self.architecture, self.settings.device, self.fast_dtype)
        choose_way(classifier, self.progress)
        return classifier

    @cached_property
    def written(self) -> Checkpoint:
        """The checkpoint as a corrected file holds it: those of its entries, under their names there."""
        return self.checkpoint.narrowed(self.classifier.loaded.written_names)

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
        if self.samples is not None:
            return self._live(self.samples.training, self.label_names, "the dataset")
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
        if self.samples is not None:
            others = self.samples.validation
            return None if others is None else self._live(others, self.training.classes, "the validation dataset")
        dedicated = self.source.validation is not None
        return self._said(
            open_dataset(
                self.source.validation or self.source.folder,
                Role.CHOOSE,
                self.architecture.num_classes,
                label_names=self.training.classes,
                # A label file names the images of DATA.
                labels=None if dedicated else self.source.labels,
                labels_split=None if dedicated else self.source.split,
                class_map=self.source.class_map,
                dedicated=dedicated,
                digests=self._digests,
            )
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
        if self.samples is not None:
            return None
        dataset = self._said(
            open_dataset(
                self.source.folder,
                Role.CONFIRM,
                self.architecture.num_classes,
                label_names=self.training.classes,
                labels=self.source.labels,
                labels_split=self.source.split,
                class_map=self.source.class_map,
                digests=self._digests,
            )
        )
        if dataset is None:
            return None
        used = [(data.root, data.paths) for data in (self.training, self.validation) if data is not None]
        return None if (dataset.root, dataset.paths) in used else dataset

    def _live(self, source: SampleSource, names: tuple[str, ...] | None, called: str) -> Dataset:
        """The samples of a dataset that was handed over."""
        architecture = self.architecture
        opened = open_live(source, architecture.preprocessing, architecture.num_classes, names, self.progress, called)
        self._said(opened)
        return opened

    @cached_property
    def _digests(self) -> FileDigests:
        return FileDigests(self.cache.own, self.progress, self.ranks)

    def _open(self, folder: Path, role: Role, split: str | None) -> Dataset:
        dataset = self._opened(folder, role, split, self.label_names)
        if self.label_names is None and self.source.class_map is None:
            self._folder_order = self._find_folder_order(dataset)
            if self._folder_order not in (None, dataset.classes):
                dataset = self._opened(folder, role, split, self._folder_order)
        names, class_map = self.architecture.label_names, self.source.class_map
        if names and class_map and (overridden := overridden_names(self.architecture.num_classes, names, class_map)):
            self.progress.warn(overridden)
        self._said(dataset)
        return dataset

    def _opened(self, folder: Path, role: Role, split: str | None, label_names: tuple[str, ...] | None) -> Dataset:
        def with_classes(count: int) -> Dataset | None:
            return open_dataset(
                folder,
                role,
                count,
                split=split,
                label_names=label_names,
                labels=self.source.labels,
                class_map=self.source.class_map,
                # Where validation images are named, a label file is not asked for some.
                undivided=role is Role.LEARN and self.source.validation is not None,
                digests=self._digests,
            )

        classes = self.architecture.num_classes
        try:
            dataset = with_classes(classes)
        except DatasetError as error:
            if classes == 1:
                with contextlib.suppress(DatasetError):
                    with_classes(2)
                    raise ArchitectureError(
                        f"{self.architecture.name} has one output, and {folder} has two classes", ONE_LOGIT
                    ) from error
            raise
        if dataset is None:
            raise DatasetError(f"{folder} has no images for this", "name the folder with --split")
        return dataset

    def _said(self, dataset: Dataset | None) -> Dataset | None:
        """A dataset, once what was guessed or left out in opening it is said."""
        if dataset is not None:
            for note in dataset.notes:
                self.progress.note(note)
            for remark in dataset.remarks:
                self.progress.warn(remark)
        return dataset

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The classes in the order of the outputs: as the checkpoint names them, or as the folders were found to be."""
        return self.architecture.label_names or self._folder_order

    @property
    def is_order_found(self) -> bool:
        """Whether tools sort the class folders differently, so that one of their orders had to be chosen."""
        return self._folder_order is not None

    def _find_folder_order(self, dataset: Dataset) -> tuple[str, ...] | None:
        """The classes in the order into which the training's tool sorted them; None where all sort them alike.

        The network's own answers on some images of the classes in question tell it.
        """
        orders = known_orders(dataset.classes)
        if len(orders) < 2 or orders[ClassOrder.ALPHABETICAL] != dataset.classes:
            return None
        by_timm = self.checkpoint.metadata.get(FOLDER_ORDER_KEY) == "timm"
        expected = ClassOrder.TIMM if by_timm and ClassOrder.TIMM in orders else ClassOrder.ALPHABETICAL
        indices = _sample_of_moved(dataset, orders)
        outcomes = self.answers(self.images(dataset), indices)
        found = choose_known_order(outcomes.labels.numpy(), outcomes.predictions.numpy(), orders)
        chosen = found.order or expected
        shares = ", ".join(f"{share:.0%} in {order.short}" for order, share in found.shares.items())
        if found.order is None:
            self.progress.warn(
                f"{dataset.root}: the model's answers do not tell in which order its classes are (of {len(outcomes)},"
                f" {shares} are right): {chosen.value} is taken; --class-map FILE says another"
            )
        else:
            self.progress.note(
                f"classes: {chosen.value}, found from the model's answers (of {len(outcomes)}, {shares} are right)"
            )
        return orders[chosen]

    def answers(self, images: Images, indices: Sequence[int]) -> Outcomes:
        """What the network makes of some images, need not be exactly."""
        return self.score(images, "finding the order of the classes", indices, exact=False)

    def images(self, dataset: Dataset) -> Images:
        """The images of a dataset, as the network takes them."""
        return Images(
            dataset,
            self.architecture.preprocessing,
            batch_size=self.batch_size,
            workers=self.settings.workers,
            strict=self.settings.strict_images,
            shared=self.ranks.world > 1,
        )

    def score(
        self, images: Images, stage: str, indices: Sequence[int] | None = None, *, exact: bool = True
    ) -> Outcomes:
        """Run the classifier over images; see `scoring.score`."""
        every = range(len(images.dataset.paths)) if indices is None else indices
        return score_in_shares(self.ranks, self.classifier, images, self.progress, stage, every, exact=exact)


def about_other_entries(checkpoint: Checkpoint, loaded: LoadedModel) -> list[str]:
    """What is to be said of tensors that are not the network's: which stay in a corrected file, and which do not."""
    written = set(loaded.written_names.values())
    stay = [name for name in loaded.extra_entries if name in written]
    go = [name for name in loaded.extra_entries if name not in written]
    if checkpoint.training is not None and checkpoint.training.is_part:
        go += [name for name in checkpoint.training.beside if name not in checkpoint.entries]
    remarks = []
    for names, what in ((stay, "stay as they are"), (go, "are left out of a corrected file (--keep-extra keeps them)")):
        if names:
            named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            remarks.append(f"{len(names):,} entries are not the network's and {what}: {named}")
    return remarks


def _sample_of_moved(dataset: Dataset, orders: Mapping[ClassOrder, tuple[str, ...]]) -> list[int]:
    """Images of the classes that are another output in one order than in another: evenly spaced ones of each class."""
    ranks = [{name: rank for rank, name in enumerate(names)} for names in orders.values()]
    moved = {label for label, name in enumerate(dataset.classes) if len({rank[name] for rank in ranks}) > 1}
    return _evenly_spaced(dataset, moved, max(min(_ASKED_OF_A_CLASS, _ASKED // len(moved)), 1))


def some_of_each_class(dataset: Dataset) -> list[int]:
    """Images that tell whether the classes are in the right order: evenly spaced ones of each class."""
    classes = set(dataset.labels)
    each = max(_SOME // max(len(classes), 1), _SOME_OF_A_CLASS)
    return _evenly_spaced(dataset, classes, max(min(each, _ASKED // max(len(classes), 1)), 1))


def _evenly_spaced(dataset: Dataset, classes: Collection[int], each: int) -> list[int]:
    members: dict[int, list[int]] = {label: [] for label in classes}
    for index, label in enumerate(dataset.labels):
        if label in members:
            members[label].append(index)
    return sorted(index for found in members.values() for index in found[:: max(len(found) // each, 1)][:each])


def _with_classes_of(like: Architecture, found: Architecture) -> Architecture:
    """An architecture with the classes of another one where it names none: its own order of them is its own."""
    if found.label_names is not None or found.num_classes != like.num_classes:
        return found
    source = f"{like.label_source} of the other checkpoint" if like.label_names else ""
    return replace(found, label_names=like.label_names, label_source=source)


def _as_given(preprocessing: Preprocessing, *, size_alone: bool = False) -> PreprocessingOverrides:
    """A preprocessing as if the user had asked for it; of one that prepares nothing, no filter."""
    if size_alone:
        return PreprocessingOverrides(preprocessing.input_size, preprocessing.mean, preprocessing.std)
    names = (field.name for field in fields(PreprocessingOverrides))
    return PreprocessingOverrides(**{name: getattr(preprocessing, name) for name in names})
