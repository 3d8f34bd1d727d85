"""Tests of the steps: against a loop in plain PyTorch, interrupted and gone on, led astray, and in small portions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sapcli.activations.scoring import Classifier
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import SilentProgress
from sapcli.networks.architecture import Architecture, LoadedModel
from sapcli.networks.preprocessing import Preprocessing
from sapcli.polishing.augmentation import Augmentation
from sapcli.polishing.course import Snapshot
from sapcli.polishing.recipe import Optimizer, Recipe
from sapcli.polishing.reproducible import seed_of
from sapcli.polishing.targets import as_given
from sapcli.polishing.training import Task, Training, logits_of, mixed_up, parts_at_rest
from sapcli.settings import Augment

IMAGES, CLASSES, BATCH, EPOCHS, SEED = 40, 3, 8, 2, 5
SIZE = (3, 8, 8)


class Said(SilentProgress):
    """What was said."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)


class Stored:
    """Pixels in memory."""

    def __init__(self) -> None:
        self.pixels = torch.randint(0, 256, (IMAGES, *SIZE), dtype=torch.uint8)

    def batches(self, order: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in that order."""
        for indices in torch.split(torch.tensor(order), size):
            yield indices, self.pixels[indices]


def network(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    layers: list[nn.Module] = [nn.Conv2d(3, 6, 3, padding=1)]
    layers += [nn.BatchNorm2d(6)] if norm else []
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(384, CLASSES)).eval()


def task_of(module: nn.Module, optimizer: Optimizer = Optimizer.SGD, **changes: Any) -> Task:
    torch.manual_seed(0)
    preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, "bilinear", 1.0, "center", "the test")
    architecture = Architecture("tests:network", {}, CLASSES, None, preprocessing, "the test")
    classifier = Classifier(LoadedModel(module, {}, ()), architecture, torch.device("cpu"))
    recipe = Recipe(optimizer, 0.01, 0.01, 1.0, BATCH, EPOCHS, EPOCHS * IMAGES // BATCH, mixup=0.0)
    task = Task(
        classifier=classifier,
        names=[name for name, _ in module.named_parameters()],
        pixels=Stored(),  # type: ignore[arg-type]
        targets=as_given([int(label) for label in torch.randint(CLASSES, (IMAGES,))], CLASSES),
        indices=range(IMAGES),
        augmentation=Augmentation(Augment.NONE, False, SIZE),
        recipe=recipe,
        seed=SEED,
        dtype=None,
        portion=BATCH,
    )
    return replace(task, **changes)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def in_plain_pytorch(module: nn.Module, task: Task, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The same training, written down once more without any of its parts."""
    pixels = task.pixels.pixels  # type: ignore[attr-defined]
    labels = task.targets.classes[:, 0]
    peaks = [group["lr"] for group in optimizer.param_groups]
    averages = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    steps, done = EPOCHS * IMAGES // BATCH, 0
    module.train()
    for epoch in range(1, EPOCHS + 1):
        generator = torch.Generator().manual_seed(seed_of(SEED, epoch))
        for chosen in torch.randperm(IMAGES, generator=generator).split(BATCH):
            share = done / steps
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                if share < 0.3:
                    group["lr"] = peak / 25 + (peak - peak / 25) * share / 0.3
                else:
                    group["lr"] = peak * (1 + math.cos(math.pi * (share - 0.3) / 0.7)) / 2
            inputs = (pixels[chosen] / 255 - 0.5) / 0.25
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs), labels[chosen]).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            done += 1
            decay = 1 - max(1 / 100, 5 / steps)
            for name, parameter in module.named_parameters():
                averages[name] = decay * averages[name] + (1 - decay) * parameter.detach()
    return averages


@pytest.mark.parametrize("optimizer", Optimizer)
def test_the_steps_are_those_of_a_plain_loop(optimizer: Optimizer) -> None:
    module = network()
    course = Training(task_of(module, optimizer), SilentProgress(), Ranks()).run()
    plain = network()
    biases = [parameter for parameter in plain.parameters() if parameter.dim() < 2]
    others = [parameter for parameter in plain.parameters() if parameter.dim() > 1]
    groups = [{"params": biases, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.01}]
    made = (
        torch.optim.SGD(groups, 0.01, momentum=0.9, nesterov=True)
        if optimizer is Optimizer.SGD
        else torch.optim.AdamW(groups, 0.01)
    )
    expected = in_plain_pytorch(plain, task_of(plain), made)
    first = weights(network())
    for name, tensor in weights(module).items():
        assert torch.dist(tensor, first[name]) > 1e-3
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
    assert course.steps == EPOCHS * IMAGES // BATCH
    assert not module.training


@pytest.mark.parametrize("optimizer", Optimizer)
def test_a_training_that_goes_on_ends_with_the_same_bytes(optimizer: Optimizer) -> None:
    augmentation = Augmentation(Augment.AUTO, True, SIZE)
    changes = {"augmentation": augmentation, "recipe": Recipe(optimizer, 0.02, 0.01, 1.0, BATCH, 4, 20)}
    whole, kept = network(norm=True), []
    Training(task_of(whole, **changes), SilentProgress(), Ranks(), kept.append).run()
    assert len(kept) == 4
    for snapshot in kept:
        again = network(norm=True)
        # Numbers go through JSON and tensors through a file: nothing but these may count.
        copied = Snapshot({name: tensor.clone() for name, tensor in snapshot.tensors.items()}, dict(snapshot.numbers))
        torch.manual_seed(99)
        Training(task_of(again, **changes), SilentProgress(), Ranks()).run(copied)
        for name, tensor in weights(again).items():
            assert torch.equal(tensor, weights(whole)[name]), name


def test_the_process_s_random_numbers_are_left_alone() -> None:
    import numpy as np

    torch.manual_seed(3)
    np.random.seed(3)
    task = task_of(network(), recipe=Recipe(Optimizer.SGD, 0.01, 0.0, 1.0, BATCH, 1, 5))
    torch.manual_seed(3)
    Training(task, SilentProgress(), Ranks()).run()
    after = torch.rand(3), np.random.rand(3).tolist()
    torch.manual_seed(3)
    np.random.seed(3)
    assert torch.equal(after[0], torch.rand(3))
    assert after[1] == np.random.rand(3).tolist()
    assert not torch.are_deterministic_algorithms_enabled()


def test_portions_that_fit_into_memory_give_the_same_gradients() -> None:
    whole, parts = network(), network()
    for module, portion in ((whole, BATCH), (parts, 3)):
        recipe = Recipe(Optimizer.SGD, 0.01, 0.0, 1.0, BATCH, 2, 10)
        Training(task_of(module, recipe=recipe, portion=portion), SilentProgress(), Ranks()).run()
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=1e-5, atol=1e-7)


def test_a_lack_of_memory_halves_the_portions() -> None:
    class Hungry(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 2:
                raise RuntimeError("CUDA out of memory")
            return super().forward(images)

    whole, said = network(), Said()
    hungry = Hungry(*network())
    for module in (whole, hungry):
        Training(task_of(module), said, Ranks()).run()
    assert [warning.split(":")[1] for warning in said.warnings] == [" going on with 4", " going on with 2"]
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(hungry)[name], tensor, rtol=1e-5, atol=1e-7)


def test_a_run_that_diverges_is_begun_again_lower_and_in_the_end_given_up() -> None:
    recipe = Recipe(Optimizer.SGD, 1e4, 0.0, 1e9, BATCH, 20, 100, mixup=0.0)
    module, said = network(), Said()
    course = Training(task_of(module, recipe=recipe), said, Ranks()).run()
    assert not course.settled
    assert len(said.warnings) == 3
    for name, tensor in weights(network()).items():
        assert torch.equal(weights(module)[name], tensor)

    module, said = network(), Said()
    course = Training(task_of(module, recipe=replace(recipe, learning_rate=1.0)), said, Ranks()).run()
    assert course.settled
    assert 1 <= course.restarts <= 3
    assert course.learning_rate == 1.0 / 4**course.restarts


def test_only_what_is_to_be_trained_changes() -> None:
    module = network(norm=True)
    first = weights(module)
    Training(task_of(module, names=["4.weight", "4.bias"]), SilentProgress(), Ranks()).run()
    changed = {name for name, tensor in weights(module).items() if not torch.equal(tensor, first[name])}
    assert changed == {"4.weight", "4.bias"}
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_parts_without_trained_parameters_are_at_rest() -> None:
    module = network(norm=True)
    assert parts_at_rest(module, {"0.weight": module[0].weight}) == [module[1], module[4]]  # type: ignore[dict-item]


def test_mixup_mixes_images_and_targets_alike() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(6, 3, 4, 4), torch.eye(6)
    found, mixed = mixed_up(inputs.clone(), targets, 0.2)
    # One-hot targets of every image tell how much of which image is in it.
    torch.testing.assert_close(found, torch.einsum("nm,mchw->nchw", mixed, inputs))
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(6))
    assert mixed_up(inputs, targets, 0.0)[1] is targets


def test_the_logits_of_networks_that_give_more_while_they_are_trained() -> None:
    logits, other = torch.zeros(2, 3), torch.ones(2, 3)
    assert logits_of(logits, 2) is logits
    assert logits_of((logits, other), 2) is logits
    assert logits_of(SimpleNamespace(logits=logits, aux=other), 2) is logits
