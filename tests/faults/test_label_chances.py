"""The chance that a label is wrong, on simulated networks whose labels are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sapcli.activations.scoring import Outcomes, cross_entropies
from sapcli.activations.views import Views
from sapcli.repairs.evidence.label_chances import confident_share, label_chances, normal_mixture
from sapcli.repairs.evidence.label_noise import fit_label_noise

CLASSES = 4


def views_of(logits: Tensor, labels: Tensor) -> Views:
    """What a network with these logits makes of images with these labels."""
    nothing = torch.zeros(len(labels), dtype=torch.int64)
    outcomes = Outcomes(
        torch.arange(len(labels)),
        labels,
        cross_entropies(logits.double(), labels),
        logits.argmax(dim=1),
        logits.softmax(dim=1).amax(dim=1),
        nothing,
        nothing,
    )
    return Views(outcomes, logits, torch.zeros(0, 0).half(), torch.zeros(len(labels), 256, dtype=torch.uint8))


def simulated(
    count: int, transition: np.ndarray, memorised: float, seed: int, scale: float = 2.0
) -> tuple[Views, torch.Tensor]:
    """A network twice too sure of itself, which raised the logits of the labels it was trained on; and what is wrong.

    The true class is drawn from the softmax of `z`, the label from its row of the transition; the network's logits are
    `scale * z`, with `memorised` added to that of the label.
    """
    generator = np.random.default_rng(seed)
    z = generator.normal(0, 3.0, (count, CLASSES))
    chances = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    true = (chances.cumsum(axis=1) > generator.random((count, 1))).argmax(axis=1)
    labels = (transition[true].cumsum(axis=1) > generator.random((count, 1))).argmax(axis=1)
    logits = scale * z
    logits[np.arange(count), labels] += memorised
    return views_of(torch.tensor(logits).float(), torch.tensor(labels)), torch.tensor(labels != true)


def symmetric(share: float) -> np.ndarray:
    return np.full((CLASSES, CLASSES), share / (CLASSES - 1)) * (1 - np.eye(CLASSES)) + (1 - share) * np.eye(CLASSES)


ASYMMETRIC = np.array([[0.6, 0.4, 0, 0], [0, 1, 0, 0], [0, 0.1, 0.9, 0], [0.3, 0, 0, 0.7]])


@pytest.mark.parametrize(("transition", "memorised"), [(symmetric(0.3), 3.0), (ASYMMETRIC, 1.0)])
def test_chances_are_calibrated_whatever_is_memorised(transition: np.ndarray, memorised: float) -> None:
    views, wrong = simulated(4000, transition, memorised, seed=1)
    held_out, _ = simulated(2000, transition, 0.0, seed=2)
    found = label_chances(views, held_out)
    assert abs(found.share.value - float(wrong.double().mean())) < 0.04
    assert found.share.low <= found.share.value <= found.share.high
    assert found.share.low - 0.02 <= float(wrong.double().mean()) <= found.share.high + 0.02
    bins = (found.wrong * 5).long().clamp_max(4)
    for number in range(5):
        members = bins == number
        expected, observed = float(found.wrong[members].mean()), float(wrong[members].double().mean())
        chance_error = 3 * (expected * (1 - expected) / int(members.sum())) ** 0.5
        assert abs(expected - observed) < 0.05 + chance_error, (number, expected, observed)


def test_pairs_of_classes_are_told_apart() -> None:
    views, _ = simulated(4000, ASYMMETRIC, 2.0, seed=3)
    held_out, _ = simulated(2000, ASYMMETRIC, 0.0, seed=4)
    found = label_chances(views, held_out)
    # A quarter of the images is of class 0, and 0.4 of these are labeled 1; 0.3 of class 3 are labeled 0.
    assert [(pair.given, pair.true) for pair in found.pairs[:2]] == [(1, 0), (0, 3)]
    assert abs(found.pairs[0].count.value - 400) < 80
    assert all(pair.count.low <= pair.count.value <= pair.count.high for pair in found.pairs)
    assert abs(sum(pair.count.value for pair in found.pairs) - 4000 * found.share.value) < 20


def test_the_transition_of_held_out_labels_is_found() -> None:
    held_out, _ = simulated(4000, ASYMMETRIC, 0.0, seed=5)
    for noise in fit_label_noise(held_out.logits, held_out.outcomes.labels):
        assert noise.raw.softmax(dim=1).numpy() == pytest.approx(ASYMMETRIC, abs=0.12)
        chances = noise.posterior(held_out.logits[:5], held_out.outcomes.labels[:5])
        assert chances.sum(dim=1).numpy() == pytest.approx(np.ones(5))


def test_what_cannot_be_believed_is_said() -> None:
    views, _ = simulated(2000, symmetric(0.3), 30.0, seed=6)
    held_out, _ = simulated(1000, symmetric(0.3), 0.0, seed=7)
    assert "memorised" in label_chances(views, held_out).doubts[0]
    assert "held-out" in label_chances(views, None).doubts[0]
    assert "only 50" in label_chances(views, simulated(50, symmetric(0.3), 0.0, seed=8)[0]).doubts[0]
    mild, _ = simulated(2000, symmetric(0.3), 2.0, seed=9)
    assert label_chances(mild, held_out).doubts == ()


def test_likely_classes_leave_out_the_label() -> None:
    views, _ = simulated(50, symmetric(0.3), 1.0, seed=10)
    likely = label_chances(views, None).likely
    assert likely.shape == (50, CLASSES - 1)
    for row in range(50):
        order = [k for k in views.logits[row].argsort(descending=True).tolist() if k != int(views.outcomes.labels[row])]
        assert likely[row].tolist() == order


def test_a_mixture_of_two_normal_distributions_is_told_apart() -> None:
    generator = np.random.default_rng(11)
    values = torch.tensor(np.concatenate([generator.normal(-5, 1, 3000), generator.normal(0, 1, 1000)]))
    for tied in (True, False):
        chance = normal_mixture(values, tied=tied)
        assert abs(float(chance.mean()) - 0.25) < 0.01
        # Bayes' rule with the true densities.
        low, high = 3000 * torch.exp(-0.5 * (values + 5) ** 2), 1000 * torch.exp(-0.5 * values**2)
        assert float((chance - high / (low + high)).abs().max()) < 0.15


def test_confident_learning_counts_as_in_its_paper() -> None:
    logits = torch.tensor([[3.0, 0], [2.0, 0], [0, 2.0], [0, 3.0], [0, 2.5], [2.5, 0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    chances = logits.double().softmax(dim=1).numpy()
    thresholds = [np.mean([chances[i, k] for i in range(6) if labels[i] == k]) for k in range(2)]
    counts = np.zeros((2, 2))
    for row, label in zip(chances, labels.tolist(), strict=True):
        passed = [k for k in range(2) if row[k] >= thresholds[k]]
        if passed:
            counts[label, max(passed, key=lambda k: row[k])] += 1
    joint = counts / counts.sum(axis=1, keepdims=True) * 3 / 6
    assert confident_share(logits, labels) == pytest.approx(1 - np.trace(joint))


def test_few_or_equal_losses_are_no_error() -> None:
    views = views_of(torch.zeros(5, CLASSES), torch.tensor([0, 1, 2, 3, 0]))
    found = label_chances(views, None)
    assert found.wrong.shape == (5,)
    assert bool(torch.isfinite(found.wrong).all())
    single = views_of(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    assert label_chances(single, None).likely.shape == (3, 1)
