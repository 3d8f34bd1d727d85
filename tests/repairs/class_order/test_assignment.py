"""The best assignment against SciPy's and against all permutations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from sapcli.repairs.class_order.assignment import best_assignment


@pytest.mark.parametrize("seed", range(40))
def test_no_permutation_is_better(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = int(generator.integers(1, 6))
    columns = rows + int(generator.integers(0, 3))
    # Small whole numbers have many ties.
    values = generator.integers(-2, 3, (rows, columns)).astype(float)
    best = max(sum(values[row, column] for row, column in enumerate(p)) for p in permutations(range(columns), rows))
    found = best_assignment(values)
    assert len(set(found.tolist())) == rows
    assert values[np.arange(rows), found].sum() == best


@pytest.mark.parametrize("accuracy", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("classes", [2, 30, 150])
def test_confusions_of_many_classes_against_scipy(classes: int, accuracy: float) -> None:
    generator = np.random.default_rng(classes)
    labels = np.repeat(np.arange(classes), 5)
    permutation = generator.permutation(classes)
    said = np.where(generator.random(len(labels)) < accuracy, permutation[labels], generator.integers(classes))
    values = np.zeros((classes, classes))
    np.add.at(values, (labels, said), 1.0)
    rows, columns = linear_sum_assignment(-values)
    assert values[np.arange(classes), best_assignment(values)].sum() == values[rows, columns].sum()
