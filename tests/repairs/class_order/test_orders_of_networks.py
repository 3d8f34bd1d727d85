"""Orders of the classes of real networks, trained on wrong labels too: other ones are found, right ones not doubted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from sapcli.activations.scoring import Outcomes
from sapcli.datasets.dataset import Dataset
from sapcli.errors import DatasetError
from sapcli.machine.progress import SilentProgress
from sapcli.repairs.class_order.check import compare_order
from sapcli.settings import DataSource

Numbers = npt.NDArray[np.int64]

_FEATURES = 48


@dataclass(frozen=True)
class Trained:
    """A network on the images that it was trained on.

    Attributes:
        classes: How many.
        labels: As they were given in training.
        logits: What it makes of the images, `[n, classes]`.
        accuracy: On other images, all labels right.
    """

    classes: int
    labels: Numbers
    logits: Tensor
    accuracy: float


def trained(seed: int, classes: int, images: int, wrong: float, spread: float, *, pair: bool = False) -> Trained:
    """A network trained on noisy prototypes; classes come in threes that are alike.

    Args:
        seed: Of all that is drawn.
        classes: How many.
        images: Of each class.
        wrong: The part of the labels that is wrong, or of the first two classes' that is exchanged.
        spread: How far images lie from their prototypes.
        pair: Whether wrong labels are exchanged ones of the first two classes alone.
    """
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    prototypes = generator.normal(0, 1, (classes, _FEATURES))
    prototypes += 1.5 * np.repeat(generator.normal(0, 1, (classes // 3 + 1, _FEATURES)), 3, axis=0)[:classes]
    true = np.repeat(np.arange(classes), images)
    inputs, others = (
        torch.tensor(prototypes[true] + generator.normal(0, spread, (len(true), _FEATURES))).float() for _ in range(2)
    )
    labels, drawn = true.copy(), generator.random(len(true)) < wrong
    if pair:
        labels[drawn & (true < 2)] = 1 - true[drawn & (true < 2)]
    else:
        labels[drawn] = generator.integers(0, classes, int(drawn.sum()))
    network = nn.Sequential(nn.Linear(_FEATURES, 32), nn.ReLU(), nn.Linear(32, classes))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.1)
    targets = torch.tensor(labels)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        accuracy = float((network(others).argmax(1) == torch.tensor(true)).double().mean())
        return Trained(classes, labels, network(inputs), accuracy)


def stops(model: Trained, outputs: Sequence[int] | Numbers, suggested: Path) -> bool:
    """Whether a run stops where folders stand for other outputs: that of class `c` is called `outputs[c]`."""
    labels = np.asarray(outputs)[model.labels]
    zeros = torch.zeros(len(labels))
    predictions = model.logits.argmax(1)
    outcomes = Outcomes(
        torch.arange(len(labels)), torch.tensor(labels), zeros.double(), predictions, zeros, zeros.long(), zeros.long()
    )

    def look(indices: Sequence[int], wanted: Sequence[int]) -> tuple[Numbers, npt.NDArray[np.float64]]:
        return labels[list(indices)], model.logits[list(indices)][:, list(wanted)].double().numpy()

    names = tuple(f"class {number:03}" for number in range(model.classes))
    dataset = cast("Dataset", SimpleNamespace(classes=names, root="data", split=None, paths=(), labels=()))
    source = DataSource(Path("data"), suggested_class_map=suggested)
    try:
        compare_order(dataset, outcomes, "model", source, SilentProgress(), look, stop=True)
    except DatasetError:
        return True
    return False


def the_most_confused(model: Trained) -> tuple[int, int]:
    """The two classes that are answered as each other most often, for how often they are answered right."""
    counts = np.zeros((model.classes, model.classes))
    np.add.at(counts, (model.labels, model.logits.argmax(1).numpy()), 1)
    right = counts.diagonal()
    ratios = (counts + counts.T) / (1 + right[:, None] + right[None])
    np.fill_diagonal(ratios, -1)
    first, second = np.unravel_index(ratios.argmax(), ratios.shape)
    return int(first), int(second)


@cache
def knowing(seed: int) -> Trained:
    """One of 20 networks of 3 to 100 classes that have 60% or more of other images right."""
    classes = int(np.geomspace(3, 100, 20)[seed])
    images, wrong = (20, 30, 40)[seed % 3], (0.0, 0.25, 0.4)[seed % 3]
    spread = 6.0
    while True:
        model = trained(seed, classes, images, wrong, spread)
        if model.accuracy >= 0.6:
            return model
        spread *= 0.8


@pytest.mark.parametrize("kind", ["all", "two", "three", "the two most confused"])
@pytest.mark.parametrize("seed", range(20))
def test_another_order_stops_a_run(seed: int, kind: str, tmp_path: Path) -> None:
    model = knowing(seed)
    assert 0.6 <= model.accuracy < 0.9
    generator = np.random.default_rng(seed)
    outputs = np.arange(model.classes)
    if kind == "the two most confused":
        moved = np.array(the_most_confused(model))
    else:
        moved = generator.choice(model.classes, {"all": model.classes, "two": 2, "three": 3}[kind], replace=False)
    outputs[moved] = np.roll(outputs[moved], 1)
    assert stops(model, outputs, tmp_path / "map.csv")
    found = dict(line.split(",") for line in (tmp_path / "map.csv").read_text().splitlines()[1:])
    # The folder that is called like this holds the class that stands at this output.
    right = {f"class {called:03}": output for output, called in enumerate(outputs.tolist())}
    assert np.mean([int(found[name]) == output for name, output in right.items()]) >= 0.9


@pytest.mark.parametrize("seed", range(20))
def test_the_right_order_stops_none(seed: int, tmp_path: Path) -> None:
    assert not stops(knowing(seed), range(knowing(seed).classes), tmp_path / "map.csv")


@pytest.mark.parametrize("seed", range(20))
def test_the_right_order_of_a_weak_network_stops_none(seed: int, tmp_path: Path) -> None:
    """Of 25% accuracy with 40% of the labels wrong, or 40% of two classes' exchanged, memorised or not."""
    classes = (10, 10, 5, 20)[seed % 4]
    spread = 6.0
    while True:
        model = trained(100 + seed, classes, (12, 40)[seed % 2], 0.4, spread, pair=seed % 8 >= 4)
        if model.accuracy <= 0.3:
            break
        spread *= 1.25
    assert model.accuracy >= 0.1
    assert not stops(model, range(classes), tmp_path / "map.csv")
