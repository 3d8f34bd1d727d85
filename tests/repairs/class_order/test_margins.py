"""Exchanged classes told by logits: against SciPy's test, and against the exchange that was made."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import t, ttest_ind

from sapcli.repairs.class_order.closer_look import CloserLook, look_closer
from sapcli.repairs.class_order.likely import likely_order
from sapcli.repairs.class_order.margins import chance_by_margins, doubtful_classes, exchanged_by_margins

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def logits_of(generator: np.random.Generator, labels: Numbers, classes: int, strength: float) -> Floats:
    """Logits that are Gaussian noise, and higher for the class itself."""
    return generator.normal(0, 1, (len(labels), classes)) + strength * np.eye(classes)[labels]


@pytest.mark.parametrize("strength", [0.6, 0.9])
@pytest.mark.parametrize("counts", [(3, 9), (5, 40), (60, 50)])
def test_the_chance_of_two_classes_is_that_of_welchs_test(strength: float, counts: tuple[int, int]) -> None:
    generator = np.random.default_rng(sum(counts))
    labels = np.repeat([0, 1], counts)
    # None reaches further than twice their median, which would be clipped; the outputs are exchanged.
    margins = generator.uniform(-1, 1, len(labels)) * 0.3 + np.where(labels == 0, strength, -strength)
    logits = np.stack([np.zeros(len(labels)), margins], axis=1) + generator.normal(0, 9, (len(labels), 1)) + [70, 3]
    expected = ttest_ind(margins[labels == 0], margins[labels == 1], equal_var=False, alternative="greater")
    assert np.abs(margins).max() < 1.7 * np.median(np.abs(margins))
    found = chance_by_margins(labels, logits, np.array([0, 1]), np.array([1, 0]))
    bits = max(t.logsf(expected.statistic, expected.df) / math.log(2), -2 * len(labels))
    assert found == pytest.approx(bits, rel=0.04)
    assert chance_by_margins(labels, logits[:, ::-1], np.array([0, 1]), np.array([1, 0])) == 0


def test_chances_are_as_rare_as_they_say() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 10)
    cycle, outputs = np.arange(3), np.array([1, 2, 0])
    # A network that knows nothing, of heavy tails, fond of one output.
    fond = np.array([5.0, 0.0, 0.0])
    found = [chance_by_margins(labels, generator.standard_t(2, (30, 3)) + fond, cycle, outputs) for _ in range(4000)]
    for bits in (2, 4, 6):
        expected = 4000 / 2**bits
        assert sum(chance <= -bits for chance in found) <= expected + 4 * math.sqrt(expected)


@pytest.mark.parametrize("seed", range(12))
def test_exchanges_are_found_whatever_outputs_the_network_is_fond_of(seed: int) -> None:
    generator = np.random.default_rng(seed)
    classes = int(generator.choice([3, 4, 6, 20]))
    labels = np.repeat(np.arange(classes), 25)
    outputs = np.arange(classes)
    moved = generator.choice(classes, 2 if seed % 2 else 3, replace=False)
    outputs[moved] = np.roll(outputs[moved], 1)
    logits = logits_of(generator, labels, classes, 1.5)[:, np.argsort(outputs)]
    fond = generator.normal(0, 4, classes)
    # The classes that win do not tell it: most images are answered with the same output.
    found = exchanged_by_margins(labels, logits + fond, classes, 1e-2)
    assert found is not None
    assert found.tolist() == outputs.tolist()
    assert exchanged_by_margins(labels, logits_of(generator, labels, classes, 1.5) + fond, classes, 1e-2) is None


def test_what_knows_nothing_exchanges_nothing() -> None:
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 30)
    found = [exchanged_by_margins(labels, logits_of(generator, labels, 4, 0), 4, 1e-2) for _ in range(500)]
    assert sum(exchange is not None for exchange in found) <= 12
    assert exchanged_by_margins(labels, np.zeros((120, 4)), 4, 1e-2) is None
    assert exchanged_by_margins(labels, np.ones((120, 4)) * [0, 9, 0, 1], 4, 1e-2) is None


@pytest.mark.parametrize("accuracy", [0.6, 0.9])
def test_doubtful_are_those_that_are_exchanged_and_none_of_a_sure_network(accuracy: float) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 60)
    right = generator.random(len(labels)) < accuracy
    said = np.where(right, labels, generator.integers(0, 30, len(labels)))
    assert doubtful_classes(labels, said, 30).tolist() == []
    outputs = np.arange(30)
    outputs[[4, 9, 20]] = [9, 20, 4]
    assert doubtful_classes(labels, outputs[said], 30).tolist() == [4, 9, 20]


def test_a_network_that_is_fond_of_one_of_two_leaves_a_doubt() -> None:
    # Exchanged: of the second folder most are answered as the first, but of the first folder nearly all are, too.
    labels = np.repeat(np.arange(2), 100)
    said = np.zeros(200, dtype=np.int64)
    said[:30] = 1
    said[100:105] = 1
    assert doubtful_classes(labels, said, 2).tolist() == [0, 1]


def test_the_images_looked_at_are_spread_over_the_doubtful_classes() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), [4000, 3000, 900, 800, 900])
    outputs = np.array([1, 0, 2, 3, 4])
    said = np.where(generator.random(len(labels)) < 0.7, outputs[labels], generator.integers(0, 5, len(labels)))
    indices = generator.permutation(20_000)[: len(labels)]
    label_of = dict(zip(indices.tolist(), labels.tolist(), strict=True))
    asked: list[list[int]] = []

    def look(positions: list[int], wanted: list[int]) -> tuple[Numbers, Floats]:
        asked.append(positions)
        assert wanted == [0, 1]
        # The last image has become unreadable.
        given = np.array([label_of[position] for position in positions])[:-1]
        return given, logits_of(generator, given, 2, 2.0)[:, ::-1]

    closer = look_closer(labels, said, 5, indices, look)  # type: ignore[arg-type]
    assert isinstance(closer, CloserLook)
    (positions,) = asked
    assert len(positions) == 2000 == len(set(positions))
    assert np.bincount([label_of[position] for position in positions]).tolist() == [1000, 1000]
    names = [f"class {number}" for number in range(5)]
    found = closer.order(labels, said, names, 1e-2)
    assert found is not None
    assert found.outputs == (1, 0, 2, 3, 4)
    assert found.share == pytest.approx((outputs[labels] == said).mean())
    assert found.moved == (0, 1) or found.moved == (1, 0)
    known = likely_order(labels, said, names)
    assert known is not None
    assert closer.chance(known) < -100


def test_classes_that_are_ruled_out_have_finite_margins() -> None:
    labels = np.repeat(np.arange(3), 20)
    said = np.array([1, 0, 2])[labels]

    def look(positions: list[int], wanted: list[int]) -> tuple[Numbers, Floats]:
        logits = np.full((len(positions), len(wanted)), -np.inf)
        given = labels[positions]
        logits[np.arange(len(given)), np.array([1, 0])[given]] = np.random.default_rng(0).normal(5, 1, len(given))
        return given, logits

    closer = look_closer(labels, said, 3, np.arange(60), look)  # type: ignore[arg-type]
    assert closer is not None
    found = closer.order(labels, said, ["a", "b", "c"], 1e-2)
    assert found is not None
    assert found.outputs == (1, 0, 2)


def test_a_network_that_says_the_same_of_all_images_of_a_class() -> None:
    labels = np.repeat(np.arange(3), 8)
    outputs = np.array([1, 0, 2])
    logits = np.eye(3)[outputs[labels]] * 20
    found = chance_by_margins(labels, logits, np.array([0, 1]), outputs)
    assert found == -32  # twice that of 16 labels by lot between two classes
    assert chance_by_margins(labels, np.eye(3)[labels] * 20, np.array([0, 1]), outputs) == 0
    assert exchanged_by_margins(labels, logits, 3, 1e-2) is not None


def test_a_single_image_beyond_all_bounds_hides_nothing() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 30)
    outputs = np.array([1, 0, 2])
    logits = logits_of(generator, labels, 3, 3.0)[:, np.argsort(outputs)]
    logits[5] = [1e30, -1e30, 0]
    said = logits.argmax(1)
    closer = look_closer(labels, said, 3, np.arange(90), lambda at, wanted: (labels[at], logits[at][:, wanted]))  # type: ignore[index, call-overload]
    assert closer is not None
    found = likely_order(labels, said, ["a", "b", "c"])
    assert found is not None
    assert closer.chance(found) < -20
