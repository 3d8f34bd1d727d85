"""Labels without paths: arrays of them in the order of the images, in NumPy's, PyTorch's and JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sapcli.datasets.arrays.npy import NpzFile, read_npy
from sapcli.datasets.arrays.pickles import as_array
from sapcli.datasets.arrays.tensor_files import read_tensor_file
from sapcli.datasets.labels.texts import unreadable
from sapcli.errors import DatasetError

ARRAY_SUFFIXES = (".npy", ".npz", ".pt", ".pth")
"""What the names of files of label arrays end in."""

_KEYS_SHOWN = 12
MOST_LABELS = 1 << 24
"""Labels in an array; ImageNet-21k has 14 million."""


def read_label_array(file: Path, key: str | None) -> tuple[str, ...]:
    """The labels of an array, as texts: numbers as numbers are written.

    Args:
        file: A `.npy`, `.npz` or `.pt` file of one array, or of several by name.
        key: The name of the array.

    Raises:
        DatasetError: If the file cannot be read, or does not say which array is meant.
    """
    try:
        if file.suffix.lower() == ".npz":
            archive = NpzFile(file)
            return texts_of(archive.array(_chosen(file, archive.names, key)), file)
        value = read_npy(file) if file.suffix.lower() == ".npy" else read_tensor_file(file)
    except OSError as error:
        raise unreadable(file, error) from error
    if isinstance(value, dict):
        arrays = {str(name): array for name, item in value.items() if (array := as_array(item)) is not None}
        return texts_of(arrays[_chosen(file, tuple(arrays), key)], file)
    array = as_array(value)
    if array is None:
        raise DatasetError(f"{file} holds a {type(value).__name__}, expected an array of labels", _hint(file))
    if key is not None:
        raise DatasetError(f"{file} holds one array, without a name such as {key!r}", f"Give it as {file.name}.")
    return texts_of(array, file)


def texts_of(array: npt.NDArray[Any], file: Path) -> tuple[str, ...]:
    """The labels of an array of one dimension, or of two of which the second is 1.

    Raises:
        DatasetError: If it holds no labels.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iufUS" or not len(array):
        shape = " x ".join(map(str, array.shape)) or "no dimension"
        raise DatasetError(
            f"{file} holds an array of {array.dtype} of {shape}, expected a label for each image", _hint(file)
        )
    if len(array) > MOST_LABELS:
        raise DatasetError(f"{file} holds {len(array):,} labels, and at most {MOST_LABELS:,} are read", _hint(file))
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    return tuple(item if isinstance(item, str) else repr(item) for item in array.tolist())


def _chosen(file: Path, names: tuple[str, ...], key: str | None) -> str:
    if key is not None and key in names:
        return key
    if key is None and len(names) == 1:
        return names[0]
    shown = ", ".join(map(repr, names[:_KEYS_SHOWN])) + (", ..." if len(names) > _KEYS_SHOWN else "")
    what = "no array" if not names else f"the arrays {shown}"
    missing = "" if key is None else f", and none is called {key!r}"
    raise DatasetError(
        f"{file} holds {what}{missing}",
        f"Say which one after a colon: {file.name}:{names[0]}." if names else _hint(file),
    )


def _hint(file: Path) -> str:
    return f"Save the labels alone, one for each image: numpy.save('{file.stem}.npy', labels)."
