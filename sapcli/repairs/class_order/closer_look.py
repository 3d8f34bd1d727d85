"""A closer look at classes whose answers leave the order in doubt: the logits of some of their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sapcli.repairs.class_order.likely import LikelyOrder, order_of
from sapcli.repairs.class_order.margins import chance_by_margins, doubtful_classes, exchanged_by_margins

_Numbers = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]

Look = Callable[[Sequence[int], Sequence[int]], tuple[_Numbers, _Floats]]
"""The labels, `[n]`, and the logits, `[n, k]`, of the images at some positions in the dataset, for `k` outputs."""

# So many images are looked at, or this part of all; of a class that is in doubt, at least so many.
_IMAGES, _PART, _OF_A_CLASS = 2000, 20, 2
# No logit counts as more than so many times the usual one.
_CLIPPED = 100.0
# An order that explains less of the answers is not believed for its margins: networks that know next to nothing of the
# images, and of which all margins are small, have some of them the wrong way round.
_EXPLAINED = 0.3


@dataclass(frozen=True)
class CloserLook:
    """What the logits of some images tell.

    Attributes:
        classes: The classes that were looked at, by their position in the order taken, ascending.
        labels: The class of each image, as a position in `classes`, int64 `[n]`.
        logits: Of each image for these classes, finite, float64 `[n, k]`.
    """

    classes: _Numbers
    labels: _Numbers
    logits: _Floats

    def chance(self, found: LikelyOrder) -> float:
        """The logarithm to base 2 of the chance of such logits where the network knows nothing of the classes moved.

        Minus infinity where some of these classes were not looked at.
        """
        outputs = np.searchsorted(self.classes, np.asarray(found.outputs)[self.classes]).clip(max=len(self.classes) - 1)
        moved = np.flatnonzero(np.isin(self.classes, found.moved))
        known = (self.classes[outputs] == np.asarray(found.outputs)[self.classes])[moved]
        if len(moved) < len(found.moved) or not known.all():
            return -np.inf
        return chance_by_margins(self.labels, self.logits, moved, outputs)

    def order(self, labels: _Numbers, predictions: _Numbers, names: Sequence[str], chance: float) -> LikelyOrder | None:
        """The order that the logits speak for; None where that is the one taken, or where they tell nothing.

        Args:
            labels: The position of each image's class in the order taken, of all images, int64 `[n]`.
            predictions: The output that the network answers it with, int64 `[n]`.
            names: The classes in the order taken.
            chance: How likely another order may be found where the one taken is right.
        """
        exchanged = exchanged_by_margins(self.labels, self.logits, len(names), chance)
        if exchanged is None:
            return None
        outputs = np.arange(len(names))
        outputs[self.classes] = self.classes[exchanged]
        found = order_of(labels, predictions, names, outputs)
        return found if found.share >= _EXPLAINED else None


def look_closer(
    labels: _Numbers, predictions: _Numbers, classes: int, indices: _Numbers, look: Look
) -> CloserLook | None:
    """The logits of images of the classes that are in doubt, evenly spread over their images; None without any.

    Args:
        labels: The position of each image's class in the order taken, int64 `[n]`.
        predictions: The output that the network answers it with, int64 `[n]`.
        classes: How many classes there are.
        indices: The position of each image in the dataset, int64 `[n]`.
        look: Runs the network on images.
    """
    counts = np.bincount(labels, minlength=classes)
    doubtful = doubtful_classes(labels, predictions, classes)
    doubtful = doubtful[counts[doubtful] >= _OF_A_CLASS]
    images = max(_IMAGES, len(labels) // _PART)
    if not 2 <= len(doubtful) <= images // _OF_A_CLASS:
        return None
    each = images // len(doubtful)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    chosen = [
        by_class[label][np.linspace(0, counts[label] - 1, min(each, counts[label])).astype(int)] for label in doubtful
    ]
    given, logits = look(sorted(indices[np.concatenate(chosen)].tolist()), doubtful.tolist())
    return CloserLook(doubtful, np.searchsorted(doubtful, given), _within_bounds(logits))


def _within_bounds(logits: _Floats) -> _Floats:
    """Logits by how much they lie above the mean of their image, which none takes beyond all others."""
    finite = np.isfinite(logits)
    # A class that is ruled out is the least likely one.
    logits = np.where(finite, logits, logits.min(where=finite, initial=0.0))
    logits = logits - logits.mean(axis=1, keepdims=True)
    most = _CLIPPED * float(np.median(np.abs(logits)))
    return np.clip(logits, -most, most) if most else logits
