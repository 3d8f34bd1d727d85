"""How a network is trained on: what fits its kind, the size of its images and their number, with nothing to tune."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701 - the one name for all of them

from sapcli.errors import UsageError
from sapcli.repairs.layer_plan import matches
from sapcli.settings import PolishSettings

USUAL_EPOCHS = 3
# A run of fewer steps has no time to settle: where images are few, more epochs cost little.
_FEWEST_STEPS, _MOST_EPOCHS = 400, 30
_MOST_EPOCHS_IN_TIME = 60
_USUAL_BATCH, _SMALLEST_BATCH = 128, 16
# Where an epoch would have fewer steps than these, batches are smaller.
_STEPS_AN_EPOCH = 40
# Learning rates follow the batch size up to here.
_LARGEST_FACTOR = 4.0


class Optimizer(StrEnum):
    """What follows the gradient, by timm's names."""

    SGD = "sgd"
    """With Nesterov momentum: for convolutions with BatchNorm."""
    ADAMW = "adamw"
    """For all others: LayerNorm, attention, no normalisation at all."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training.

    Attributes:
        optimizer: What follows the gradient.
        learning_rate: At its peak.
        weight_decay: Of weights of two or more dimensions.
        most_gradient: The norm at which gradients are cut off.
        mixup: The parameter of mixup's Beta distribution.
        batch_size: Images a step, an even number.
        epochs: Passes over the training images, at most.
        steps: How many steps they have, at most.
    """

    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    most_gradient: float
    batch_size: int
    epochs: int
    steps: int
    mixup: float = 0.2

    @property
    def steps_an_epoch(self) -> int:
        """How many steps one pass over the images has."""
        return self.steps // self.epochs

    def __str__(self) -> str:
        """The recipe in a line."""
        name = "SGD" if self.optimizer is Optimizer.SGD else "AdamW"
        return f"{name} at {self.learning_rate:.3g}, batches of {self.batch_size}, mixup {self.mixup:g}"


def recipe_for(module: nn.Module, images: int, settings: PolishSettings, batch_size: int | None) -> Recipe:
    """The recipe for a network and so many training images.

    Args:
        module: The network.
        images: How many there are.
        settings: What the user says.
        batch_size: Images a step, as the user says.

    Raises:
        UsageError: There are too few images to train on.
    """
    if images < 2:
        raise UsageError(f"{images} training images are too few to train on", "give more, or use `sap project`")
    size = batch_size or _usual_batch(images)
    size = max(min(size, images) // 2 * 2, 2)
    steps = images // size
    epochs = settings.epochs
    if epochs is None and settings.max_minutes is not None:
        epochs = max(_MOST_EPOCHS_IN_TIME, USUAL_EPOCHS)
    elif epochs is None:
        epochs = min(max(math.ceil(_FEWEST_STEPS / steps), USUAL_EPOCHS), _MOST_EPOCHS)
    factor = min(size / _USUAL_BATCH, _LARGEST_FACTOR)
    if uses_batchnorm_alone(module):
        return Recipe(Optimizer.SGD, 0.1 * factor, 5e-4, 5.0, size, epochs, epochs * steps)
    return Recipe(Optimizer.ADAMW, 1e-3 * math.sqrt(factor), 0.05, 1.0, size, epochs, epochs * steps)


def _usual_batch(images: int) -> int:
    size = _USUAL_BATCH
    while size > _SMALLEST_BATCH and images // size < _STEPS_AN_EPOCH:
        size //= 2
    return size


def uses_batchnorm_alone(module: nn.Module) -> bool:
    """Whether a network has BatchNorm layers, and neither another normalisation nor attention."""
    others = (nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)
    kinds = [type(part) for part in module.modules()]
    normed = any(issubclass(kind, _BatchNorm) for kind in kinds)
    # Layers of libraries that have a forward of their own are known by their names.
    named = any(word in kind.__name__ for kind in kinds for word in ("LayerNorm", "RmsNorm", "RMSNorm", "Attention"))
    return normed and not named and not any(issubclass(kind, others) for kind in kinds)


def trainable(module: nn.Module, settings: PolishSettings, kept: Sequence[str], num_classes: int) -> list[str]:
    """The names of the parameters that are trained.

    Args:
        module: The network.
        settings: What the user says.
        kept: Those that cannot be changed.
        num_classes: The network's number of outputs, by which its classifier is recognised.

    Raises:
        UsageError: A pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, parameter in module.named_parameters() if parameter.is_floating_point()]
    for pattern in settings.freeze:
        if not any(matches(name, pattern) for name in names):
            raise UsageError(
                f"--freeze {pattern} matches no parameter", f"names are like {names[0]}; see `sap inspect`"
            )
    if settings.head_only:
        heads = _heads(module, num_classes)
        if not heads:
            raise UsageError(
                f"--head-only: no layer of {num_classes} outputs is the network's last", "use --freeze PATTERN"
            )
        names = [name for name in names if any(name.startswith(f"{head}.") or name == head for head in heads)]
    left = [
        name for name in names if name not in kept and not any(matches(name, pattern) for pattern in settings.freeze)
    ]
    if not left:
        raise UsageError("no parameter is left to train", "leave out --freeze or --head-only")
    return left


def _heads(module: nn.Module, num_classes: int) -> list[str]:
    """The modules of the last weights that have one output a class."""
    found: list[str] = []
    weights = [(name, parameter) for name, parameter in module.named_parameters() if parameter.dim() > 1]
    for name, parameter in reversed(weights):
        if parameter.shape[0] != num_classes:
            break
        found.append(name.rpartition(".")[0] or name)
    return found
