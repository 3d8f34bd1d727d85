"""Small folders of images, and classifiers to run on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from sapcli.activations.scoring import Classifier, Outcomes
from sapcli.datasets.dataset import Role, open_dataset
from sapcli.datasets.images import Images
from sapcli.networks.architecture import Architecture, LoadedModel
from sapcli.networks.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((3, 4, 4), (0.5, 0.4, 0.6), (0.2, 0.3, 0.4), "bilinear", 1.0, "center", "the tests")


def folder_of(folder: Path, classes: Mapping[str, int], side: int = 4) -> Path:
    """Write `count` random square images, of 4 x 4 pixels, for each class, named 00.png, 01.png, ..."""
    generator = torch.Generator().manual_seed(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number:02}.png")
    return folder


def images_of(folder: Path, batch_size: int = 3) -> Images:
    """The images of a folder of class folders."""
    classes = sum(path.is_dir() for path in folder.iterdir())
    dataset = open_dataset(folder, Role.LEARN, classes)
    assert dataset is not None
    return Images(dataset, PREPROCESSING, batch_size=batch_size, workers=0)


def classifier_of(module: nn.Module, num_classes: int = 2) -> Classifier:
    """The module as a classifier whose entries have the parameters' own names."""
    names = {name: name for name in module.state_dict()}
    architecture = Architecture("tests:network", {}, num_classes, None, PREPROCESSING, "the tests")
    return Classifier(LoadedModel(module, names, ()), architecture, torch.device("cpu"))


def outcomes_of(labels: list[int], predictions: list[int], indices: list[int] | None = None) -> Outcomes:
    """Outcomes with these predictions, and losses and confidences of no importance."""
    count = len(labels)
    right = torch.tensor(labels) == torch.tensor(predictions)
    numbers: Tensor = torch.tensor(indices if indices is not None else range(count))
    return Outcomes(
        numbers,
        torch.tensor(labels),
        torch.ones(count),
        torch.tensor(predictions),
        torch.full((count,), 0.5),
        (~right).long(),
        torch.ones(count, dtype=torch.int64),
    )
