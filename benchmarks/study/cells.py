"""The cells of the study: one network, trained in one way on one kind of wrong labels."""

from __future__ import annotations

from dataclasses import dataclass

NOISES = (
    "symmetric-10",
    "symmetric-25",
    "symmetric-50",
    "asymmetric-10",
    "asymmetric-25",
    "asymmetric-40",
    "hierarchical-25",
    "human-worse",
    "human-aggregate",
    "human-random1",
    "none",
)
TRAININGS = ("plain", "mixup", "sam", "logit-clip", "label-smoothing", "small-loss")


@dataclass(frozen=True)
class Cell:
    """One trained network, which every method repairs.

    Attributes:
        noise: A kind and its rate in per cent, whose labels people gave, or `none`.
        network: A function of `networks.py`.
        training: How it is trained; see `training.py`.
        seed: For the noise, the validation images, the first weights and the order of the images.
    """

    noise: str
    network: str
    training: str = "plain"
    seed: int = 0

    @property
    def name(self) -> str:
        """What the cell's folder is called."""
        return f"{self.network}.{self.noise}.{self.training}.{self.seed}"


@dataclass(frozen=True)
class Preset:
    """A size of the study.

    Attributes:
        source: `digits` (scikit-learn's, 8 pixels) or `cifar10`.
        images: How many images there are to train on and to validate with.
        validation: How many of these validate.
        trusted: How many samples are trusted.
        epochs: Of the training.
        batch_size: Of the training.
        polish_epochs: Of the methods that train on.
        cells: In the order in which they are done.
    """

    source: str
    images: int
    validation: int
    trusted: int
    epochs: int
    batch_size: int
    polish_epochs: int
    cells: tuple[Cell, ...]


def _small() -> tuple[Cell, ...]:
    half, convnext = "resnet18_half", "convnext_small_images"
    cells = [Cell(noise, network) for noise in ("symmetric-25", "none") for network in (half, convnext)]
    cells += [Cell(noise, network) for noise in ("asymmetric-25", "human-worse") for network in (half, convnext)]
    cells += [Cell("symmetric-25", half, seed=seed) for seed in (1, 2)]
    others = [noise for noise in NOISES if noise not in {"symmetric-25", "asymmetric-25", "human-worse", "none"}]
    cells += [Cell(noise, half) for noise in others]
    cells += [Cell("symmetric-25", half, training) for training in TRAININGS if training != "plain"]
    thin = [Cell("symmetric-25", network) for network in ("vgg11_bn_thin", "vit_small_images")]
    clean = [Cell("none", network) for network in ("vgg11_bn_thin", "vit_small_images")]
    clean += [Cell("none", half, training) for training in ("mixup", "label-smoothing")]
    clean += [Cell("none", network, seed=seed) for network in (half, convnext) for seed in (1, 2)]
    return (*cells, *thin, *clean)


def _paper() -> tuple[Cell, ...]:
    plain = [Cell(noise, network) for network in ("resnet18", "vgg11_bn") for noise in NOISES]
    robust = [Cell("symmetric-25", "resnet18", training) for training in TRAININGS if training != "plain"]
    return (*sorted(plain, key=lambda cell: cell.noise != "symmetric-25"), *robust)


PRESETS = {
    "tiny": Preset("digits", 1000, 200, 200, 12, 64, 1, tuple(Cell(noise, "tiny_convolutions") for noise in NOISES)),
    "small": Preset("cifar10", 22000, 2000, 1000, 24, 128, 3, _small()),
    "paper": Preset("cifar10", 50000, 5000, 1000, 60, 256, 8, _paper()),
}
