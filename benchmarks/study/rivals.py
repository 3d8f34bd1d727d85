"""Other ways to repair a trained network, for comparison.

Each takes the network and returns it changed, in eval mode.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.study.training import Recipe, accuracy, normalised, train

Images = tuple[Tensor, Tensor]
"""Pixels uint8 `[N, 3, H, W]`, and labels `[N]`."""

# Selective synaptic dampening: how much more important to the forget set a parameter has to be, chosen on validation.
_SSD_THRESHOLDS = tuple(10.0**exponent for exponent in range(1, 10))
_SCRUB_ROUNDS, _SCRUB_RATE, _SCRUB_BATCH = 4, 5e-4, 64


def fine_tune(network: nn.Module, trusted: Images, recipe: Recipe, device: torch.device, seed: int) -> nn.Module:
    """Training that goes on, on samples that are trusted."""
    return train(network, *trusted, recipe, device, seed)


def ssd(network: nn.Module, retain: Images, forget: Images, validation: Images, device: torch.device) -> nn.Module:
    """Selective synaptic dampening (Foster et al., AAAI 2024), its threshold chosen on validation images.

    The network as it was is a candidate.

    Parameters that matter `t` times more to the forget set than to the retain set, by the diagonal of the Fisher
    information, are multiplied with the quotient of the two.
    """
    network = network.to(device).eval()
    important, to_forget = (_fisher(network, *images, device) for images in (retain, forget))
    candidates = [(accuracy(network, *validation, device), math.inf, network)]
    for threshold in _SSD_THRESHOLDS:
        dampened = copy.deepcopy(network)
        with torch.no_grad():
            for parameter, kept, forgotten in zip(dampened.parameters(), important, to_forget, strict=True):
                chosen = forgotten > threshold * kept
                parameter[chosen] *= (kept / forgotten.clamp(min=1e-30))[chosen].clamp(max=1)
        candidates.append((accuracy(dampened, *validation, device), threshold, dampened))
    return max(candidates, key=lambda candidate: candidate[:2])[2]


def _fisher(network: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> list[Tensor]:
    """The mean squared gradient of the loss, over batches of one sample each for exactness of the square."""
    parameters = dict(network.named_parameters())

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(torch.func.functional_call(network, values, (image[None],)), label[None])

    squares = [torch.zeros_like(value) for value in parameters.values()]
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    for batch, targets in zip(images.split(16), labels.split(16), strict=True):
        found = gradients(parameters, normalised(batch.to(device), network), targets.to(device))
        for square, gradient in zip(squares, found.values(), strict=True):
            square += gradient.detach().square().sum(0)
    return [square / len(images) for square in squares]


def scrub(
    network: nn.Module, retain: Images, forget: Images, validation: Images, device: torch.device, seed: int
) -> nn.Module:
    """SCRUB (Kurmanji et al., NeurIPS 2023): away from the teacher on the forget set, towards it on the retain set.

    Of its rounds, and of the network as it was, the one that is best on validation images is taken.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher = copy.deepcopy(network).to(device).eval()
    student = network.to(device)
    optimiser = torch.optim.Adam(student.parameters(), _SCRUB_RATE)
    student.eval()  # BatchNorm statistics stay: the sets are small
    rounds = [(accuracy(network, *validation, device), -1, copy.deepcopy(network))]
    for round_ in range(_SCRUB_ROUNDS):
        if round_ < _SCRUB_ROUNDS - 1:
            for images, _ in _batches(forget, generator, device):
                shown = normalised(images, student)
                _descend(optimiser, -_divergence(student(shown), teacher(shown)))
        for images, labels in _batches(retain, generator, device):
            shown = normalised(images, student)
            answers = student(shown)
            _descend(optimiser, functional.cross_entropy(answers, labels) + _divergence(answers, teacher(shown)))
        rounds.append((accuracy(student, *validation, device), round_, copy.deepcopy(student)))
    return max(rounds, key=lambda candidate: candidate[:2])[2]


def _batches(data: Images, generator: torch.Generator, device: torch.device) -> list[Images]:
    order = torch.randperm(len(data[0]), generator=generator).split(_SCRUB_BATCH)
    return [(data[0][chosen].to(device), data[1][chosen].to(device)) for chosen in order]


def _divergence(answers: Tensor, reference: Tensor) -> Tensor:
    return functional.kl_div(
        answers.log_softmax(1), reference.detach().log_softmax(1), reduction="batchmean", log_target=True
    )


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 5.0)
    optimiser.step()
