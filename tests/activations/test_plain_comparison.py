"""Tests of the choice between the fast and the plain way to run a network."""

from __future__ import annotations

import pytest
import torch
from support.samples import classifier_of
from torch import Tensor, nn

from sapcli.activations.plain_comparison import choose_way
from sapcli.errors import ArchitectureError
from sapcli.machine.progress import SilentProgress


class Notes(SilentProgress):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.noted.append(text)


class ByMemory(nn.Module):
    """Reads its images as they lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(torch.as_strided(images, (len(images), 48), (48, 1)))


class ByLayout(nn.Sequential):
    """Asks for the layout, and does something else in one of them."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return super().forward(images * (1.01 if images.is_contiguous(memory_format=torch.channels_last) else 1))


class Random(nn.Module):
    """Gives something else each time."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return torch.rand(len(images), 2)


def convolutions() -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Conv2d(3 if not layers else 16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 2))


@pytest.mark.parametrize(
    ("network", "as_built", "notes"),
    [
        (ByMemory(), True, 1),
        (ByLayout(nn.Flatten(), nn.Linear(48, 2)), True, 1),
        (Random(), False, 0),
        (convolutions(), False, 0),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), False, 0),
    ],
)
def test_the_fast_layout_is_left_where_it_gives_something_else(network: nn.Module, as_built: bool, notes: int) -> None:
    classifier, progress = classifier_of(network.eval()), Notes()
    choose_way(classifier, progress)
    assert classifier.as_built == as_built
    assert len(progress.noted) == notes
    if notes:
        images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
        mean, std = (torch.tensor(values)[:, None, None] for values in ((0.5, 0.4, 0.6), (0.2, 0.3, 0.4)))
        with torch.no_grad():
            expected = network((images / 255 - mean) / std)
        torch.testing.assert_close(classifier.logits(images), expected, rtol=1e-5, atol=1e-5)


def test_a_network_that_does_not_take_the_images_is_named() -> None:
    with pytest.raises(ArchitectureError, match="cannot run on images of 3x4x4"):
        choose_way(classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(7, 2))), SilentProgress())
