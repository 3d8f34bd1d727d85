"""One cell of the study made ready: its noisy labels, its trained network, and the files that the commands read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.study import networks
from benchmarks.study.cells import Cell, Preset
from benchmarks.study.pictures import Pictures, write_labels
from benchmarks.study.training import Recipe, train
from sapcli.datasets.labels.noise import confusions, noisy_labels
from sapcli.settings import NoiseKind

_GROUPS_OF_DIGITS = (("0", "3", "6", "8", "9"), ("1", "2", "4", "5", "7"))


@dataclass(frozen=True)
class Task:
    """A cell with all that a method needs.

    Attributes:
        cell: Which.
        preset: The size of the study.
        pictures: The images.
        folder: For the cell's files.
        device: Where networks run.
        given: The labels that the training and the validation images have, for the whole pool, `[N]`.
        training: Which of the pool are trained on.
        validation: Which of it validate.
    """

    cell: Cell
    preset: Preset
    pictures: Pictures
    folder: Path
    device: torch.device
    given: Tensor
    training: Tensor
    validation: Tensor

    @classmethod
    def of(cls, cell: Cell, preset: Preset, pictures: Pictures, folder: Path, device: torch.device) -> Task:
        """Draw its images and its wrong labels, and write its label files."""
        generator = torch.Generator().manual_seed(cell.seed)
        order = torch.randperm(len(pictures.labels), generator=generator)[: preset.images]
        validation, training = order[: preset.validation].sort().values, order[preset.validation :].sort().values
        given = pictures.labels.clone()
        for part in (training, validation):
            given[part] = _noisy(pictures, part, cell)
        folder.mkdir(parents=True, exist_ok=True)
        task = cls(cell, preset, pictures, folder, device, given, training, validation)
        for file, part in ((task.training_file, training), (task.validation_file, validation)):
            names = [pictures.classes[label] for label in given[part].tolist()]
            write_labels(file, [pictures.paths[index] for index in part.tolist()], names)
        return task

    @property
    def training_file(self) -> Path:
        """The label file of the training images."""
        return self.pictures.root / f"{self.cell.name}.train.csv"

    @property
    def validation_file(self) -> Path:
        """The label file of the validation images."""
        return self.pictures.root / f"{self.cell.name}.val.csv"

    @property
    def checkpoint(self) -> Path:
        """The trained network."""
        return self.folder / "model.safetensors"

    @property
    def architecture(self) -> str:
        """As `--arch` takes it."""
        return f"{networks.__file__}:{self.cell.network}"

    @cached_property
    def wrong(self) -> Tensor:
        """Which training labels are wrong, bool."""
        return self.given[self.training] != self.pictures.labels[self.training]

    @property
    def recipe(self) -> Recipe:
        """How the cell's network is trained."""
        noise = round(float(self.wrong.float().mean()), 2)
        return Recipe(self.preset.epochs, self.preset.batch_size, self.cell.training, noise=noise)

    @property
    def recipe_to_go_on(self) -> Recipe:
        """How methods train on: a few well-regularised epochs."""
        return Recipe(self.preset.polish_epochs, min(128, self.preset.batch_size), "mixup", crops=True, averaged=True)

    def network(self, weights: Path | None = None) -> nn.Module:
        """The network with the weights of a file; new ones where `None`."""
        torch.manual_seed(self.cell.seed)
        network: nn.Module = getattr(networks, self.cell.network)(len(self.pictures.classes))
        if weights is not None:
            network.load_state_dict(load_file(weights))
        return network.eval()

    def images(self, indices: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pixels and given labels, or others, of some of the pool."""
        labels = self.given if labels is None else labels
        return self.pictures.images[indices], labels[indices]

    def make_network(self) -> None:
        """Train the cell's network, unless it is there."""
        if not self.checkpoint.exists():
            trained = train(self.network(), *self.images(self.training), self.recipe, self.device, self.cell.seed)
            save(trained, self.checkpoint)


def save(network: nn.Module, file: Path) -> None:
    """Write a network's weights, whole or not at all."""
    draft = file.with_suffix(".part")
    save_file({name: value.contiguous().cpu() for name, value in network.state_dict().items()}, draft)
    draft.rename(file)


def _noisy(pictures: Pictures, part: Tensor, cell: Cell) -> Tensor:
    labels = pictures.labels[part]
    kind, _, detail = cell.noise.partition("-")
    if kind == "none":
        return labels
    if kind == "human":
        return pictures.human[detail][part]
    groups = () if "cat" in pictures.classes else _GROUPS_OF_DIGITS
    taken_for = confusions(NoiseKind(kind), pictures.classes, groups=groups)
    noisy = noisy_labels(labels.numpy(), pictures.classes, taken_for, int(detail) / 100, cell.seed)
    return torch.from_numpy(noisy)
