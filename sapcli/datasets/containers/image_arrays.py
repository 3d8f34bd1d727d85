"""Images as arrays in `.npz` files, as MedMNIST has them: `train_images`, `train_labels` and so on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sapcli.datasets.arrays.npy import NpzFile
from sapcli.datasets.containers.found import Found, GivenLabels, Listing, Pixels
from sapcli.errors import DatasetError

_IMAGES = frozenset({"images", "image", "imgs", "img", "x", "data", "pixels"})
_LABELS = frozenset({"labels", "label", "y", "targets", "target", "classes"})
_CHANNELS = (1, 3, 4)
_DIGITS = 8


class ImageArrays:
    """The arrays of images of a file, each in memory as a whole once it is asked for."""

    def __init__(self, file: Path) -> None:
        self._file = NpzFile(file)
        self._pairs = _pairs(self._file.names)
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def read(self, name: str) -> Pixels:
        """The pixels of an image, `[H, W]` or `[H, W, C]`."""
        split, _slash, number = name.rpartition("/")
        images = self._images(split)
        if not (number.isascii() and number.isdigit()) or int(number) >= len(images):
            raise KeyError(name)
        pixels = np.ascontiguousarray(images[int(number)])
        return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels

    def size(self, name: str) -> int:
        """The bytes of an image, the same for all of an array."""
        images = self._images(name.rpartition("/")[0])
        return images.nbytes // max(len(images), 1)

    def _images(self, split: str) -> npt.NDArray[np.uint8]:
        """The images of a split, `[n, H, W]` or `[n, H, W, C]`."""
        if split not in self._arrays:
            name = self._pairs[split][0]
            array = self._file.array(name)
            _check_images(f"{self._file.file}, {name}", array.shape, array.dtype)
            if array.ndim == 4 and array.shape[3] not in _CHANNELS:
                array = array.transpose(0, 2, 3, 1)
            self._arrays[split] = array
        return self._arrays[split]


def _check_images(where: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) not in (3, 4) or dtype != np.uint8 or 0 in shape:
        raise DatasetError(
            f"{where}: an array of {dtype} of {' x '.join(map(str, shape))}, expected images of uint8",
            "Write pixels from 0 to 255: numpy.savez(FILE, train_images=images.astype('uint8'), ...).",
        )
    if len(shape) == 4 and shape[3] not in _CHANNELS and shape[1] not in _CHANNELS:
        raise DatasetError(f"{where}: images of shape {shape[1:]}", "Give them 1, 3 or 4 channels.")


def find_arrays(file: Path) -> Found | None:
    """Images in a `.npz` file; None for a file of another name."""
    if file.suffix.lower() != ".npz" or not file.is_file():
        return None
    try:
        archive = NpzFile(file)
        pairs = _pairs(archive.names)
    except OSError as error:
        raise DatasetError(f"{file}: cannot read the file: {error.strerror}", "Check its permissions.") from error
    if not pairs:
        raise DatasetError(
            f"{file} holds {', '.join(map(repr, archive.names[:12])) or 'nothing'}, expected images and their labels",
            "Call the arrays train_images, train_labels, test_images and so on, as MedMNIST does.",
        )
    return Found(
        "arrays of images", file, {split: _lister(archive, split, pair) for split, pair in pairs.items()}, is_one=True
    )


def _lister(archive: NpzFile, split: str, pair: tuple[str, str]) -> Callable[[], Listing]:
    def listing() -> Listing:
        images, labels = pair
        shape, dtype = archive.header(images)
        _check_images(f"{archive.file}, {images}", shape, dtype)
        count = shape[0]
        values = archive.array(labels)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim == 2 and values.dtype.kind in "iufb" and _has_one_a_row(values):
            values = values.argmax(axis=1)
        if values.ndim != 1 or values.dtype.kind not in "iuUf" or len(values) != count:
            raise DatasetError(
                f"{archive.file}, {labels}: {values.dtype} of {' x '.join(map(str, values.shape))}, and there are"
                f" {count:,} images",
                "Give one label for each image; several labels for one are not taken.",
            )
        texts = tuple(item if isinstance(item, str) else repr(item) for item in values.tolist())
        prefix = f"{split}/" if split else ""
        return Listing(tuple(f"{prefix}{number:0{_DIGITS}}" for number in range(count)), {labels: GivenLabels(texts)})

    return listing


def _has_one_a_row(values: npt.NDArray[Any]) -> bool:
    """Whether each row holds a single 1 and zeros, at the place of the class."""
    return bool((((values == 0) | (values == 1)).all()) and ((values == 1).sum(axis=1) == 1).all())


def _pairs(names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """The arrays of images and of labels by the split that their names tell of: `train_images` and `train_labels`."""
    parts = {name: re.split(r"[_.-]", name) for name in names}

    def of(kind: frozenset[str]) -> dict[str, str]:
        found = {}
        for name, words in parts.items():
            telling = [word for word in words if word.lower() in kind]
            if len(telling) == 1:
                found["_".join(word for word in words if word is not telling[0])] = name
        return found

    images, labels = of(_IMAGES), of(_LABELS)
    return {split: (name, labels[split]) for split, name in images.items() if split in labels}
