"""The order of the classes against the network's own answers: what is said, and what stops a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sapcli.activations.scoring import Outcomes
from sapcli.datasets.dataset import Dataset
from sapcli.errors import DatasetError
from sapcli.machine.progress import Progress
from sapcli.repairs.class_order.closer_look import Look, look_closer
from sapcli.repairs.class_order.likely import DOUBTFUL_CHANCE, LikelyOrder, likely_order
from sapcli.repairs.class_order.words import what_contradicts, what_to_do, write_class_map
from sapcli.settings import DataSource

# A chance of at most this is none, of logits of a network that knows nothing of the images; a network that knows
# something of them is far from it.
_CLEAR_LOGITS = 1e-2


def compare_order(
    dataset: Dataset,
    outcomes: Outcomes,
    checkpoint: str,
    source: DataSource,
    progress: Progress,
    look: Look,
    confirm: Callable[[], Outcomes] | None = None,
    *,
    stop: bool,
) -> None:
    """Compare the order of the classes with the network's own answers.

    Args:
        dataset: The images.
        outcomes: What the network made of them.
        checkpoint: The checkpoint's name, for messages.
        source: Whether a class map says the order, and where one that would say the likely order is written to.
        progress: Told of a doubt.
        look: Runs the network on some of the images again, where its answers leave the order in doubt.
        confirm: What the network made of other images, whose labels come from elsewhere: where these agree with the
            order taken, it is the labels of `dataset` that are exchanged, and not the classes.
        stop: Whether another order ends the run; it is a warning alone where a class map says the order.

    Raises:
        DatasetError: Another order explains the answers far better.
    """
    found, is_clear = _found(dataset, outcomes, look)
    if found is None:
        return
    message = what_contradicts(found, checkpoint, dataset)
    if not is_clear:
        progress.warn(f"{message}; that may be chance")
        return
    if confirm is not None:
        others = confirm()
        by_found = np.asarray(found.outputs)[others.labels.numpy()]
        if int(others.correct.sum()) > int((others.predictions.numpy() == by_found).sum()):
            progress.warn(
                f"{message}; but the validation images agree with the order taken: the training labels are likely wrong"
            )
            return
    file = source.suggested_class_map
    if file is not None:
        write_class_map(found, dataset, file)
    stops = stop and source.class_map is None
    hint = what_to_do(file, source.class_map, stops=stops)
    if stops:
        raise DatasetError(message, hint)
    progress.warn(f"{message}. {hint}")


def _found(dataset: Dataset, outcomes: Outcomes, look: Look) -> tuple[LikelyOrder | None, bool]:
    """Another order that explains the answers better, and whether that is beyond doubt."""
    labels, predictions, names = outcomes.labels.numpy(), outcomes.predictions.numpy(), dataset.classes
    found = likely_order(labels, predictions, names)
    closer = look_closer(labels, predictions, len(names), outcomes.indices.numpy(), look)
    if closer is None:
        return found or likely_order(labels, predictions, names, DOUBTFUL_CHANCE), found is not None
    if found is not None:
        return found, closer.chance(found) <= math.log2(DOUBTFUL_CHANCE)
    found = closer.order(labels, predictions, names, _CLEAR_LOGITS)
    if found is not None:
        return found, True
    return closer.order(labels, predictions, names, DOUBTFUL_CHANCE), False
