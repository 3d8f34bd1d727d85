"""CIFAR-10 and CIFAR-100 as their authors hand them out for Python: pickles of pixels and labels, read in place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from sapcli.datasets.arrays.pickles import MOST_BYTES, as_array, read_arrays
from sapcli.datasets.containers.found import Found, GivenLabels, Listing, Pixels, joined
from sapcli.datasets.formats import open_regular
from sapcli.errors import DatasetError

_SIDE = 32
_DIGITS = 5
_MOST_BATCHES = 10
_BATCH = re.compile(r"(data_batch_\d{1,3}|test_batch|train|test)")
_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
# Labels, and where the names of their classes stand.
_LABELS = {"labels": "label_names", "fine_labels": "fine_label_names", "coarse_labels": "coarse_label_names"}


class CifarBatch:
    """One of the files: pixels as rows of 3 x 32 x 32 bytes, and lists of labels.

    Attributes:
        labels: The lists of labels by their names.

    Raises:
        DatasetError: If it is no such file.
        OSError: If it cannot be opened.
    """

    def __init__(self, file: Path) -> None:
        content = _dictionary(file)
        data = as_array(content.get("data"))
        if data is None or data.ndim != 2 or data.shape[1] != 3 * _SIDE * _SIDE or data.dtype != np.uint8:
            raise DatasetError(
                f"{file} is no batch of CIFAR's, which has rows of 3 x 32 x 32 pixels", "Give a folder of images."
            )
        self._pixels: npt.NDArray[np.uint8] = data
        self.labels = {
            key: [int(label) for label in labels]
            for key in _LABELS
            if (labels := as_array(content.get(key))) is not None and labels.dtype.kind in "iu"
        }
        if any(len(labels) != len(data) for labels in self.labels.values()):
            raise DatasetError(f"{file} has other numbers of labels than of images", "Get the file again.")

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, name: str) -> Pixels:
        """The pixels of an image, `[32, 32, 3]`."""
        if not (name.isascii() and name.isdigit()) or int(name) >= len(self._pixels):
            raise KeyError(name)
        return np.ascontiguousarray(self._pixels[int(name)].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0))

    def size(self, name: str) -> int:
        """The bytes of an image, the same for all."""
        del name
        return 3 * _SIDE * _SIDE


def find_cifar(data: Path) -> Found | None:
    """CIFAR's files in a folder, in the folder that its archive makes in it, or one of the files."""
    if data.is_file():
        return _of_file(data) if _BATCH.fullmatch(data.name) and not data.suffix else None
    for folder in (data, *(data / name for name in _FOLDERS)):
        splits = {
            "train": batches if (batches := _batches(folder)) else [folder / "train"],
            "test": [folder / "test_batch" if (folder / "test_batch").is_file() else folder / "test"],
        }
        names = next((file for file in (folder / "batches.meta", folder / "meta") if file.is_file()), None)
        kept = {split: files for split, files in splits.items() if all(file.is_file() for file in files)}
        if kept and (names is not None or (len(kept) == len(splits) and _batches(folder))):
            return Found("CIFAR's batches", folder, {split: _lister(folder, files) for split, files in kept.items()})
    return None


def _batches(folder: Path) -> list[Path]:
    return [file for number in range(1, _MOST_BATCHES) if (file := folder / f"data_batch_{number}").is_file()]


def _of_file(file: Path) -> Found | None:
    split = "train" if file.name.startswith(("data_batch", "train")) else "test"
    return Found("a batch of CIFAR's", file.parent, {split: _lister(file.parent, [file])}, is_one=True)


def _lister(folder: Path, files: list[Path]) -> Callable[[], Listing]:
    def listing() -> Listing:
        names = _class_names(folder)
        return joined([_listing(file, names) for file in files])

    return listing


def _listing(file: Path, names: Mapping[str, tuple[str, ...]]) -> Listing:
    try:
        batch = CifarBatch(file)
    except OSError as error:
        raise DatasetError(f"{file}: cannot read the file: {error.strerror}", "Check its permissions.") from error
    labels = {key: GivenLabels(tuple(map(str, values)), names.get(key)) for key, values in batch.labels.items()}
    return Listing(tuple(f"{file.name}/{number:0{_DIGITS}}" for number in range(len(batch))), labels)


def _class_names(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """The names of the classes, by the lists of labels that they belong to."""
    file = next((file for file in (folder / "batches.meta", folder / "meta") if file.is_file()), None)
    content = {} if file is None else _dictionary(file)
    found = {}
    for labels, key in _LABELS.items():
        names = content.get(key)
        if isinstance(names, list) and names and all(isinstance(name, str | bytes) for name in names):
            found[labels] = tuple(map(_name, names))
    return found


def _name(name: str | bytes) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name


def _dictionary(file: Path) -> Mapping[str, Any]:
    with os.fdopen(open_regular(file), "rb") as handle:
        if os.fstat(handle.fileno()).st_size > MOST_BYTES:
            raise DatasetError(f"{file} is larger than {MOST_BYTES >> 20} MiB, and no batch of CIFAR's", "Check it.")
        content = read_arrays(handle, str(file))
    if not isinstance(content, dict):
        raise DatasetError(f"{file} is no batch of CIFAR's, which is a dictionary", "Give a folder of images.")
    return cast("Mapping[str, Any]", content)
