"""Arrays and dictionaries of arrays in PyTorch's files (`.pt`), read as data alone."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

from sapcli.checkpoints.zip_records import read_records
from sapcli.datasets.arrays.pickles import MOST_BYTES, read_arrays
from sapcli.datasets.formats import open_regular
from sapcli.errors import CheckpointError, DatasetError

_AGAIN = "Save the labels again as they are: numpy.save('labels.npy', labels)."


def read_tensor_file(file: Path) -> object:
    """What `torch.save` has written: arrays, tensors as arrays, and dictionaries of them.

    Raises:
        DatasetError: If it is damaged or holds anything else.
        OSError: If it cannot be opened.
    """
    with os.fdopen(open_regular(file), "rb") as handle:
        if os.fstat(handle.fileno()).st_size > MOST_BYTES:
            raise DatasetError(f"{file} is larger than {MOST_BYTES >> 20} MiB, expected labels", _AGAIN)
        try:
            records = read_records(handle, str(file))
            with zipfile.ZipFile(handle) as archive:
                names = {name.partition("/")[2]: name for name in archive.namelist()}
                return read_arrays(
                    records.pickle, str(file), lambda key: archive.read(archive.getinfo(names[f"data/{key}"]))
                )
        except CheckpointError as error:
            raise DatasetError(error.message, _AGAIN) from error
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
            raise DatasetError(f"{file}: not a whole file of PyTorch's: {error}", _AGAIN) from error
