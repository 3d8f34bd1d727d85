"""Image files by what they contain: the same picture under another name, in another folder, in another run.

A file's content is known by eight bytes: three of its size, which tell most files apart without reading them, and five
of the SHA-256 of its bytes. A thousand of them are short enough for a checkpoint's metadata.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Collection, Sequence

from sapcli.datasets.dataset import Dataset

Content = bytes

_SIZE_BYTES = 3
_CONTENT_BYTES = 8


def contents_of(dataset: Dataset, indices: Sequence[int]) -> dict[int, Content]:
    """The content of each sample's file by the sample's index; unreadable files are left out."""
    found = {index: _content(dataset, index) for index in indices}
    return {index: content for index, content in found.items() if content is not None}


def find_contents(dataset: Dataset, contents: Collection[Content]) -> dict[int, Content]:
    """The samples whose files have one of these contents, by index; only files of a fitting size are read."""
    wanted = frozenset(contents)
    sizes = {content[:_SIZE_BYTES] for content in wanted}
    found = {}
    for index in range(len(dataset.paths)) if wanted else ():
        size = dataset.size_of(index)
        if size is not None and _size(size) in sizes and (content := _content(dataset, index)) in wanted:
            assert content is not None
            found[index] = content
    return found


def same_files(dataset: Dataset, indices: Sequence[int], other: Dataset) -> frozenset[int]:
    """Those of some samples of a dataset whose files are those of samples of another one, whatever their names."""
    files = {_identity(f"{other.root}/{path}") for path in other.paths} - {None}
    root = dataset.root
    return frozenset(index for index in indices if _identity(f"{root}/{dataset.paths[index]}") in files)


def to_text(contents: Collection[Content]) -> str:
    """Contents as one printable text, the same for the same contents in any order."""
    return base64.b64encode(b"".join(sorted(set(contents)))).decode("ascii")


def from_text(text: str) -> frozenset[Content]:
    """The contents that `to_text` wrote; none where the text is something else."""
    try:
        joined = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return frozenset()
    whole = len(joined) - len(joined) % _CONTENT_BYTES
    return frozenset(joined[start : start + _CONTENT_BYTES] for start in range(0, whole, _CONTENT_BYTES))


def _size(size: int) -> bytes:
    """The part of a file's content that its size is."""
    return (size % (1 << 8 * _SIZE_BYTES)).to_bytes(_SIZE_BYTES, "big")


def _content(dataset: Dataset, index: int) -> Content | None:
    """The content of a sample; `None` for what cannot be read."""
    found = dataset.content_of(index)
    return None if found is None else _size(found[0]) + found[1][: _CONTENT_BYTES - _SIZE_BYTES]


def _identity(path: str) -> tuple[int, int] | None:
    """Device and file number, the same for all names of one file; `None` for a file that is gone."""
    try:
        status = os.stat(path)  # noqa: PTH116 (of thousands, without making an object of each name)
    except OSError:
        return None
    return status.st_dev, status.st_ino
