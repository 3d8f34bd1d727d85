"""Wrong labels made on purpose, counted against what each kind promises."""

from __future__ import annotations

import numpy as np
import pytest

from sapcli.datasets.labels.noise import confusions, noisy_labels
from sapcli.errors import UsageError
from sapcli.settings import NoiseKind

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_symmetric_noise_is_uniform_over_the_other_classes(rate: float, classes: int) -> None:
    names = [f"class {number}" for number in range(classes)]
    right = np.repeat(np.arange(classes), 1200)
    noisy = noisy_labels(right, names, confusions(NoiseKind.SYMMETRIC, names), rate, seed=1)
    table = np.zeros((classes, classes), dtype=int)
    np.add.at(table, (right, noisy), 1)
    assert (np.diag(table) == 1200 - round(1200 * rate)).all()
    expected = 1200 * rate / (classes - 1)
    others = table[~np.eye(classes, dtype=bool)]
    assert (np.abs(others - expected) <= 5 * np.sqrt(expected) + 1e-9).all()


def test_asymmetric_noise_has_the_usual_pairs() -> None:
    right = np.repeat(np.arange(10), 1000)
    noisy = noisy_labels(right, CIFAR10, confusions(NoiseKind.ASYMMETRIC, CIFAR10), 0.4, seed=0)
    moved = {(CIFAR10[one], CIFAR10[other]) for one, other in zip(right, noisy, strict=True) if one != other}
    usual = {("truck", "automobile"), ("bird", "airplane"), ("deer", "horse"), ("cat", "dog"), ("dog", "cat")}
    assert moved == usual
    assert (noisy != right).sum() == 5 * 400


def test_hierarchical_noise_stays_in_the_group() -> None:
    right = np.repeat(np.arange(10), 300)
    noisy = noisy_labels(right, CIFAR10, confusions(NoiseKind.HIERARCHICAL, CIFAR10), 0.25, seed=0)
    vehicles = np.isin(np.arange(10), [0, 1, 8, 9])
    assert (vehicles[right] == vehicles[noisy]).all()
    assert (noisy != right).sum() == 10 * 75


def test_the_seed_alone_decides() -> None:
    right = np.repeat(np.arange(10), 100)
    taken_for = confusions(NoiseKind.SYMMETRIC, CIFAR10)
    first, again, other = (noisy_labels(right, CIFAR10, taken_for, 0.3, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert (right == np.repeat(np.arange(10), 100)).all()


def test_groups_and_pairs_of_the_users() -> None:
    names = ["a", "b", "c", "d"]
    assert confusions(NoiseKind.ASYMMETRIC, names).of == {"a": ("b",), "b": ("c",), "c": ("d",), "d": ("a",)}
    assert confusions(NoiseKind.ASYMMETRIC, names, [("a", "c"), ("a", "d")]).of == {"a": ("c", "d")}
    groups = confusions(NoiseKind.HIERARCHICAL, names, groups=[("a", "c"), ("d",)])
    assert groups.of == {"a": ("c",), "c": ("a",)}


@pytest.mark.parametrize(
    ("kind", "pairs", "groups", "named"),
    [
        (NoiseKind.ASYMMETRIC, [("a", "z")], (), "'z'"),
        (NoiseKind.ASYMMETRIC, [("a", "a")], (), "itself"),
        (NoiseKind.HIERARCHICAL, (), (), "groups"),
        (NoiseKind.HIERARCHICAL, (), [("a", "b"), ("b", "c")], "twice"),
        (NoiseKind.HIERARCHICAL, (), [("a", "y")], "'y'"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: NoiseKind, pairs: object, groups: object, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        confusions(kind, ["a", "b", "c"], pairs, groups)  # type: ignore[arg-type]
