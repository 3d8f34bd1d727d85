"""BatchNorm statistics, re-estimated after a projection has changed the activations that they describe.

One forward pass without labels. Where a projection leaves the running statistics as they were, it gives away about two
points of accuracy that this brings back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701 - the one name for all of them

from sapcli.activations.scoring import Classifier
from sapcli.datasets.images import Images
from sapcli.datasets.smaller_batches import smaller_batch
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


def reestimate(
    classifier: Classifier,
    images: Images,
    indices: Sequence[int],
    progress: Progress,
    stage: str,
    batch_size: int = BATCHNORM_BATCH,
) -> int:
    """Replace every BatchNorm layer's running mean and variance by those of the images at `indices`.

    Each batch counts by its number of images. The rest of the network stays in eval mode; `num_batches_tracked` and
    every layer's momentum stay as they were. Layers that no image reaches keep their statistics.

    Args:
        classifier: Changed in place.
        images: The images, whose labels are not looked at.
        indices: Which of them.
        progress: Told of the images done.
        stage: The stage's name.
        batch_size: Images at a time. Where memory does not suffice, all begins again with half of it.

    Returns:
        The batch size that fitted into memory.
    """
    layers = list(batchnorm_layers(classifier.module).values())
    while layers:
        try:
            _average(classifier, layers, images, indices, progress, stage, batch_size)
            break
        except (MemoryError, RuntimeError) as error:
            batch_size = smaller_batch(batch_size, error, progress)
    return batch_size


def _average(
    classifier: Classifier,
    layers: Sequence[_BatchNorm],
    images: Images,
    indices: Sequence[int],
    progress: Progress,
    stage: str,
    batch_size: int,
) -> None:
    """The mean of the statistics of all batches. The first one counts alone and so replaces what was there."""
    with progress.stage(stage, len(indices)) as advance, _counting(layers), torch.no_grad():
        seen = 0
        waiting: Tensor | None = None
        for batch in images.batches(indices, batch_size):
            decoded = batch.images if waiting is None else torch.cat([waiting, batch.images])
            # The variance of a single value does not exist: an image alone goes with the next batch, or is left out.
            waiting = decoded if len(decoded) < 2 else None
            if waiting is None:
                seen += len(decoded)
                for layer in layers:
                    layer.momentum = len(decoded) / seen
                with classifier.running():
                    classifier.forward(classifier.inputs(decoded), exact=False)
            advance(len(batch.indices))


@contextmanager
def _counting(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """The layers in training mode, and afterwards as they were but for their running mean and variance."""
    before = [(layer, layer.training, layer.momentum, layer.num_batches_tracked) for layer in layers]
    try:
        for layer in layers:
            layer.training = True
            # Counting batches is left out, in favour of a momentum that counts images.
            layer.num_batches_tracked = None
        yield
    finally:
        for layer, training, momentum, batches in before:
            layer.training, layer.momentum, layer.num_batches_tracked = training, momentum, batches
