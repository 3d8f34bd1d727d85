"""Tests of what a network is to answer, against the formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sapcli.polishing.targets import Targets, as_given, blended


def by_formula(probabilities: np.ndarray, label: int) -> np.ndarray:
    weight = probabilities[label] / probabilities.max()
    sharpened = probabilities**2 / (probabilities**2).sum()
    target = (1 - weight) * sharpened
    target[label] += weight
    return target


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_blended_labels_are_those_of_the_formula(classes: int) -> None:
    torch.manual_seed(0)
    probabilities = (3 * torch.randn(50, classes)).softmax(dim=1)
    labels = torch.randint(classes, (50,))
    found = blended(probabilities, labels)
    for row, label, target in zip(probabilities.double().numpy(), labels.tolist(), found, strict=True):
        np.testing.assert_allclose(target.numpy(), by_formula(row, label), atol=1e-6)
    np.testing.assert_allclose(found.sum(dim=1).numpy(), 1, atol=1e-6)


def test_a_label_that_the_model_gives_is_believed_and_one_that_it_denies_is_not() -> None:
    sure = torch.tensor([[0.98, 0.01, 0.01]])
    assert blended(sure, torch.tensor([0])).argmax() == 0
    assert blended(sure, torch.tensor([0]))[0, 0] == 1
    assert blended(sure, torch.tensor([1])).argmax() == 0


def test_targets_as_given_are_one_hot() -> None:
    targets = as_given([2, 0, 1], 3)
    expected = nn.functional.one_hot(torch.tensor([1, 2]), 3).float()
    assert torch.equal(targets.rows(torch.tensor([2, 0])), expected)


def test_targets_are_looked_up_by_sample() -> None:
    targets = Targets(torch.tensor([[3, 1], [0, 2]]), torch.tensor([[0.75, 0.25], [1.0, 0.0]]), 4)
    assert targets.rows(torch.tensor([1, 0])).tolist() == [[1, 0, 0, 0], [0, 0.25, 0, 0.75]]
