"""Tests of whether images may be mirrored, with networks that look at one side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sapcli.activations.scoring import Classifier
from sapcli.datasets.dataset import Dataset
from sapcli.datasets.images import Images
from sapcli.machine.progress import SilentProgress
from sapcli.networks.architecture import Architecture, LoadedModel
from sapcli.networks.preprocessing import Preprocessing
from sapcli.polishing.flips import look_at_flips

SIZE = (3, 16, 16)
PREPROCESSING = Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center", "the test")


class Brightness(nn.Module):
    """Tells dark images from bright ones, or where images are bright: on the left or on the right."""

    def __init__(self, sides: bool) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, images: Tensor) -> Tensor:
        """Two logits."""
        brightness = images.mean(dim=(1, 2, 3))
        if self.sides:
            left, right = (half.mean(dim=(1, 2, 3)) for half in images.chunk(2, dim=3))
            brightness = right - left
        return torch.stack([-brightness, brightness], dim=1)


def images_of(folder: Path) -> Images:
    """Twenty dark images and twenty bright ones, each a little brighter on one side than on the other."""
    from PIL import Image

    paths, labels = [], []
    generator = torch.Generator().manual_seed(0)
    for label in (0, 1):
        for number in range(20):
            pixels = torch.randint(0, 60, (16, 16, 3), generator=generator) + 120 * label
            pixels[:, 8:] += 70 * (number % 2)
            pixels[:, :8] += 70 * (1 - number % 2)
            paths.append(f"{label}-{number:02}.png")
            labels.append(label)
            Image.fromarray(pixels.byte().numpy()).save(folder / paths[-1])
    dataset = Dataset(folder, None, ("a", "b"), tuple(paths), tuple(labels))
    return Images(dataset, PREPROCESSING, batch_size=16, workers=0)


@pytest.mark.parametrize("sides", [False, True])
def test_mirrored_images_are_learned_from_where_the_class_stays(tmp_path: Path, sides: bool) -> None:
    images = images_of(tmp_path)
    architecture = Architecture("tests:network", {}, 2, None, PREPROCESSING, "the test")
    classifier = Classifier(LoadedModel(Brightness(sides).eval(), {}, ()), architecture, torch.device("cpu"))
    answers = look_at_flips(classifier, images, range(40), SilentProgress())
    assert answers.keep_the_class is not sides
    assert answers.images == (20 if sides else 40)
    assert answers.kept == (0 if sides else 1)
    assert answers.shifted == 1
    assert json.dumps(answers.worst_kept) == ("0.0" if sides else "1.0")
