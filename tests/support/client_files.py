"""Images for networks that other tools have trained, and those tools' own numbers on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from support.small_project import Outcome, run_here
from torch import Tensor, nn

CLASSES = ("ape", "bee", "cow", "doe")
_OF_EACH = 10


@dataclass(frozen=True)
class Pictures:
    """A folder of class folders, with the paths and labels of its images."""

    folder: Path
    paths: tuple[Path, ...]
    labels: tuple[str, ...]

    def label_numbers(self, classes: Sequence[str]) -> Tensor:
        """The labels as outputs of a network that has the classes in this order."""
        return torch.tensor([classes.index(label) for label in self.labels])


def write_pictures(folder: Path, sizes: Sequence[tuple[int, int]] = ((32, 32),)) -> Pictures:
    """Forty images in four class folders, of smooth noise that tells nothing; the sizes (width, height) take turns."""
    generator = np.random.default_rng(0)
    paths, labels = [], []
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(_OF_EACH):
            coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            path = folder / name / f"{number}.png"
            size = sizes[number % len(sizes)]
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
            paths.append(path)
            labels.append(name)
    return Pictures(folder, tuple(paths), tuple(labels))


def numbers(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 in percent, and the mean cross-entropy."""
    top1 = float((logits.argmax(1) == labels).double().mean()) * 100
    return top1, float(nn.functional.cross_entropy(logits.double(), labels))


def logits_of(network: nn.Module, pictures: Pictures, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """What a network makes of the images, each alone."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(transform(Image.open(path).convert("RGB"))[None]) for path in pictures.paths])


def evaluated(*arguments: str | Path) -> tuple[float, float]:
    """Top-1 and loss by `sap eval`."""
    return metrics_of(run_here("eval", *arguments, "--format", "json", "--workers", "0"))


def metrics_of(outcome: Outcome) -> tuple[float, float]:
    """Top-1 and loss of an evaluation that has ended."""
    assert outcome.status == 0, outcome.stderr
    metrics = json.loads(outcome.stdout)
    return metrics["top1"], metrics["loss"]


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with weights and statistics that differ from each other, as those of a trained one do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(0.5 + noise).add_(0.05 * noise)
    return network.eval()
