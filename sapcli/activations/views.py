"""What a classifier makes of images in full: beside the outcomes, all logits and the features that they are made of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sapcli.activations.scoring import Classifier, Outcomes, collected, outcome_columns, outcomes_of
from sapcli.datasets.images import Batch, Images
from sapcli.datasets.smaller_batches import in_portions
from sapcli.machine.progress import Progress

# More numbers of one kind are not kept: 400 MB of float32 logits, 400 MB of float16 features.
_MOST_LOGITS, _MOST_FEATURES = 100_000_000, 200_000_000
_SMALL = 16


@dataclass(frozen=True)
class Views:
    """What a classifier made of each readable sample, one row a sample.

    Attributes:
        outcomes: Loss, prediction and rank of the label.
        logits: Float32 `[n, classes]`; empty, `[0, 0]`, where they would be too many.
        features: The inputs of the last layer, float16 `[n, d]`, of unit length; the centred logits where no last
            layer is found; empty, `[0, 0]`, where they would be too many.
        pixels: The images themselves, grey and 16 pixels wide and high, uint8 `[n, 256]`.
    """

    outcomes: Outcomes
    logits: Tensor
    features: Tensor
    pixels: Tensor

    @property
    def has_logits(self) -> bool:
        """Whether the logits were kept."""
        return bool(self.logits.numel())

    @property
    def has_features(self) -> bool:
        """Whether the features were kept."""
        return bool(self.features.numel())


def view(
    classifier: Classifier, images: Images, progress: Progress, stage: str, indices: Sequence[int] | None = None
) -> Views:
    """Run the classifier in eval mode over the samples at `indices`, all by default.

    Args:
        classifier: The network; it runs in what the device is fastest at.
        images: The dataset's images.
        progress: Told of the images done.
        stage: The stage's name.
        indices: Which images; what is kept depends on how many there are in all.

    Raises:
        NumericsError: The network's output holds a NaN or positive infinity.
    """
    count = len(images.dataset.paths)
    columns: list[tuple[Tensor, ...]] = []
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    classifier.ensure_eval()
    watched = _features_of(classifier.module, classifier.architecture.num_classes)
    with watched as seen, progress.stage(stage, count if indices is None else len(indices)) as advance:
        run = partial(_run, classifier, seen)
        for batch in images.batches(indices):
            for found, logits, features, pixels in in_portions(run, batch, images, progress):
                columns.append(collected(found))
                wide = features.shape[1] * count > _MOST_FEATURES
                many = logits.shape[1] * count > _MOST_LOGITS
                kept.append((logits[:0] if many else logits, features[:0] if wide else features, pixels))
            advance(len(batch.indices))
    if not kept:
        kept.append((torch.zeros(0, 0), torch.zeros(0, 0), torch.zeros(0, _SMALL**2, dtype=torch.uint8)))
    logits, features, pixels = (torch.cat(column) for column in zip(*kept, strict=True))
    nothing = torch.zeros(0, 0)
    return Views(
        outcomes_of(columns),
        logits if len(logits) else nothing,
        features if len(features) else nothing.half(),
        pixels,
    )


def _run(classifier: Classifier, seen: list[Tensor], batch: Batch) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """Of one batch the columns of `Outcomes`, the logits, the features and the small pictures."""
    seen.clear()
    logits = classifier.logits(batch.images, exact=False)
    features = pooled(seen[-1]) if seen and len(seen[-1]) == len(logits) else logits - logits.mean(dim=1, keepdim=True)
    unit = nn.functional.normalize(features.float(), dim=1)
    small = nn.functional.adaptive_avg_pool2d(batch.images.float().mean(dim=1), _SMALL).flatten(1)
    return outcome_columns(batch, logits), logits.cpu(), unit.half().cpu(), small.to(torch.uint8)


def pooled(features: Tensor) -> Tensor:
    """One vector an image, `[n, d]`, of what a last layer takes: `[n, d]`, maps `[n, d, h, w]`, tokens `[n, t, d]`."""
    if features.dim() == 4:
        return features.mean(dim=(2, 3))
    return features.flatten(1, -2).mean(dim=1) if features.dim() > 2 else features


@contextlib.contextmanager
def _features_of(module: nn.Module, classes: int) -> Iterator[list[Tensor]]:
    """The inputs, in their order, of the layers that have as many outputs as there are classes, while it is entered."""
    seen: list[Tensor] = []

    def note(_layer: nn.Module, inputs: tuple[object, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() >= 2:
            seen.append(inputs[0])

    layers = [
        layer
        for layer in module.modules()
        if classes in (getattr(layer, "out_features", None), getattr(layer, "out_channels", None))
    ]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
