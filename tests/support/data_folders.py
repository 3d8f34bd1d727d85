"""Small data folders for the tests, and the dataset that is opened from one."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sapcli.datasets.dataset import Dataset, Role, open_dataset

CLASSES = ("bird", "cat", "dog")


def write_image(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (level, level, level)).save(path)


def write_classes(folder: Path, classes: tuple[str, ...] = CLASSES, images: int = 2) -> Path:
    for name in classes:
        for number in range(images):
            write_image(folder / name / f"{number}.png")
    return folder


def opened(root: Path, role: Role = Role.LEARN, num_classes: int = 3, **options: object) -> Dataset:
    dataset = open_dataset(root, role, num_classes, **options)  # type: ignore[arg-type]
    assert dataset is not None
    return dataset


def label_of(dataset: Dataset, path: str) -> str:
    return dataset.classes[dataset.labels[dataset.paths.index(path)]]
