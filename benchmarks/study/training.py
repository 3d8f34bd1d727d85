"""Training, plain and in ways that are robust to wrong labels, on images that stay on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

_SAM_RADIUS = 0.1
_LOGIT_CLIP = 2.0
_SMOOTHING = 0.1


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images a step.
        way: `plain`, or one of the robust ways.
        crops: Whether images are shifted by up to 4 pixels.
        averaged: Whether the average of the weights is what is kept.
        rate: The highest learning rate; the usual one of the optimiser where `None`.
        noise: The share of wrong labels that the small-loss selection is told.
    """

    epochs: int
    batch_size: int
    way: str = "plain"
    crops: bool = False
    averaged: bool = False
    rate: float | None = None
    noise: float = 0.25


def has_batchnorm(network: nn.Module) -> bool:
    """Whether a network normalises over the batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def normalised(images: Tensor, network: nn.Module) -> Tensor:
    """uint8 `[B, 3, H, W]` as the network takes it."""
    mean, std = (
        torch.tensor(network.pretrained_cfg[key], device=images.device).view(3, 1, 1) for key in ("mean", "std")
    )
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def train(
    network: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, device: torch.device, seed: int
) -> nn.Module:
    """Train a network and return it, or the average of its weights, in eval mode.

    SGD for networks with BatchNorm, AdamW for others, with one cycle of the learning rate; flips.

    Args:
        network: With `pretrained_cfg`; its weights are where training starts.
        images: uint8 `[N, 3, H, W]`.
        labels: `[N]`.
        recipe: How.
        device: Where.
        seed: For the order, the flips and what the way of training draws.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    network = network.to(device, memory_format=torch.channels_last)
    images, labels = images.to(device), labels.to(device)
    convolutions = has_batchnorm(network)
    steps = len(images) // recipe.batch_size
    optimiser: torch.optim.Optimizer
    if convolutions:
        rate = recipe.rate or 0.1 * recipe.batch_size / 128
        optimiser = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    else:
        rate = recipe.rate or 1e-3
        optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=max(recipe.epochs * steps + 1, 10), pct_start=0.2
    )
    average = ModelEmaV3(network, decay=0.99) if recipe.averaged else None
    classes = logits(network, images[:2], device).shape[1]
    way = _WAYS[recipe.way](network, optimiser, recipe, classes)
    for epoch in range(recipe.epochs):
        network.train()
        order = torch.randperm(len(images), device=device)
        for step in range(steps):
            chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            way(_augmented(images[chosen], network, recipe.crops), labels[chosen], epoch / recipe.epochs)
            schedule.step()
            if average is not None:
                average.update(network)
    if average is not None:
        network = average.module
        if convolutions:
            batches = images[torch.randperm(len(images), device=device)[:2560]].split(256)
            update_bn([normalised(batch, network) for batch in batches], network)
    return network.eval()


def _augmented(images: Tensor, network: nn.Module, crops: bool) -> Tensor:
    height, width = images.shape[2:]
    # Digits are not what they are when they are turned over.
    if height > 16:
        flip = torch.rand(len(images), device=images.device) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
    if crops:
        padded = functional.pad(images.float(), (4, 4, 4, 4), mode="reflect")
        down, across = torch.randint(0, 9, (2, len(images), 1), device=images.device)
        rows = down + torch.arange(height, device=images.device)
        columns = across + torch.arange(width, device=images.device)
        of_each = torch.arange(len(images), device=images.device)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[of_each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return normalised(images, network)


Step = Callable[[Tensor, Tensor, float], None]
"""One step on images `[B, 3, H, W]` and labels `[B]`, at a point of the training in [0, 1)."""


def _forward(network: nn.Module, images: Tensor) -> Tensor:
    # Small images on a CPU take longer in bfloat16.
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.shape[-1] > 16):
        return network(images)


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def _simple(criterion: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Step]:
    def make(network: nn.Module, optimiser: torch.optim.Optimizer, _recipe: Recipe, _classes: int) -> Step:
        def step(images: Tensor, labels: Tensor, _when: float) -> None:
            _descend(optimiser, criterion(_forward(network, images).float(), labels))

        return step

    return make


def _smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, label_smoothing=_SMOOTHING)


def _clipped(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits of bounded norm (Wei et al., "Mitigating Memorization of Noisy Labels", ICML 2023)."""
    norm = logits.norm(dim=1, keepdim=True).clamp(min=1e-7)
    return functional.cross_entropy(torch.where(norm > _LOGIT_CLIP, logits / norm * _LOGIT_CLIP, logits), labels)


def _mixup(network: nn.Module, optimiser: torch.optim.Optimizer, recipe: Recipe, classes: int) -> Step:
    """Convex combinations of images and labels (Zhang et al., ICLR 2018); weakly where the average is kept."""
    mix = Mixup(mixup_alpha=0.2 if recipe.averaged else 1.0, num_classes=classes, label_smoothing=0.0)
    criterion = SoftTargetCrossEntropy()

    def step(images: Tensor, labels: Tensor, _when: float) -> None:
        mixed, targets = mix(images, labels)
        _descend(optimiser, criterion(_forward(network, mixed).float(), targets))

    return step


def _sam(network: nn.Module, optimiser: torch.optim.Optimizer, _recipe: Recipe, _classes: int) -> Step:
    """Sharpness-aware minimisation (Foret et al., ICLR 2021)."""
    parameters = list(network.parameters())

    def step(images: Tensor, labels: Tensor, _when: float) -> None:
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(_forward(network, images).float(), labels).backward()
        gradients = [parameter.grad for parameter in parameters]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().clamp(min=1e-12)
        moves = [gradient * (_SAM_RADIUS / norm) for gradient in gradients]
        with torch.no_grad():
            torch._foreach_add_(parameters, moves)
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(_forward(network, images).float(), labels).backward()
        with torch.no_grad():
            torch._foreach_sub_(parameters, moves)
        optimiser.step()

    return step


def _small_loss(network: nn.Module, optimiser: torch.optim.Optimizer, recipe: Recipe, _classes: int) -> Step:
    """Of each batch only the samples with a small loss (co-teaching's rule, Han et al., NeurIPS 2018, on one network).

    It stands in the place of MentorMix.
    """

    def step(images: Tensor, labels: Tensor, when: float) -> None:
        losses = functional.cross_entropy(_forward(network, images).float(), labels, reduction="none")
        kept = round(len(losses) * (1 - recipe.noise * min(1.0, when / 0.3)))
        _descend(optimiser, losses.topk(kept, largest=False).values.mean())

    return step


_WAYS: dict[str, Callable[..., Step]] = {
    "plain": _simple(functional.cross_entropy),
    "label-smoothing": _simple(_smoothed),
    "logit-clip": _simple(_clipped),
    "mixup": _mixup,
    "sam": _sam,
    "small-loss": _small_loss,
}


@torch.no_grad()
def logits(network: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """What a network says of images, float32 `[N, classes]`, on the CPU."""
    network = network.to(device).eval()
    return torch.cat([network(normalised(batch.to(device), network)).float().cpu() for batch in images.split(1000)])


def accuracy(network: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """In per cent."""
    return round(100 * float((logits(network, images, device).argmax(1) == labels).float().mean()), 2)
