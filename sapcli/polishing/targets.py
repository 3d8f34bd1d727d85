"""What the network is to answer: labels as they are given, or blended with a model's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sapcli.activations.scoring import Classifier
from sapcli.activations.shared.shares import in_shares
from sapcli.datasets.images import Batch, Images
from sapcli.datasets.smaller_batches import in_portions
from sapcli.machine.parallel.ranks import ALONE, Ranks
from sapcli.machine.progress import Progress

_STAGE = "blending labels with the model's answers"
# So many classes of an image have a weight that counts, once the probabilities are sharpened.
_KEPT = 32


@dataclass(frozen=True)
class Targets:
    """Distributions over the classes, one a sample, without those that hardly count.

    Attributes:
        classes: The classes that count, int64 `[samples, k]`.
        weights: Their probabilities, float32 `[samples, k]`; each row sums to 1, or to 0 for an image without a target.
        num_classes: How many classes there are.
    """

    classes: Tensor
    weights: Tensor
    num_classes: int

    def rows(self, indices: Tensor) -> Tensor:
        """The distributions of some samples, float32 `[n, num_classes]`."""
        weights = self.weights[indices]
        empty = torch.zeros(len(indices), self.num_classes, device=weights.device)
        return empty.scatter_(1, self.classes[indices], weights)

    def to(self, device: torch.device) -> Targets:
        """The same on a device."""
        return Targets(self.classes.to(device), self.weights.to(device), self.num_classes)


def blended(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Labels blended with a model's own probabilities: `t = w e_y + (1 - w) p^2 / sum p^2`, with `w = p_y / max p`.

    A label that the model finds as probable as any counts fully; one that it contradicts gives way to its own answer.

    Args:
        probabilities: `p`, `[n, classes]`.
        labels: The given ones `y`, int64 `[n]`.
    """
    given = labels.unsqueeze(1)
    weight = probabilities.gather(1, given) / probabilities.amax(dim=1, keepdim=True)
    squares = probabilities.square()
    return (squares / squares.sum(dim=1, keepdim=True) * (1 - weight)).scatter_add(1, given, weight)


def as_given(labels: Sequence[int], num_classes: int) -> Targets:
    """The labels as they are."""
    classes = torch.tensor(labels, dtype=torch.int64).unsqueeze(1)
    return Targets(classes, torch.ones(classes.shape), num_classes)


def blend_with_answers(classifier: Classifier, images: Images, progress: Progress, ranks: Ranks = ALONE) -> Targets:
    """Labels blended with what the network makes of the images, which need not be exact; see `blended`.

    Args:
        classifier: The network, in eval mode.
        images: The training images; those that cannot be read have no target.
        progress: Told of the images done.
        ranks: The processes that share the images.
    """
    count, num_classes = len(images.dataset.paths), classifier.architecture.num_classes
    kept = min(num_classes, _KEPT)
    classes, weights = torch.zeros(count, kept, dtype=torch.int64), torch.zeros(count, kept)

    def blend(listener: Progress, indices: Sequence[int]) -> tuple[Sequence[int], Tensor, Tensor]:
        with listener.stage(_STAGE, len(indices)) as advance:
            for batch in images.batches(indices):
                for done, found in in_portions(partial(_blended_batch, classifier, kept), batch, images, listener):
                    weights[done], classes[done] = found.values.cpu(), found.indices.cpu()
                advance(len(batch.indices))
        return indices, weights[list(indices)], classes[list(indices)]

    if ranks.world == 1:
        blend(progress, range(count))
    else:
        for indices, of_weights, of_classes in in_shares(ranks, images, progress, _STAGE, range(count), blend):
            weights[list(indices)], classes[list(indices)] = of_weights, of_classes
    return Targets(classes, weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12), num_classes)


def _blended_batch(classifier: Classifier, kept: int, batch: Batch) -> tuple[Tensor, torch.return_types.topk]:
    probabilities = classifier.logits(batch.images, exact=False).softmax(dim=1)
    labels = batch.labels.to(probabilities.device)
    return batch.indices, blended(probabilities, labels).topk(kept, dim=1)
