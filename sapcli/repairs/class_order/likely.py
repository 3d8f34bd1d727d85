"""Whether the classes are in the order of the network's outputs, from its own answers on labeled images.

Where the folders of a data set stand for other outputs than was assumed, the network answers most images of a class
with one other output. The labels may be wrong and the network weak, though, so that this alone shows nothing: what is
looked for is classes whose outputs are *exchanged* (A's images are answered as B's, and B's as A's, or C's and C's as
A's, and so on through a cycle), by a margin and beyond chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sapcli.repairs.class_order.assignment import best_assignment
from sapcli.repairs.class_order.orders import ClassOrder, known_orders

_Numbers = npt.NDArray[np.int64]

CLEAR_CHANCE = 5e-3
"""A chance of at most this is none. It is that of the labels and answers that are least favourable among all under
which the order is right, and far below it for others."""
DOUBTFUL_CHANCE = 5e-2
"""A chance of at most this is worth a word."""

# The answers that speak for another order are so many times those that speak for the order taken.
_MARGIN = 1.5
# And so large a part of all answers about the classes, or so many times those for the order taken where many classes
# tell the same.
_PART = 0.3
_SMALLER_PART, _LARGER_MARGIN, _MANY_CLASSES = 1 / 5, 5.0, 5
# Each of a few classes has to speak for the exchange, if not as clearly. Of many, so large a part has to have the other
# output as its most frequent answer: a network that knows nothing answers most classes with the same few outputs.
_FEW_CLASSES, _CHANCE_OF_ONE, _PART_OF_CLASSES = 3, 0.2, 0.75
# An order by which tools sort is likelier than one that is found among all: these are 4 and not n!.
_KNOWN_BITS = 2.0
# And is meant where it explains nearly as much as the best of all.
_AS_GOOD = 0.9
# How much more an answer for the order taken counts in the search, so that classes of which little is known stay.
_PREFERENCE = 1.5
# Beyond so many doubtful classes the assignment is greedy.
_EXACT = 2000


@dataclass(frozen=True)
class LikelyOrder:
    """An order of the classes that explains the network's answers far better than the one taken.

    Attributes:
        outputs: The likely output of each class, by its position in the order taken; a permutation.
        order: What tools sort so; None where it is no such order.
        moved: The classes with images that are another output than was taken, the clearest first.
        answers: For each of `moved`, how many of its images are answered with the likely output.
        images: For each of `moved`, how many images it has.
        share: The part of all answers that the likely order explains.
        share_taken: The part that the order taken explains.
    """

    outputs: tuple[int, ...]
    order: ClassOrder | None
    moved: tuple[int, ...]
    answers: tuple[int, ...]
    images: tuple[int, ...]
    share: float
    share_taken: float

    def arranged(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names, given in the order taken, in the order of the outputs that they likely are."""
        arranged = dict(zip(self.outputs, names, strict=True))
        return tuple(arranged[output] for output in range(len(names)))


def likely_order(
    labels: _Numbers, predictions: _Numbers, names: Sequence[str], chance: float = CLEAR_CHANCE
) -> LikelyOrder | None:
    """The order that explains the answers far better than the one taken; None where there is none.

    Known orders of the names are tried first, then the best of all assignments of classes to outputs, of which those
    exchanges remain that are beyond chance: the answers for the exchange are at least 1.5 times those for the order
    taken, and 30% of all about these classes; the chance that they are more although both are equally likely, and the
    chance that answers that have nothing to do with the images fall so, are below `chance`, all exchanges of as many
    classes counted. Labels of which nearly half are exchanged between two classes, in one direction or in both, are no
    exchange of outputs, since the answers that speak for the order taken remain more.

    Simulated, in part again by `tests/repairs/class_order/test_likely.py`: in 10,000 draws of 2 to 100 classes in the
    right order, each answered more often with its own output than with any other, with 5 to 200 images a class, 25% to
    100% accuracy, the other answers spread evenly or on a few classes, and up to 40% of all labels wrong or up to 45%
    of those of single classes, another order was never found. Of random permutations, whole and of two or three of 3 to
    100 classes, at 60% accuracy all are found with 100 images a class unless two classes are hard to tell apart, and
    95% with 40.

    Args:
        labels: The position of each image's class in the order taken, int64 `[n]`.
        predictions: The output that the network answers it with, int64 `[n]`.
        names: The classes in the order taken.
        chance: How likely another order may be found where the one taken is right.
    """
    if not len(labels) or len(names) < 2:
        return None
    answers = _Answers(labels, predictions, len(names), chance)
    positions = {name: position for position, name in enumerate(names)}
    candidates: list[tuple[ClassOrder | None, _Numbers]] = []
    if len(positions) == len(names):
        for order, sorted_names in known_orders(names).items():
            outputs = np.argsort([positions[name] for name in sorted_names]).astype(np.int64)
            if answers.contradict(answers.moved_by(outputs), outputs, known=True):
                candidates.append((order, outputs))
    found = answers.best_exchange()
    candidates.sort(key=lambda candidate: -answers.explained(candidate[1]))
    if candidates and (found is None or answers.explained(candidates[0][1]) >= _AS_GOOD * answers.explained(found)):
        return answers.likely(candidates[0][1], candidates[0][0])
    return None if found is None else answers.likely(found, None)


def order_of(labels: _Numbers, predictions: _Numbers, names: Sequence[str], outputs: _Numbers) -> LikelyOrder:
    """What some answers say of an order that was found otherwise.

    Args:
        labels: The position of each image's class in the order taken, int64 `[n]`.
        predictions: The output that the network answers it with, int64 `[n]`.
        names: The classes in the order taken.
        outputs: The output of each class, by its position in the order taken; a permutation.
    """
    answers = _Answers(labels, predictions, len(names), CLEAR_CHANCE)
    arranged = tuple(names[position] for position in np.argsort(outputs))
    known = (order for order, sorted_names in known_orders(names).items() if sorted_names == arranged)
    return answers.likely(outputs, next(known, None))


@dataclass(frozen=True)
class KnownOrder:
    """Which of the known orders the answers speak for.

    Attributes:
        order: The order; None where they do not tell.
        shares: The part of the answers that each order explains.
    """

    order: ClassOrder | None
    shares: Mapping[ClassOrder, float]


def choose_known_order(
    labels: _Numbers, predictions: _Numbers, orders: Mapping[ClassOrder, Sequence[str]]
) -> KnownOrder:
    """Which of some orders of the classes explains the answers, where one does clearly better than all others.

    Args:
        labels: The position of each image's class in the first of `orders`, int64 `[n]`.
        predictions: The output that the network answers it with, int64 `[n]`.
        orders: The classes' names in each order.
    """
    taken = next(iter(orders.values()))
    positions = {name: position for position, name in enumerate(taken)}
    outputs = {order: np.argsort([positions[name] for name in names]) for order, names in orders.items()}
    right = {order: of_class[labels] == predictions for order, of_class in outputs.items()}
    shares = {order: float(hits.mean()) if len(hits) else 0.0 for order, hits in right.items()}
    best = max(shares, key=shares.__getitem__)
    for other, hits in right.items():
        more, fewer = int((right[best] & ~hits).sum()), int((hits & ~right[best]).sum())
        if other is not best and not (
            more >= _MARGIN * fewer
            and _tail_bits(more, more + fewer, 0.5) + math.log2(len(orders)) <= math.log2(CLEAR_CHANCE)
        ):
            return KnownOrder(None, shares)
    return KnownOrder(best, shares)


class _Answers:
    """How often each class was answered with each output; only what occurs is kept."""

    def __init__(self, labels: _Numbers, predictions: _Numbers, classes: int, chance: float) -> None:
        self.classes = classes
        self.limit = math.log2(chance)
        self.total = len(labels)
        self.images = np.bincount(labels, minlength=classes)
        self.answered = np.bincount(predictions, minlength=classes)
        self.pairs, self.counts = np.unique(labels * classes + predictions, return_counts=True)
        self.hits = self.of(np.arange(classes), np.arange(classes))
        self.most = np.zeros(classes, dtype=np.int64)
        np.maximum.at(self.most, self.pairs // classes, self.counts)

    def of(self, rows: _Numbers, outputs: _Numbers) -> _Numbers:
        """How many images of each of these classes were answered with the output beside it."""
        wanted = rows * self.classes + outputs
        places = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return np.where(self.pairs[places] == wanted, self.counts[places], 0)

    def explained(self, outputs: _Numbers) -> int:
        """How many answers an order explains."""
        return int(self.of(np.arange(self.classes), outputs).sum())

    def moved_by(self, outputs: _Numbers) -> _Numbers:
        """The classes with images that an order gives another output."""
        return np.flatnonzero((outputs != np.arange(self.classes)) & (self.images > 0))

    def likely(self, outputs: _Numbers, order: ClassOrder | None) -> LikelyOrder:
        """The order as a result."""
        moved = self.moved_by(outputs)
        answers = self.of(moved, outputs[moved])
        clearest = np.argsort(-answers / self.images[moved], kind="stable")
        return LikelyOrder(
            outputs=tuple(outputs.tolist()),
            order=order,
            moved=tuple(moved[clearest].tolist()),
            answers=tuple(answers[clearest].tolist()),
            images=tuple(self.images[moved][clearest].tolist()),
            share=self.explained(outputs) / self.total,
            share_taken=int(self.hits.sum()) / self.total,
        )

    def contradict(self, rows: _Numbers, outputs: _Numbers, *, known: bool = False) -> bool:
        """Whether the answers about some classes speak clearly for `outputs[rows]` and against the order taken.

        Args:
            rows: The classes, all with images.
            outputs: The output of every class.
            known: Whether the order is one of a few that were to be expected.
        """
        if len(rows) < 2:
            return False
        others, taken, images = self.of(rows, outputs[rows]), self.hits[rows], self.images[rows]
        other, own, count = int(others.sum()), int(taken.sum()), int(images.sum())
        other_by_chance = float((images * self.answered[outputs[rows]]).sum()) / self.total
        is_large = other >= _PART * count or (
            len(rows) >= _MANY_CLASSES and other >= _SMALLER_PART * count and other >= _LARGER_MARGIN * own
        )
        if not is_large or other < _MARGIN * own or not self._knows_the_others(outputs, other, count):
            return False
        if not (_all_agree(others, taken) if len(rows) <= _FEW_CLASSES else self._most_agree(rows, others)):
            return False
        ways = _KNOWN_BITS if known else exchanges_bits(self.classes, len(rows))
        # At most 1 / share outputs can be answers as frequent as that, and each class begins one exchange at most.
        plausible = min(ways, math.log2(self.classes) + len(rows) * math.log2(count / other))
        return (
            _tail_bits(other, other + own, 0.5) + plausible <= self.limit
            and _tail_bits(other, count, other_by_chance / count) + ways <= self.limit
        )

    def _most_agree(self, rows: _Numbers, others: _Numbers) -> bool:
        """Whether most of many classes are answered with the other output more often than with any."""
        return bool((others >= self.most[rows]).mean() >= _PART_OF_CLASSES)

    def _knows_the_others(self, outputs: _Numbers, other: int, count: int) -> bool:
        """Whether the network has the other classes right, where they are most: a weak one exchanges some by itself."""
        others = self.total - count
        return count > others or self.explained(outputs) - other >= _PART * others

    def best_exchange(self) -> _Numbers | None:
        """The assignment of classes to outputs that explains most, without the exchanges that chance explains."""
        outputs = self._best_outputs()
        cycles = cycles_of(outputs, self.images)
        clear = [cycle for cycle in cycles if self.contradict(cycle, outputs)]
        rest = [cycle for cycle in cycles if not any(cycle is other for other in clear)]
        # With few images a class, no single exchange is beyond chance, but all of them together are.
        if rest and self.contradict(np.concatenate(rest), outputs):
            clear += rest
        if not clear:
            return None
        kept = np.concatenate(clear)
        found = np.arange(self.classes)
        found[kept] = outputs[kept]
        # The outputs that are left go to the classes that are left: those without images.
        free = np.setdiff1d(np.arange(self.classes), found[kept])
        left = np.setdiff1d(np.arange(self.classes), kept)
        open_classes = left[~np.isin(left, free)]
        found[open_classes] = free[~np.isin(free, left)]
        return found

    def _best_outputs(self) -> _Numbers:
        """The best output of every class, which stays as it is where its own output is its most frequent answer."""
        rows, columns = np.divmod(self.pairs, self.classes)
        off = rows != columns
        most = np.zeros(self.classes, dtype=np.int64)
        np.maximum.at(most, rows[off], self.counts[off])
        doubtful = (most >= self.hits) & (self.images > 0)
        # Also the classes whose output is such an answer.
        wanted = np.zeros(self.classes, dtype=bool)
        wanted[columns[off & doubtful[rows] & (self.counts == most[rows])]] = True
        open_rows = np.flatnonzero(doubtful | (wanted & (self.images > 0)))
        outputs = np.arange(self.classes)
        if not len(open_rows):
            return outputs
        is_open = np.zeros(self.classes, dtype=bool)
        is_open[open_rows] = True
        open_columns = np.flatnonzero(is_open | ((self.images == 0) & (self.answered > 0)))
        used = is_open[rows] & np.isin(columns, open_columns)
        place_of_row, place_of_column = np.cumsum(is_open) - 1, np.full(self.classes, -1)
        place_of_column[open_columns] = np.arange(len(open_columns))
        weights = np.where(off, 1.0, _PREFERENCE)[used] * self.counts[used]
        if len(open_rows) > _EXACT:
            strongest = np.argsort(-weights, kind="stable")
            edges = zip(rows[used][strongest].tolist(), columns[used][strongest].tolist(), strict=True)
            for row, column in edges:
                if is_open[row] and place_of_column[column] >= 0:
                    outputs[row], is_open[row], place_of_column[column] = column, False, -1
            # What no answer decides stays where it can.
            for row in np.flatnonzero(is_open):
                if place_of_column[row] >= 0:
                    is_open[row], place_of_column[row] = False, -1
            outputs[is_open] = np.flatnonzero(place_of_column >= 0)[: int(is_open.sum())]
            return outputs
        values = np.zeros((len(open_rows), len(open_columns)))
        values[place_of_row[rows[used]], place_of_column[columns[used]]] = weights
        # Where nothing speaks for another, the output taken is the best.
        values[np.arange(len(open_rows)), place_of_column[open_rows]] += 0.25
        outputs[open_rows] = open_columns[best_assignment(values)]
        return outputs


def _all_agree(others: _Numbers, taken: _Numbers) -> bool:
    """Whether each of a few classes speaks for the exchange by itself."""
    return all(
        other >= _MARGIN * own and _tail_bits(other, other + own, 0.5) <= math.log2(_CHANCE_OF_ONE)
        for other, own in zip(others.tolist(), taken.tolist(), strict=True)
    )


def cycles_of(outputs: _Numbers, images: _Numbers) -> list[_Numbers]:
    """The classes with images that exchange their outputs with one another, a group a cycle of two or more.

    Args:
        outputs: The output of every class.
        images: How many images each class has.
    """
    images_of = images > 0
    before = {int(output): row for row, output in enumerate(outputs) if images_of[row]}
    cycles, seen = [], set()
    for start in np.flatnonzero((outputs != np.arange(len(outputs))) & images_of).tolist():
        if start in seen:
            continue
        # From the beginning, where the outputs lead to one of a class without images and so are no circle.
        first = start
        while (earlier := before.get(first)) is not None and earlier != start:
            first = earlier
        cycle = []
        while first not in seen and images_of[first]:
            seen.add(first)
            cycle.append(first)
            first = int(outputs[first])
        cycles.append(np.array(cycle, dtype=np.int64))
    return cycles


def exchanges_bits(classes: int, moved: int) -> float:
    """The logarithm to base 2 of how many cycles of so many classes there are."""
    ways = math.lgamma(classes + 1) - math.lgamma(classes - moved + 1) - math.log(moved)
    return ways / math.log(2)


def _tail_bits(hits: int, trials: int, probability: float) -> float:
    """The logarithm to base 2 of the chance of `hits` or more in independent trials; 0 at or below the mean."""
    if hits <= trials * probability:
        return 0.0
    if probability <= 0:
        return -math.inf
    logarithm = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    logarithm += hits * math.log(probability) + (trials - hits) * math.log1p(-probability)
    # The terms fall from here on, faster than a geometric series.
    total = term = 1.0
    for more in range(hits, trials):
        term *= (trials - more) / (more + 1) * probability / (1 - probability)
        total += term
        if term < 1e-12 * total:
            break
    return (logarithm + math.log(total)) / math.log(2)
