"""Tests of what a network is to answer, against the formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sapcli.polishing.targets import Targets, as_given, blended


def by_formula(probabilities: np.ndarray, label: int, wrong: float) -> np.ndarray:
    """The chance of each class to be the right one, summed out class by class."""
    classes = len(probabilities)
    noise = np.full((classes, classes), wrong / (classes - 1))
    np.fill_diagonal(noise, 1 - wrong)
    joint = np.array([probabilities[right] * noise[right, label] for right in range(classes)])
    return joint / joint.sum()


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("wrong", [0.05, 0.4])
def test_blended_labels_are_those_of_the_formula(classes: int, wrong: float) -> None:
    torch.manual_seed(0)
    probabilities = (3 * torch.randn(50, classes)).softmax(dim=1)
    labels = torch.randint(classes, (50,))
    found = blended(probabilities, labels, wrong)
    for row, label, target in zip(probabilities.double().numpy(), labels.tolist(), found, strict=True):
        np.testing.assert_allclose(target.numpy(), by_formula(row, label, wrong), atol=1e-6)
    # Where most classes do not count, the others are weighed as if all were there.
    order = probabilities.scatter_add(1, labels.unsqueeze(1), torch.ones(50, 1)).argsort(dim=1, descending=True)
    of_some = blended(probabilities.gather(1, order[:, :2]), torch.zeros(50, dtype=torch.int64), wrong, classes)
    wanted = found.gather(1, order[:, :2])
    torch.testing.assert_close(of_some, wanted / wanted.sum(dim=1, keepdim=True))


def test_a_label_gives_way_to_an_answer_that_is_surer_than_labels_are() -> None:
    certain, sure = torch.tensor([[0.98, 0.01, 0.01]]), torch.tensor([[0.8, 0.1, 0.1]])
    assert blended(certain, torch.tensor([1]), 0.2).argmax() == 0
    assert blended(sure, torch.tensor([1]), 0.4).argmax() == 0
    assert blended(sure, torch.tensor([1]), 0.1).argmax() == 1
    assert blended(sure, torch.tensor([0]), 0.2)[0, 0] > 0.95


def test_targets_as_given_are_one_hot() -> None:
    targets = as_given([2, 0, 1], 3)
    expected = nn.functional.one_hot(torch.tensor([1, 2]), 3).float()
    assert torch.equal(targets.rows(torch.tensor([2, 0])), expected)


def test_targets_are_looked_up_by_sample() -> None:
    targets = Targets(torch.tensor([[3, 1], [0, 2]]), torch.tensor([[0.75, 0.25], [1.0, 0.0]]), 4)
    assert targets.rows(torch.tensor([1, 0])).tolist() == [[1, 0, 0, 0], [0, 0.25, 0, 0.75]]
