"""Labels that a data set keeps beside images that lie in no class folders, in files that its makers have given a name.

These are the metadata of Hugging Face's image folders, the annotations of Tiny ImageNet, and the solutions of
ImageNet's validation images. Label files of other names are never taken by themselves.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from sapcli.datasets.arrays.tensor_files import read_tensor_file
from sapcli.datasets.formats import image_suffixes
from sapcli.datasets.labels.label_files import LabelFile, LabelRow, holds_labels, read_labels
from sapcli.datasets.labels.label_numbers import whole_number
from sapcli.datasets.labels.texts import numbered_lines, read_text
from sapcli.errors import DatasetError

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_TINY_IMAGENET = "val_annotations.txt"
_SOLUTION = "LOC_val_solution.csv"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\b.*", re.IGNORECASE)
# From `ILSVRC/Data/CLS-LOC/val` to the folder that Kaggle's archive makes.
_LEVELS_ABOVE = 4
_TORCHVISION = "meta.bin"
_DEVKIT = ("", "ILSVRC2012_devkit_t12/data", "data", "devkit/data")


def metadata_in(folder: Path) -> Path | None:
    """The metadata of a Hugging Face image folder that has labels; None where there is none."""
    files = (folder / name for name in _METADATA)
    return next((file for file in files if file.is_file() and holds_labels(file)), None)


def standard_labels(folder: Path) -> LabelFile | None:
    """The labels of the images of one folder, in a file of a known name in it or, of ImageNet, above it.

    Raises:
        DatasetError: If there is such a file, and it cannot be read.
    """
    file = _standard_file(folder)
    if file is None:
        return None
    if file.name == _GROUND_TRUTH:
        found = _ground_truth(file)
    elif file.name == _TORCHVISION:
        ids = enumerate(_torchvision_ids(file), start=1)
        found = LabelFile(file, tuple(LabelRow(number, f"ILSVRC2012_val_{number:08}", name) for number, name in ids))
    else:
        found = read_labels(file)
    return LabelFile(found.file, found.rows, understood=f"the labels of {folder}" + _aside(found.understood))


def has_standard_labels(folder: Path) -> bool:
    """Whether there is such a file; nothing is read but its first line."""
    return _standard_file(folder) is not None


def _aside(text: str) -> str:
    return f", {text}" if text else ""


def _standard_file(folder: Path) -> Path | None:
    metadata = metadata_in(folder)
    if metadata is not None:
        return metadata
    if (folder / _TINY_IMAGENET).is_file():
        return folder / _TINY_IMAGENET
    if not _holds_validation_images(folder):
        return None
    place = folder
    for _level in range(_LEVELS_ABOVE + 1):
        for name in (_SOLUTION, *(f"{inside}/{_GROUND_TRUTH}".lstrip("/") for inside in _DEVKIT), _TORCHVISION):
            if (place / name).is_file():
                return place / name
        place = place / os.pardir if place.name in ("", os.pardir) else place.parent
    return None


def _holds_validation_images(folder: Path) -> bool:
    """Whether the first image of a folder is called as ImageNet's validation images are."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(image_suffixes()):
                    return _VALIDATION_IMAGE.fullmatch(entry.name) is not None
    except OSError:  # what is wrong with the folder is told where it is listed
        pass
    return False


def _ground_truth(file: Path) -> LabelFile:
    """The labels of ImageNet's validation images, whose classes the development kit numbers in an order of its own."""
    numbers = [(line, whole_number(text.strip())) for line, text in numbered_lines(file, read_text(file))]
    ids = _ids_of_numbers(file)
    rows = []
    for line, number in numbers:
        if number not in ids:
            raise DatasetError(f"{file}, line {line}: no class has this number", "Get the file again.")
        rows.append(LabelRow(line, f"ILSVRC2012_val_{line:08}", ids[number]))
    return LabelFile(file, tuple(rows))


def _ids_of_numbers(file: Path) -> dict[int | None, str]:
    """The id of each class by the development kit's number."""
    meta = file.with_name("meta.mat")
    if not meta.is_file() or importlib.util.find_spec("scipy") is None:
        raise DatasetError(
            f"{file}: the numbers of ImageNet's development kit are in an order of its own, which meta.mat tells",
            "Put the kit's meta.mat beside it and pip install scipy, or use Kaggle's LOC_val_solution.csv.",
        )
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        pairs = [(int(synset["ILSVRC2012_ID"]), str(synset["WNID"])) for synset in synsets]
    # A damaged file makes the reader raise nearly everything.
    except Exception as error:
        raise DatasetError(f"{meta}: not the development kit's meta.mat: {error}", "Get the file again.") from error
    return dict(pairs)


def _torchvision_ids(file: Path) -> tuple[str, ...]:
    """The ids of ImageNet's validation images in their order, as torchvision keeps them."""
    content = read_tensor_file(file)
    if isinstance(content, tuple) and len(content) == 2 and isinstance(content[1], list):
        return tuple(str(name) for name in content[1])
    raise DatasetError(f"{file}: not torchvision's meta.bin", "Remove it, or make it again.")
