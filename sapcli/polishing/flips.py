"""Whether images may be mirrored: not where that makes another class of them, as of digits and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sapcli.activations.scoring import Classifier
from sapcli.datasets.images import Batch, Images
from sapcli.datasets.smaller_batches import in_portions
from sapcli.machine.progress import Progress
from sapcli.polishing.augmentation import moved

LOOKED_AT = 1000
"""So many images are enough to tell."""
# A network that was trained on mirrored images keeps nearly all its answers; one that was not and sees things from both
# sides keeps most of them; of digits most become something else. One that generalises badly changes many of its answers
# whatever is done to an image: so they are compared with those to images that are shifted a little.
_KEPT_ANSWERS = 0.75
# A class alone may have a side: an arrow among cats and dogs.
_KEPT_OF_A_CLASS = 0.4
_ENOUGH_OF_A_CLASS = 8


@dataclass(frozen=True)
class FlipAnswers:
    """How a network answers when images are mirrored.

    Attributes:
        kept: The share of the images whose answer stays the same, in [0, 1]; NaN without any.
        shifted: The same of images that are shifted.
        worst: The class whose images keep their answers least, compared with shifted ones, of those with enough images;
            `None` without one.
        worst_kept: The share that its images keep.
        worst_shifted: The same of its shifted images.
        images: How many images were looked at.
    """

    kept: float
    shifted: float
    worst: int | None
    worst_kept: float
    worst_shifted: float
    images: int

    @property
    def keep_the_class(self) -> bool:
        """Whether mirrored images may be learned from."""
        return self.kept >= _KEPT_ANSWERS * self.shifted and self.worst_kept >= _KEPT_OF_A_CLASS * self.worst_shifted


def look_at_flips(classifier: Classifier, images: Images, indices: Sequence[int], progress: Progress) -> FlipAnswers:
    """Compare a network's answers to images whose label it gives with those to the same images mirrored, and shifted.

    Args:
        classifier: The network.
        images: The images.
        indices: Which of them; those with believable labels tell best.
        progress: Told of the images done.
    """

    def answers(batch: Batch) -> tuple[torch.Tensor, ...]:
        ways = (batch.images, batch.images.flip(3), moved(batch.images))
        return batch.labels, *(classifier.logits(pixels, exact=False).argmax(dim=1).cpu() for pixels in ways)

    rows: list[tuple[torch.Tensor, ...]] = []
    with progress.stage("looking at mirrored images", len(indices)) as advance:
        for batch in images.batches(indices):
            rows += in_portions(answers, batch, images, progress)
            advance(len(batch.indices))
    labels, plain, mirrored, shifted = (torch.cat(column) for column in zip(*rows, strict=True))
    right = labels == plain
    labels = labels[right]
    kept, beside = ((plain == other)[right].double() for other in (mirrored, shifted))
    shares = {
        label: (float(kept[labels == label].mean()), float(beside[labels == label].mean()))
        for label in set(labels.tolist())
        if int((labels == label).sum()) >= _ENOUGH_OF_A_CLASS
    }
    worst = min(shares, key=lambda label: (shares[label][0] / max(shares[label][1], 0.1), label), default=None)
    of_worst = (1.0, 1.0) if worst is None else shares[worst]
    return FlipAnswers(float(kept.mean()), float(beside.mean()), worst, *of_worst, len(labels))
