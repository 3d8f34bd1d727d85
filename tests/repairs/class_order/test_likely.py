"""Orders of classes found from a network's answers, on answers that are drawn from known chances."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binom

from sapcli.repairs.class_order.likely import (
    CLEAR_CHANCE,
    LikelyOrder,
    _tail_bits,
    choose_known_order,
    likely_order,
)
from sapcli.repairs.class_order.orders import ClassOrder, known_orders

Numbers = npt.NDArray[np.int64]


def answers(generator: np.random.Generator, true: Numbers, accuracy: float, classes: int, spread: float) -> Numbers:
    """What a network says of images of the classes `true`: right with a chance, else spread over other classes.

    A small `spread` has it confuse few classes often. The own output stays the likeliest of each class, as it is where
    the order is right.
    """
    said = np.empty_like(true)
    for label in range(classes):
        others = generator.dirichlet(np.full(classes - 1, spread)) if spread else np.full(classes - 1, 1.0)
        own = max(accuracy, 1.05 / classes)
        for even in np.linspace(0, 1, 50):
            chances = (1 - own) * ((1 - even) * others / others.sum() + even / (classes - 1))
            if chances.max() <= own:
                break
        chances = np.insert(chances, label, own)
        of_label = true == label
        said[of_label] = generator.choice(classes, int(of_label.sum()), p=chances / chances.sum())
    return said


def mislabeled(generator: np.random.Generator, true: Numbers, classes: int, kind: str, rate: float) -> Numbers:
    """The given labels: wrong everywhere, from one class to another, between two, or between all neighbours."""
    wrong = generator.random(len(true)) < rate
    labels = true.copy()
    if kind == "everywhere":
        labels[wrong] = generator.integers(0, classes, int(wrong.sum()))
    elif kind == "one way":
        labels[wrong & (true == 0)] = 1
    elif kind == "both ways":
        labels[wrong & (true < 2)] = 1 - true[wrong & (true < 2)]
    else:
        labels[wrong] = (true[wrong] + 1) % classes
    return labels


def found_in(labels: Numbers, said: Numbers, classes: int) -> LikelyOrder | None:
    return likely_order(labels, said, [f"class {number:03}" for number in range(classes)])


@pytest.mark.parametrize("kind", ["everywhere", "one way", "both ways", "to the next"])
def test_the_right_order_is_never_doubted(kind: str) -> None:
    generator = np.random.default_rng(len(kind))
    for _ in range(250):
        classes = int(generator.choice([3, 4, 5, 8, 10, 12, 30, 100]))
        images = generator.choice([5, 10, 20, 50, 200]) if classes < 50 else generator.choice([5, 20])
        # Folders of equal and of very different sizes.
        counts = generator.poisson(images * generator.gamma(1, 1, classes)) + 1
        true = np.repeat(np.arange(classes), counts if generator.random() < 0.3 else images)
        accuracy = generator.uniform(0.25, 1)
        said = answers(generator, true, accuracy, classes, float(generator.choice([0, 0.1, 0.3, 1])))
        labels = mislabeled(generator, true, classes, kind, generator.uniform(0, 0.4 if kind == "everywhere" else 0.45))
        # A network that memorised its labels answers with them.
        memorised = generator.random(len(true)) < generator.choice([0, 0.5, 0.95])
        found = found_in(labels, np.where(memorised, labels, said), classes)
        assert found is None, (classes, images, accuracy, found)


@pytest.mark.parametrize("seed", range(20))
def test_a_weak_model_on_noisy_labels_is_not_doubted(seed: int) -> None:
    generator = np.random.default_rng(seed)
    true = np.repeat(np.arange(10), 100)
    labels = mislabeled(generator, true, 10, "everywhere", 0.4)
    assert found_in(labels, answers(generator, true, 0.25, 10, 0.3 * (seed % 2)), 10) is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("moved", ["all", "two", "three"])
def test_other_orders_are_found(seed: int, moved: str) -> None:
    generator = np.random.default_rng(seed)
    classes = int(np.linspace(3, 100, 20)[seed])
    permutation = np.arange(classes)
    while (permutation == np.arange(classes)).all():
        chosen = generator.choice(classes, {"all": classes, "two": 2, "three": 3}[moved], replace=False)
        permutation[chosen] = permutation[chosen[generator.permutation(len(chosen))]]
    true = np.repeat(np.arange(classes), 50)
    said = permutation[answers(generator, true, 0.6, classes, 0)]
    found = found_in(true, said, classes)
    assert found is not None
    assert found.outputs == tuple(permutation)
    assert set(found.moved) == set(np.flatnonzero(permutation != np.arange(classes)).tolist())
    assert found.share == pytest.approx((permutation[true] == said).mean())
    assert found.share_taken == pytest.approx((true == said).mean())


@pytest.mark.parametrize("images", [3, 5, 10])
def test_many_classes_of_few_images_tell_it_together(images: int) -> None:
    generator = np.random.default_rng(images)
    permutation = np.roll(np.arange(60), 1)
    true = np.repeat(np.arange(60), images)
    found = found_in(true, permutation[answers(generator, true, 0.7, 60, 0)], 60)
    assert found is not None
    assert np.mean(np.array(found.outputs) == permutation) > 0.8


def test_few_images_of_two_classes_are_chance() -> None:
    labels = np.repeat(np.arange(50), 3)
    said = labels.copy()
    said[:6] = [1, 1, 0, 0, 0, 1]
    assert found_in(labels, said, 50) is None


@pytest.mark.parametrize("shift", [1, 7, 500])
def test_a_few_folders_of_a_network_of_many_classes(shift: int) -> None:
    generator = np.random.default_rng(shift)
    labels = np.repeat(np.arange(10, 20), 30)
    said = np.where(generator.random(300) < 0.7, labels + shift, generator.integers(0, 1000, 300))
    found = found_in(labels, said, 1000)
    assert found is not None
    assert [found.outputs[label] for label in range(10, 20)] == list(range(10 + shift, 20 + shift))
    assert sorted(found.outputs) == list(range(1000))
    assert found_in(labels, np.where(said == labels + shift, labels, said), 1000) is None


def test_a_class_that_is_always_taken_for_another_is_no_exchange() -> None:
    labels = np.repeat(np.arange(5), 100)
    said = np.where(labels == 1, 0, labels)
    assert found_in(labels, said, 5) is None
    # Nor is it where half of the other's images go the other way.
    said[:50] = 1
    assert found_in(labels, said, 5) is None
    said[:90] = 1
    found = found_in(labels, said, 5)
    assert found is not None
    assert found.outputs == (1, 0, 2, 3, 4)


def test_more_classes_than_are_assigned_exactly() -> None:
    generator = np.random.default_rng(0)
    permutation = generator.permutation(2500)
    labels = np.repeat(np.arange(2500), 8)
    said = np.where(generator.random(len(labels)) < 0.8, permutation[labels], generator.integers(0, 2500, len(labels)))
    found = found_in(labels, said, 2500)
    assert found is not None
    assert sorted(found.outputs) == list(range(2500))
    assert np.mean(np.array(found.outputs) == permutation) > 0.99


@pytest.mark.parametrize(
    ("order", "names"),
    [
        (ClassOrder.TIMM, [str(number) for number in range(12)]),
        (ClassOrder.TIMM, ["Bee", "ape", "Cat", "dog10", "dog9"]),
        (ClassOrder.IGNORING_CASE, ["Bee", "ape", "Cat", "dog10", "dog9"]),
    ],
)
def test_an_order_by_which_tools_sort_is_called_by_its_name(order: ClassOrder, names: list[str]) -> None:
    generator = np.random.default_rng(0)
    taken = sorted(names)
    labels = np.repeat(np.arange(len(names)), 30)
    trained = order.sort(names)
    right = np.array([trained.index(taken[label]) for label in labels])
    said = np.where(generator.random(len(labels)) < 0.7, right, generator.integers(0, len(names), len(labels)))
    found = likely_order(labels, said, taken)
    assert found is not None
    assert found.order is order
    assert found.arranged(taken) == trained
    chosen = choose_known_order(labels, said, known_orders(names))
    assert chosen.order is order
    assert chosen.shares[order] == pytest.approx((said == right).mean())


def test_a_few_answers_do_not_tell_between_known_orders() -> None:
    orders = known_orders([str(number) for number in range(11)])
    labels, none = np.array([2, 3]), np.array([], dtype=np.int64)
    assert choose_known_order(labels, np.array([10, 2]), orders).order is None
    assert choose_known_order(none, none, orders).order is None
    assert choose_known_order(np.repeat(labels, 9), np.repeat(labels, 9), orders).order is ClassOrder.ALPHABETICAL


def test_nothing_is_found_in_nothing() -> None:
    none = np.array([], dtype=np.int64)
    assert likely_order(none, none, ["a", "b"]) is None
    assert likely_order(np.zeros(9, dtype=np.int64), np.zeros(9, dtype=np.int64), ["a"]) is None


@pytest.mark.parametrize(("hits", "trials", "probability"), [(0, 5, 0.5), (5, 5, 0.5), (60, 80, 0.5), (9, 4000, 1e-3)])
def test_the_tail_of_the_binomial_against_scipy(hits: int, trials: int, probability: float) -> None:
    expected = math.log2(binom.sf(hits - 1, trials, probability)) if hits > trials * probability else 0.0
    assert _tail_bits(hits, trials, probability) == pytest.approx(expected, abs=1e-9)


def test_the_threshold_is_one_that_chance_rarely_passes() -> None:
    # Two classes whose labels are all exchanged at random: the least favourable labels under which no order is right.
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 30)
    doubted = sum(found_in(labels, generator.integers(0, 2, 60), 2) is not None for _ in range(2000))
    assert doubted / 2000 <= CLEAR_CHANCE
