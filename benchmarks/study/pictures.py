"""The images of the study, as files for the commands and as tensors for everything else."""

from __future__ import annotations

import csv
import lzma
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SHARED = Path(__file__).resolve().parents[3] / "shared"
HUMAN = ("worse", "aggregate", "random1")


@dataclass(frozen=True)
class Pictures:
    """A pool of images to train on, and test images whose labels are right.

    Attributes:
        root: The folder of the pool, which `paths` are relative to.
        test: The folder of the test images.
        classes: The names of the classes.
        paths: Of the pool's images.
        images: The pool's pixels, uint8 `[N, 3, H, W]`.
        labels: The right labels, `[N]`.
        test_images: uint8 `[M, 3, H, W]`.
        test_labels: `[M]`.
        human: The labels that people gave, by who gave them, `[N]` each.
    """

    root: Path
    test: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    human: Mapping[str, Tensor]


def open_pictures(source: str, folder: Path, archives: Path = SHARED / "data") -> Pictures:
    """Make the files in `folder`, unless they are there, and read them.

    Args:
        source: `digits` or `cifar10`.
        folder: For the files and the tensors made of them.
        archives: Where `cifar10.tar.xz` and `cifar10n.csv.xz` are.
    """
    root, test = folder / source / "pool", folder / source / "test"
    tensors = folder / source / "pixels.pt"
    if not tensors.exists():
        (_write_digits if source == "digits" else _unpack_cifar10)(root, test, archives)
        pool, judging = _read(root), _read(test)
        torch.save({"pool": pool, "test": judging}, tensors)
    read = torch.load(tensors)
    (paths, images, labels), (_, test_images, test_labels) = read["pool"], read["test"]
    classes = tuple(sorted(path.name for path in (root / "images").iterdir()))
    human = _imitated(images, labels) if source == "digits" else _read_human(archives, classes, paths)
    return Pictures(root, test, classes, tuple(paths), images, labels, test_images, test_labels, human)


def _write_digits(root: Path, test: Path, _archives: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for position, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        base = root / "images" if position < 1200 else test / "images"
        file = base / str(label) / f"{position:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((16, 16), Image.Resampling.BILINEAR)
        picture.convert("RGB").save(file)


def _unpack_cifar10(root: Path, test: Path, archives: Path) -> None:
    with tarfile.open(archives / "cifar10.tar.xz") as archive:
        archive.extractall(root.parent, filter="data")
    for split, base in (("train", root), ("test", test)):
        base.mkdir(parents=True, exist_ok=True)
        (root.parent / "cifar10" / split).rename(base / "images")


def _read(base: Path) -> tuple[list[str], Tensor, Tensor]:
    folders = sorted((base / "images").iterdir())
    files = [(file, label) for label, folder in enumerate(folders) for file in sorted(folder.iterdir())]
    pixels = []
    for file, _ in files:
        with Image.open(file) as picture:
            pixels.append(np.asarray(picture.convert("RGB")))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    paths = [file.relative_to(base).as_posix() for file, _ in files]
    return paths, images, torch.tensor([label for _, label in files])


def _read_human(archives: Path, classes: Sequence[str], paths: Sequence[str]) -> dict[str, Tensor]:
    number = {name: position for position, name in enumerate(classes)}
    with lzma.open(archives / "cifar10n.csv.xz", "rt", newline="") as handle:
        rows = {row["path"].replace("train/", "images/", 1): row for row in csv.DictReader(handle)}
    return {who: torch.tensor([number[rows[path][who]] for path in paths]) for who in HUMAN}


def _imitated(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Mistakes that follow the image, in the place of people's: those of the nearest of a few class means."""
    flat = images.float().flatten(1)
    found = {}
    for seed, who in enumerate(HUMAN):
        generator = torch.Generator().manual_seed(seed)
        few = torch.stack(
            [
                flat[labels == label][torch.randperm(int((labels == label).sum()), generator=generator)[:3]].mean(0)
                for label in range(int(labels.max()) + 1)
            ]
        )
        found[who] = torch.cdist(flat, few).argmin(1)
    return found


def write_labels(file: Path, paths: Sequence[str], labels: Sequence[str]) -> None:
    """A label file that the commands take."""
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "label"])
        writer.writerows(zip(paths, labels, strict=True))
