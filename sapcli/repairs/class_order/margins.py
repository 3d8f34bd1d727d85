"""Whether classes are exchanged, from the logits of some images: they tell more than which class wins.

Where the outputs of two classes are exchanged, the images of each have the higher logit for the other more often than
the other's images have, whatever third classes win and however fond the network is of one of the two. As many images
say about twice as much by that as by the classes that win alone, and pairs that the network confuses are told apart.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from sapcli.repairs.class_order.assignment import best_assignment
from sapcli.repairs.class_order.likely import cycles_of, exchanges_bits

_Numbers = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]

# An answer may be the right one that is so many times the own one, or so many deviations of chance away from it.
_DOUBTFUL, _DEVIATIONS = 0.8, 2.0
# Of more classes, only answers that occur are looked at.
_ALL_PAIRS = 500
# Beyond so many times the usual margin a single image counts no more.
_CLIPPED = 2.0
# An image tells at most so many times what a label that is drawn by lot does.
_OF_A_LABEL = 2


def doubtful_classes(labels: _Numbers, predictions: _Numbers, classes: int) -> _Numbers:
    """The classes that may be exchanged with others, as far as the network's answers tell, ascending.

    They are answered as another of them nearly as often as, or more often than, with their own output, and so is
    another as they are.

    Args:
        labels: The position of each image's class in the order taken, int64 `[n]`.
        predictions: The output that the network answers it with, int64 `[n]`.
        classes: How many there are.
    """
    if classes <= _ALL_PAIRS:
        rows, columns = np.divmod(np.arange(classes**2), classes)
        counts = np.bincount(labels * classes + predictions, minlength=classes**2)
    else:
        pairs, counts = np.unique(labels * classes + predictions, return_counts=True)
        rows, columns = np.divmod(pairs, classes)
    own = np.zeros(classes, dtype=np.int64)
    own[rows[rows == columns]] = counts[rows == columns]
    answered = np.maximum(np.bincount(predictions, minlength=classes), 1)
    # Either as it stands, or for how often the network gives each of the two answers at all.
    fondness = np.minimum(answered[columns] / answered[rows], 1.0)
    wanted = _DOUBTFUL * fondness * own[rows]
    edges = (rows != columns) & (counts + _DEVIATIONS * np.sqrt(counts + wanted) >= wanted)
    has_images = np.bincount(labels, minlength=classes) > 0
    edges &= has_images[rows] & has_images[columns]
    while True:
        # Of a circle, every class leads to one and is led to.
        leads, is_led_to = np.zeros(classes, dtype=bool), np.zeros(classes, dtype=bool)
        leads[rows[edges]] = is_led_to[columns[edges]] = True
        kept = edges & (leads & is_led_to)[rows] & (leads & is_led_to)[columns]
        if kept.sum() == edges.sum():
            return np.flatnonzero(leads & is_led_to)
        edges = kept


def exchanged_by_margins(labels: _Numbers, logits: _Floats, classes: int, chance: float) -> _Numbers | None:
    """Which output each of some classes is, where their images' logits tell that it is not its own.

    Args:
        labels: The class of each image, as a column of `logits`, int64 `[n]`.
        logits: What the network makes of each image, for these classes alone, `[n, k]`.
        classes: How many classes there are in all.
        chance: How likely other outputs may be found where the order is right.

    Returns:
        The column of each class, a permutation; None where nothing tells of another order.
    """
    outputs = _best_outputs(labels, logits)
    cycles = cycles_of(outputs, np.ones(len(outputs), dtype=np.int64))
    bits = {place: exchanges_bits(classes, len(cycle)) for place, cycle in enumerate(cycles)}
    limit = math.log2(chance)
    clear = [
        place
        for place, cycle in enumerate(cycles)
        if chance_by_margins(labels, logits, cycle, outputs) + bits[place] <= limit
    ]
    rest = [place for place in range(len(cycles)) if place not in clear]
    if len(rest) > 1:
        together = np.concatenate([cycles[place] for place in rest])
        if chance_by_margins(labels, logits, together, outputs) + sum(bits[place] for place in rest) <= limit:
            clear += rest
    if not clear:
        return None
    kept = np.concatenate([cycles[place] for place in clear])
    found = np.arange(len(outputs))
    found[kept] = outputs[kept]
    return found


def chance_by_margins(labels: _Numbers, logits: _Floats, moved: _Numbers, outputs: _Numbers) -> float:
    """The logarithm to base 2 of the chance of margins as large as these where the network knows nothing of the images.

    A margin is by how much the logit of the class's other output lies above that of its own. Student's t of the
    classes' means, with the degrees of freedom of Welch (Biometrika 34, 1947) and the tail of Wallace (Annals of
    Mathematical Statistics 30, 1959). Margins that are all alike are no proof beyond all bounds: an image counts at
    most twice what it tells that its label, drawn by lot, is this one.

    Args:
        labels: The class of each image, as a column of `logits`, int64 `[n]`.
        logits: `[n, k]`.
        moved: The classes that exchange their outputs with one another, two or more.
        outputs: The other output of every class.
    """
    among = np.isin(labels, moved)
    labels, logits = labels[among], logits[among]
    counts = np.bincount(labels, minlength=len(outputs))[moved].astype(float)
    if counts.min() < 2:
        return 0.0
    # What an output is for all of these classes alike tells nothing.
    logits = logits - _means(labels, logits)[moved].mean(axis=0)
    places = np.arange(len(labels))
    margins = logits[places, outputs[labels]] - logits[places, labels]
    most = _CLIPPED * np.median(np.abs(margins))
    margins = np.clip(margins, -most, most)
    means = np.bincount(labels, margins, len(outputs))[moved] / counts
    squares = np.bincount(labels, margins**2, len(outputs))[moved] / counts - means**2
    mean = float(means.mean())
    if mean <= 0:
        return 0.0
    rarest = -_OF_A_LABEL * len(labels) * math.log2(len(moved))
    variances = np.maximum(squares, 0) / (counts - 1)
    if not variances.any():
        return rarest
    freedom = float(variances.sum() ** 2 / (variances**2 / (counts - 1)).sum())
    t_squared = mean**2 * len(moved) ** 2 / float(variances.sum())
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t_squared / freedom))
    return max(float(torch.special.log_ndtr(torch.tensor(-z, dtype=torch.float64))) / math.log(2), rarest)


def _best_outputs(labels: _Numbers, logits: _Floats) -> _Numbers:
    """The column of each class with which the mean logits of all classes together are the largest."""
    means = _means(labels, logits)
    means = means - means.mean(axis=0)
    # Where nothing speaks for another, the output taken is the best.
    means[np.diag_indices(len(means))] += 1e-9 * (np.abs(means).max() + 1)
    return best_assignment(means)


def _means(labels: _Numbers, logits: _Floats) -> _Floats:
    """The mean logits of the images of each class, `[k, k]`; zeros for a class without any."""
    sums = np.zeros((logits.shape[1], logits.shape[1]))
    np.add.at(sums, labels, logits)
    found: _Floats = sums / np.maximum(np.bincount(labels, minlength=len(sums)), 1)[:, None]
    return found
