"""Tests of the recipe that fits a network, and of which parameters are trained."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from sapcli.errors import UsageError
from sapcli.polishing.recipe import Optimizer, recipe_for, trainable
from sapcli.settings import PolishSettings

DEFAULTS = PolishSettings()


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("resnet18", Optimizer.SGD),
        ("efficientnet_b0", Optimizer.SGD),
        ("mobilenetv3_small_050", Optimizer.SGD),
        ("convnext_atto", Optimizer.ADAMW),
        ("vit_tiny_patch16_224", Optimizer.ADAMW),
        ("swinv2_tiny_window8_256", Optimizer.ADAMW),
        ("mobilevit_xxs", Optimizer.ADAMW),
        ("vgg11", Optimizer.ADAMW),
    ],
)
def test_the_optimizer_follows_the_normalisation(name: str, optimizer: Optimizer) -> None:
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=10)
    recipe = recipe_for(module, 20_000, DEFAULTS, None)
    assert recipe.optimizer is optimizer
    assert recipe.learning_rate == pytest.approx(0.1 if optimizer is Optimizer.SGD else 1e-3)
    assert (recipe.batch_size, recipe.epochs, recipe.steps) == (128, 3, 3 * 156)


@pytest.mark.parametrize(
    ("images", "given", "settings", "size", "epochs"),
    [
        (20_000, None, DEFAULTS, 128, 3),
        (1_000, None, DEFAULTS, 16, 7),
        (1_000, None, PolishSettings(epochs=2), 16, 2),
        (100, None, DEFAULTS, 16, 30),
        (7, None, DEFAULTS, 6, 30),
        (20_000, 65, DEFAULTS, 64, 3),
        (20_000, 256, PolishSettings(epochs=8), 256, 8),
        (100, 1000, DEFAULTS, 100, 30),
    ],
)
def test_batches_and_epochs_follow_the_number_of_images(
    images: int, given: int | None, settings: PolishSettings, size: int, epochs: int
) -> None:
    recipe = recipe_for(nn.Sequential(nn.BatchNorm2d(3)), images, settings, given)
    assert (recipe.batch_size, recipe.epochs) == (size, epochs)
    assert recipe.steps == epochs * (images // size)
    assert recipe.learning_rate == pytest.approx(0.1 * min(size / 128, 4))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UsageError, match="1 training images"):
        recipe_for(nn.Linear(2, 2), 1, DEFAULTS, None)


def test_what_is_trained() -> None:
    module = torchvision.models.resnet18(num_classes=7)
    names = [name for name, _ in module.named_parameters()]
    assert trainable(module, DEFAULTS, [], 7) == names
    assert trainable(module, PolishSettings(head_only=True), [], 7) == ["fc.weight", "fc.bias"]
    frozen = trainable(module, PolishSettings(freeze=("layer1", "*.bias")), ["fc.weight"], 7)
    assert frozen == [
        name for name in names if not name.startswith("layer1.") and not name.endswith(".bias") and name != "fc.weight"
    ]
    with pytest.raises(UsageError, match="--freeze head matches no parameter"):
        trainable(module, PolishSettings(freeze=("head",)), [], 7)
    with pytest.raises(UsageError, match="no parameter is left"):
        trainable(module, PolishSettings(freeze=("*",)), [], 7)
    with pytest.raises(UsageError, match="--head-only"):
        trainable(module, PolishSettings(head_only=True), [], 8)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("vit_tiny_patch16_224", {"head.weight", "head.bias"}),
        ("deit_tiny_distilled_patch16_224", {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}),
        ("convnext_atto", {"head.fc.weight", "head.fc.bias"}),
    ],
)
def test_heads_of_timm(name: str, heads: set[str]) -> None:
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=7)
    assert set(trainable(module, PolishSettings(head_only=True), [], 7)) == heads
