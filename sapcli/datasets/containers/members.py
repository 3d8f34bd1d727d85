"""One image out of a file that holds many, by a path that goes on inside of the file.

`shard-000.tar/000123.jpg` is a member of an archive, `train.parquet/00000012` a row of a table, and
`pathmnist.npz/train/00000007` a part of an array. So an image is a path wherever one is written down, compared or
handed to another process, and is looked for inside of a file only once the system says that a part of the path is no
folder.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from pathlib import Path
from typing import Protocol

import numpy as np

from sapcli.datasets.containers.found import Pixels
from sapcli.errors import SapError

Facts = tuple[int, ...]


class Container(Protocol):
    """A file that holds many images."""

    def read(self, name: str) -> bytes | Pixels:
        """The bytes of an image file, or pixels `[H, W]` or `[H, W, C]`.

        Raises:
            KeyError: If there is no image of that name.
            OSError: If it cannot be read; other errors mean that the file is damaged.
        """

    def size(self, name: str) -> int | None:
        """How many bytes `read` gives; None where that is known only by reading."""


def containing_file(path: str) -> str | None:
    """The file that a path goes on inside of; None for a path of folders alone."""
    parent = path
    while (slash := parent.rfind("/")) > 0:
        parent = parent[:slash]
        try:
            mode = os.stat(parent).st_mode  # noqa: PTH116 (of thousands, without making an object of each name)
        except NotADirectoryError:
            continue
        except (OSError, ValueError):
            return None
        return parent if stat.S_ISREG(mode) else None
    return None


def read_member(path: str) -> bytes | Pixels:
    """What a path inside of a file leads to: an image file's bytes, or pixels.

    Raises:
        OSError: If there is no such image, or it cannot be read.
    """
    file = containing_file(path)
    if file is None:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    try:
        return _container(file).read(path[len(file) + 1 :])
    except KeyError as error:
        raise FileNotFoundError(errno.ENOENT, f"{file} holds no such image") from error
    except SapError as error:
        raise OSError(errno.EINVAL, error.message) from error


def member_size(path: str) -> int | None:
    """How many bytes `read_member` gives; None where there is no such image.

    It is read where its size is known only so.
    """
    file = containing_file(path)
    if file is None:
        return None
    name = path[len(file) + 1 :]
    # Damaged files make readers raise nearly everything.
    try:
        size = _container(file).size(name)
        if size is None:
            content = read_member(path)
            size = content.nbytes if isinstance(content, np.ndarray) else len(content)
    except Exception:
        return None
    return size


def member_bytes(path: str) -> bytes | None:
    """The bytes of an image inside of a file, or of its pixels; None where it cannot be read."""
    try:
        content = read_member(path)
    except Exception:  # as above
        return None
    return content.tobytes() if isinstance(content, np.ndarray) else content


def _container(file: str) -> Container:
    status = os.stat(file)  # noqa: PTH116
    return _opened(file, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@functools.lru_cache(maxsize=4096)
def _opened(file: str, _facts: Facts) -> Container:
    """The container, opened once in a process as long as it stays the same."""
    return open_container(Path(file))


def open_container(file: Path) -> Container:
    """Open a container by its name; a file of another name is one of CIFAR's batches.

    Raises:
        DatasetError: If it is none.
        OSError: If it cannot be opened.
    """
    suffix = file.suffix.lower()
    if suffix == ".tar":
        from sapcli.datasets.containers.shards import Shard

        return Shard(file)
    if suffix in (".parquet", ".arrow"):
        from sapcli.datasets.containers.tables import open_table

        return open_table(file)
    if suffix == ".npz":
        from sapcli.datasets.containers.image_arrays import ImageArrays

        return ImageArrays(file)
    from sapcli.datasets.containers.cifar import CifarBatch

    return CifarBatch(file)
