"""BatchNorm statistics, re-estimated after a projection has changed the activations that they describe.

One forward pass without labels. Where a projection leaves the running statistics as they were, it gives away about two
points of accuracy that this brings back.

The rule: a layer's mean and variance are the average of those of all its uses, each of which counts by the number of
images of its batch. Where all batches are of one size, that is PyTorch's own cumulative average (`momentum=None`): a
layer that is used twice in a forward pass counts both uses alike, and one that is first reached in a later batch begins
there. Only what goes through a layer's `forward` is counted. Layers that nothing goes through keep their statistics:
those that no image reaches, and those whose tensors are handed to `torch.nn.functional.batch_norm` by somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701 - the one name for all of them

from sapcli.activations.scoring import Classifier
from sapcli.activations.shared.shares import SharedStage
from sapcli.datasets.images import Images
from sapcli.datasets.smaller_batches import smaller_batch
from sapcli.machine.out_of_memory import is_out_of_memory
from sapcli.machine.parallel.packing import whole_batches
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import Progress

BATCHNORM_IMAGES = 2000
"""So many images are enough for the statistics of every layer: on noisy CIFAR-10, 5,000 give the same accuracy."""
FEW_BATCHNORM_IMAGES = 256
"""So many are enough to compare values of alpha: each loses about a quarter of a point."""
BATCHNORM_BATCH = 128
"""Images at a time. The result depends on it, so it is not the user's choice of what fits into memory."""


def batchnorm_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that keep running statistics, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and layer.running_mean is not None
    }


def may_reestimate(classifier: Classifier) -> bool:
    """Whether there are statistics, and the checkpoint has a place for all of them."""
    names = batchnorm_layers(classifier.module)
    statistics = {f"{name}.{statistic}".lstrip(".") for name in names for statistic in ("running_mean", "running_var")}
    loaded = classifier.loaded
    return bool(names) and statistics <= loaded.entry_names.keys() and statistics.isdisjoint(loaded.kept)


@dataclass(frozen=True)
class Reestimation:
    """What became of BatchNorm statistics.

    Attributes:
        batch_size: How many images at a time fitted into memory.
        kept: The names of the layers that nothing went through, whose statistics are as they were.
    """

    batch_size: int
    kept: tuple[str, ...] = ()


def reestimate(
    classifier: Classifier,
    images: Images,
    indices: Sequence[int],
    progress: Progress,
    stage: str,
    batch_size: int = BATCHNORM_BATCH,
    skip: Collection[str] = (),
    ranks: Ranks | None = None,
) -> Reestimation:
    """Replace every BatchNorm layer's running mean and variance by those of the images at `indices`.

    The rest of the network stays in eval mode; `num_batches_tracked` and every layer's momentum stay as they were.

    Args:
        classifier: Changed in place.
        images: The images, whose labels are not looked at.
        indices: Which of them.
        progress: Told of the images done.
        stage: The stage's name.
        batch_size: Images at a time. Where memory does not suffice, all begins again with half of it.
        skip: The names of layers whose statistics stay as they are.
        ranks: The processes that share the batches.
    """
    ranks = ranks or Ranks()
    layers = {name: layer for name, layer in batchnorm_layers(classifier.module).items() if name not in skip}
    while layers:
        as_built = classifier.as_built
        try:
            counted = _average(classifier, layers.values(), images, indices, progress, stage, batch_size, ranks)
        except (MemoryError, RuntimeError) as error:
            batch_size = smaller_batch(batch_size, error, progress)
            continue
        # A batch that ran again, as the network was built, has been counted twice by the layers that it had reached.
        if not any(ranks.together(lambda built=as_built: classifier.as_built != built)):  # type: ignore[misc]
            return Reestimation(batch_size, tuple(name for name, layer in layers.items() if layer not in counted))
    return Reestimation(batch_size)


def _average(
    classifier: Classifier,
    layers: Iterable[_BatchNorm],
    images: Images,
    indices: Sequence[int],
    progress: Progress,
    stage: str,
    batch_size: int,
    ranks: Ranks,
) -> Mapping[_BatchNorm, int]:
    """Average the statistics of all uses, and return how many images each layer that was used has counted.

    Processes have every so many batches of those that a single one would make: a batch is normalised by itself.
    """
    if ranks.world == 1:
        return _average_of_own(classifier, layers, images, indices, progress, stage, batch_size)
    own = [indices[position] for position in whole_batches(len(indices), batch_size, ranks.rank, ranks.world)]

    layers = list(layers)
    counts: dict[_BatchNorm, int] = {}

    def mine() -> bool:
        try:
            counts.update(_average_of_own(classifier, layers, images, own, shared, stage, batch_size))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    with progress.stage(stage, len(indices)) as advance:
        shared = SharedStage(progress, ranks.world, advance, len(indices))
        fitted = all(ranks.together(mine))
        advance(shared.left)
    if not fitted:
        # All take smaller batches, since what a batch gives depends on its size.
        raise MemoryError
    return _summed(layers, counts, ranks)


def _summed(layers: Sequence[_BatchNorm], counts: Mapping[_BatchNorm, int], ranks: Ranks) -> Mapping[_BatchNorm, int]:
    """Put the average of all processes' statistics into the layers, each by the images that it has counted."""
    total: dict[_BatchNorm, int] = {}
    # One tensor for all layers: each is a few numbers a channel.
    parts = []
    for layer in layers:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        count = counts.get(layer, 0)
        both = torch.cat([layer.running_mean, layer.running_var]).cpu().double()
        # The statistics of a layer that nothing went through here may be anything, NaN too.
        parts += [both.new_tensor([count]), both * count if count else torch.zeros_like(both)]
    sums = torch.cat(parts)
    ranks.sum(sums, "BatchNorm")
    begin = 0
    for layer in layers:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        channels = len(layer.running_mean)
        count = int(sums[begin])
        if count:
            mean, variance = torch.split(sums[begin + 1 : begin + 1 + 2 * channels] / count, channels)
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
            total[layer] = count
        begin += 1 + 2 * channels
    return total


def _average_of_own(
    classifier: Classifier,
    layers: Iterable[_BatchNorm],
    images: Images,
    indices: Sequence[int],
    progress: Progress,
    stage: str,
    batch_size: int,
) -> Mapping[_BatchNorm, int]:
    """As `_average`, of the images that this process runs."""
    counts: dict[_BatchNorm, int] = {}
    with progress.stage(stage, len(indices)) as advance, ExitStack() as stack, torch.no_grad():
        uses = [stack.enter_context(_counted(layer, counts)) for layer in layers]
        waiting: Tensor | None = None
        for batch in images.batches(indices, batch_size):
            decoded = batch.images if waiting is None else torch.cat([waiting, batch.images])
            # The variance of a single value does not exist: an image alone goes with the next batch, or is left out.
            waiting = decoded if len(decoded) < 2 else None
            if waiting is None:
                for use in uses:
                    use.images = len(decoded)
                with classifier.running():
                    classifier.forward(classifier.inputs(decoded), exact=False)
            advance(len(batch.indices))
    return counts


class _Use:
    """A layer's `forward` that counts each of its calls, by the images of the batch.

    The layer is in training mode, and its momentum that of a cumulative average, only as long as a call lasts: whoever
    looks at them from outside finds them as they were.

    Args:
        layer: The layer.
        counts: How many images each layer has counted so far.
    """

    def __init__(self, layer: _BatchNorm, counts: dict[_BatchNorm, int]) -> None:
        self._layer = layer
        self._forward: Callable[..., Any] = layer.forward
        self._counts = counts
        self.images = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        layer = self._layer
        # Called by name, the input has other names in layers that derive from PyTorch's.
        features: Tensor = next(iter((*arguments, *named.values())))
        values_per_channel = features.numel() // max(features.shape[1], 1) if features.dim() > 1 else 0
        if values_per_channel < 2:
            # They have no variance, and the layer would refuse them.
            return self._forward(*arguments, **named)
        if layer not in self._counts:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            # A NaN times the 0 that it then counts would stay one.
            layer.running_mean.zero_()
            layer.running_var.fill_(1)
        self._counts[layer] = self._counts.get(layer, 0) + self.images
        before = layer.training, layer.momentum
        layer.training, layer.momentum = True, self.images / self._counts[layer]
        try:
            return self._forward(*arguments, **named)
        finally:
            layer.training, layer.momentum = before


@contextmanager
def _counted(layer: _BatchNorm, counts: dict[_BatchNorm, int]) -> Iterator[_Use]:
    """Count a layer's uses; afterwards the layer is as it was but for its running mean and variance."""
    use = _Use(layer, counts)
    own_forward = vars(layer).get("forward")
    batches = layer.num_batches_tracked
    try:
        # Not left out in the meantime: SyncBatchNorm, for one, counts without asking.
        layer.num_batches_tracked = None if batches is None else batches.clone()
        vars(layer)["forward"] = use
        yield use
    finally:
        layer.num_batches_tracked = batches
        if own_forward is None:
            vars(layer).pop("forward", None)
        else:
            vars(layer)["forward"] = own_forward
