"""The classifier as a function from images to outcomes, a sample at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sapcli.datasets.images import Batch, Images
from sapcli.datasets.smaller_batches import in_portions
from sapcli.errors import ArchitectureError, NumericsError, SapError
from sapcli.machine.device import float64_device
from sapcli.machine.out_of_memory import is_out_of_memory
from sapcli.machine.progress import Progress
from sapcli.machine.signals import INTERRUPTIONS
from sapcli.machine.text import in_one_line
from sapcli.networks.architecture import Architecture, LoadedModel
from sapcli.networks.own.outputs import described, way_out
from sapcli.networks.preprocessing import Preprocessing

# Where convolutions are faster on images whose channels lie together.
_FAST_CHANNELS_LAST = ("cpu", "cuda")
# A GPU is asked what it made of a batch when it has the next one: meanwhile, that is decoded and laid out.
_LAUNCHED_AHEAD = 1
# Between keeping what was done and keeping it again, at first and in the end.
_SECONDS_BETWEEN_PARTS = 2.0, 60.0
# After so many seconds it can be told how long all will take, which people want to know from two minutes on.
_SECONDS_TO_TELL, _WORTH_TELLING = 5.0, 120.0
ONE_LOGIT = (
    "one output for two classes, as for a sigmoid, is not supported: give a factory (--arch) whose module returns"
    " torch.cat([torch.zeros_like(z), z], dim=1) of that output z, [n, 1]"
)


@dataclass
class Classifier:
    """A loaded network with what is needed to feed it.

    Attributes:
        loaded: The module with the checkpoint's weights, on `device`, in eval mode.
        architecture: What the module is.
        device: Where it runs.
        fast_dtype: What passes that need not be exact are converted to; `None` leaves them in float32.
        as_built: Whether the network runs only as it was built, neither converted nor on images whose channels lie
            together; found out when it is run.
        copies_inputs: Whether the network is given copies of its images, since it writes into them.
        view: What `score` does to uint8 images `[n, C, H, W]` of these indices before the network sees them; as they
            are where `None`.
    """

    loaded: LoadedModel
    architecture: Architecture
    device: torch.device
    fast_dtype: torch.dtype | None = None
    as_built: bool = False
    copies_inputs: bool = False
    view: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self.loaded.module

    def ensure_eval(self) -> None:
        """Put the network into eval mode unless it is, once: its code may merge weights at that moment."""
        if self.module.training:
            self.module.eval()

    def inputs(self, images: Tensor) -> Tensor:
        """Normalised float32 images on the device, from decoded uint8 `[n, C, H, W]`, in the fastest layout.

        Images that are no uint8 are normalised already. Their channels lie together unless the network does not take
        that.
        """
        if self.device.type == "cuda":
            # Memory that stays in its place is copied while the GPU computes; with no other is that safe.
            images = images.pin_memory().to(self.device, non_blocking=True)
        else:
            images = images.to(self.device)
        if self.device.type in _FAST_CHANNELS_LAST and not self.as_built:
            images = images.contiguous(memory_format=torch.channels_last)
        if images.dtype != torch.uint8:
            # A copy, as of the others: a network may write into its images.
            return images.to(torch.float32, copy=True)
        return normalise(images, self.architecture.preprocessing)

    def logits(self, images: Tensor, *, exact: bool = True) -> Tensor:
        """The network's output, float32 `[n, classes]`, for decoded uint8 images `[n, C, H, W]`."""
        with self.loaded.without_gradients(), self.running():
            return self.check_output(self.forward(self.inputs(images), exact=exact), len(images))

    def forward(self, inputs: Tensor, *, exact: bool = True) -> object:
        """What the network makes of normalised images, in float32 or, where it need not be exact, in `fast_dtype`."""
        if self.as_built:
            return self.module(self._own(inputs.contiguous()))
        dtype = None if exact else self.fast_dtype
        try:
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                return self.module(self._own(inputs))
        except Exception as error:  # not every network takes that, and each fails in its own way
            if is_out_of_memory(error):
                raise
            output = self.module(self._own(inputs.contiguous()))
            self.as_built = True
            return output

    def _own(self, inputs: Tensor) -> Tensor:
        """The images as they are handed to the network."""
        return inputs.clone() if self.copies_inputs else inputs

    def try_layout(self) -> None:
        """Find out whether the network takes images as `inputs` gives them, before a pass that begins only once.

        Raises:
            ArchitectureError: It takes no images of the preprocessing's size at all.
        """
        blank = torch.zeros(2, *self.architecture.preprocessing.input_size, dtype=torch.uint8)
        with self.loaded.without_gradients(), self.running():
            self.forward(self.inputs(blank))

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the network runs, what it raises is an error about it.

        Raises:
            ArchitectureError: It does not take such images.
        """
        try:
            with self.loaded.running():
                yield
        except (SapError, *INTERRUPTIONS):
            raise
        except BaseException as error:  # nobody can foresee what a network raises
            if is_out_of_memory(error):
                raise
            size = "x".join(map(str, self.architecture.preprocessing.input_size))
            raise ArchitectureError(
                f"{self.architecture.name} cannot run on images of {size}: {in_one_line(error)}",
                "give the size that it was trained with (--input-size); --debug shows the traceback",
            ) from error

    def check_output(self, output: object, count: int) -> Tensor:
        """`output` as the logits of `count` images.

        Raises:
            ArchitectureError: It is not one row of logits an image.
        """
        classes = self.architecture.num_classes
        if not isinstance(output, Tensor) or output.shape != (count, classes):
            hint = way_out(output, classes)
            if isinstance(output, Tensor) and output.numel() == count and classes == 2:
                hint = ONE_LOGIT
            found = f"{described(output)} for {count} images"
            raise ArchitectureError(
                f"{self.architecture.name} returns {found}, expected logits [{count}, {classes}]", hint
            )
        return output.float()


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """`(x / 255 - mean) / std` of uint8 images `[n, C, H, W]`, as float32, in the very steps of the usual loaders.

    Deep networks can make a hundred times as much of a difference in the last bit.
    """
    mean, std = (
        torch.tensor(values, device=images.device).reshape(1, -1, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return images.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)


@dataclass(frozen=True)
class Outcomes:
    """What a classifier made of each readable sample, one row a sample.

    Attributes:
        indices: Positions in the dataset, int64 `[n]`, ascending.
        labels: The given labels, int64 `[n]`.
        losses: Cross-entropy with the given labels in nats, computed in float64, `[n]`; see `cross_entropies`.
        predictions: The most probable class, of equally probable ones the first, int64 `[n]`.
        confidences: Its probability, float32 `[n]`.
        ranks: How many classes are more probable than the given label, int64 `[n]`.
        ties: How many classes are exactly as probable as the given label, itself among them, int64 `[n]`.
    """

    indices: Tensor
    labels: Tensor
    losses: Tensor
    predictions: Tensor
    confidences: Tensor
    ranks: Tensor
    ties: Tensor

    @property
    def correct(self) -> Tensor:
        """Whether the prediction is the given label, bool `[n]`."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> float:
        """The share of the samples whose prediction is the given label, in [0, 1]; NaN without any."""
        return float(self.correct.double().mean())

    def __len__(self) -> int:
        return len(self.indices)


def score(
    classifier: Classifier,
    images: Images,
    progress: Progress,
    stage: str,
    indices: Sequence[int] | None = None,
    *,
    exact: bool = True,
    keep: Callable[[int, Outcomes], None] | None = None,
) -> Outcomes:
    """Run the classifier in eval mode over the samples at `indices`, all by default.

    Args:
        classifier: The network.
        images: The dataset's images.
        progress: Told of the images done.
        stage: The stage's name.
        indices: Which images.
        exact: Whether in float32, and not in what the device is fastest at.
        keep: Called every minute or so, at first sooner, with how many of the images are done and the outcomes since.

    Raises:
        NumericsError: The network's output holds a NaN or positive infinity.
    """
    columns: list[tuple[Tensor, ...]] = []
    launched: deque[tuple[Tensor, ...]] = deque()
    classifier.ensure_eval()
    total = len(images.dataset.paths) if indices is None else len(indices)
    clock = _Clock(total)
    kept = 0
    with progress.stage(stage, total) as advance:
        for batch in images.batches(indices):
            launched.extend(in_portions(partial(_launch, classifier, exact), batch, images, progress))
            while len(launched) > _LAUNCHED_AHEAD:
                columns.append(collected(launched.popleft()))
            advance(len(batch.indices))
            if expected := clock.expected(batch.end):
                progress.note(f"{stage}: {total:,} images take about {expected}")
            if keep is not None and clock.is_time_to_keep():
                columns += map(collected, launched)
                launched.clear()
                keep(batch.end, outcomes_of(columns[kept:]))
                kept = len(columns)
        columns += map(collected, launched)
    return outcomes_of(columns)


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several parts, one after the other."""
    return outcomes_of([tuple(vars(part).values()) for part in parts])


def outcomes_of(columns: Sequence[tuple[Tensor, ...]]) -> Outcomes:
    """The outcomes whose columns these are, batch by batch."""
    if not columns:
        empty = torch.zeros(0, dtype=torch.int64)
        return Outcomes(empty, empty, empty.double(), empty, empty.float(), empty, empty)
    return Outcomes(*(torch.cat(column) for column in zip(*columns, strict=True)))


class _Clock:
    """When it is time to keep what was done, and what the rest will take.

    Args:
        total: How many images there are.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._began = self._last = time.monotonic()
        self._between = _SECONDS_BETWEEN_PARTS[0]
        self._told = False

    def is_time_to_keep(self) -> bool:
        """Whether so much was done since the last time that losing it would be a pity."""
        now = time.monotonic()
        if now - self._last < self._between:
            return False
        self._last = now
        self._between = min(2 * self._between, _SECONDS_BETWEEN_PARTS[1])
        return True

    def expected(self, done: int) -> str:
        """How long all will take, in words: once it can be told, and only where it is worth telling."""
        seconds = time.monotonic() - self._began
        if self._told or seconds < _SECONDS_TO_TELL or not done:
            return ""
        self._told = True
        return in_words(seconds * self._total / done)


def in_words(seconds: float) -> str:
    """How long something takes, in words; empty where that is not worth telling."""
    if seconds < _WORTH_TELLING:
        return ""
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * 60 * 60 else f"{seconds / 3600:.1f} hours"


def logits_of(
    classifier: Classifier, images: Images, progress: Progress, stage: str, indices: Sequence[int], outputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the classifier in eval mode over the samples at `indices`, need not be exactly.

    Args:
        classifier: The network.
        images: The dataset's images.
        progress: Told of the images done.
        stage: The stage's name.
        indices: Which images.
        outputs: Which of the network's outputs are wanted, int64 `[k]`.

    Returns:
        The given labels, int64 `[n]`, and float64 logits `[n, k]`, of the readable samples.
    """

    def run(batch: Batch) -> tuple[Tensor, Tensor]:
        logits = classifier.logits(batch.images, exact=False)
        return batch.labels, logits[:, outputs.to(logits.device)].cpu().double()

    parts = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, len(outputs), dtype=torch.float64))]
    classifier.ensure_eval()
    with progress.stage(stage, len(indices)) as advance:
        for batch in images.batches(indices):
            parts += in_portions(run, batch, images, progress)
            advance(len(batch.indices))
    labels, logits = zip(*parts, strict=True)
    return torch.cat(labels), torch.cat(logits)


def _launch(classifier: Classifier, exact: bool, batch: Batch) -> tuple[Tensor, ...]:
    """The outcome columns of one batch, which a GPU may still be computing."""
    images = batch.images if classifier.view is None else classifier.view(batch.images, batch.indices)
    return outcome_columns(batch, classifier.logits(images, exact=exact))


def outcome_columns(batch: Batch, logits: Tensor) -> tuple[Tensor, ...]:
    """The columns of `Outcomes` of a batch with these logits `[n, classes]`, and whether those are none: `collected`.

    They lie where the logits do, and may be still to be computed.
    """
    labels = batch.labels.to(logits.device)
    confidences = logits.softmax(dim=1).amax(dim=1)
    of_label = logits.gather(1, labels.unsqueeze(1))
    ranks, ties = (logits > of_label).sum(dim=1), (logits == of_label).sum(dim=1)
    undefined = ~(logits < torch.inf).all(dim=1)
    wide = logits.to(float64_device(logits.device), torch.float64)
    losses = cross_entropies(wide, labels.to(wide.device))
    return batch.indices, batch.labels, losses, logits.argmax(dim=1), confidences, ranks, ties, undefined


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each row in nats, `[n]`, in the precision of `logits`.

    As `log(1 + exp(d))`, where `d` is by how much the log of the others' summed exponentials lies above the label's
    logit: so neither it nor its gradient rounds to 0 for a model that is sure of the label, and sure samples can be
    told apart.

    Args:
        logits: `[n, classes]`.
        labels: Classes, int64 `[n]`.
    """
    label = labels.unsqueeze(1)
    of_label = logits.gather(1, label).squeeze(1)
    if logits.shape[1] == 1:
        return of_label * 0
    distance = logits.scatter(1, label, -torch.inf).logsumexp(dim=1) - of_label
    return torch.logaddexp(torch.zeros_like(distance), distance)


def collected(launched: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The columns of `Outcomes` for one batch, on the CPU, of what `outcome_columns` returned.

    Raises:
        NumericsError: The logits hold a NaN or positive infinity.
    """
    *columns, undefined = (column.cpu() for column in launched)
    if bool(undefined.any()):
        raise NumericsError(
            f"the network's output is NaN or infinite for image number {int(columns[0][undefined][0])}",
            "look at the checkpoint's weights and the preprocessing (--mean, --std)",
        )
    return tuple(columns)
