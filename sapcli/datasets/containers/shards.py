"""WebDataset's shards: tar archives in which files of one name and several endings are one sample, read in place.

Only an archive's headers are read to list it. Nothing is unpacked, and what is no plain file is passed over.
"""

from __future__ import annotations

import bisect
import errno
import json
import os
import re
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from sapcli.datasets.containers.found import MOST_OF_MEMBER, GivenLabels, Listing
from sapcli.datasets.formats import image_suffixes, open_regular
from sapcli.errors import DatasetError

# As webdataset parts them: the ending begins at the first dot of the file's own name.
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")
_CLASSES = ("cls", "label", "class", "target", "cls.txt", "label.txt", "index", "id", "cls.json")
_TEXTS = ("txt", "text")
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_JSON_KEYS = ("label", "cls", "class", "target", "class_id", "class_name", "category", "label_id", "category_id")
_LONGEST_LABEL, _LONGEST_JSON = 4096, 1 << 20
_LONGEST_HEADER, _LONGEST_NAME = 1 << 20, 2048
_LOOKED_AT = 64
_BLOCK = 512
_FAULTS = (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError, RecursionError, MemoryError)


class _Headers:
    """A file of which a reader of headers takes no more at once than a header can need."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.seek, self.tell = handle.seek, handle.tell

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        if not 0 <= size <= _LONGEST_HEADER:
            raise ValueError(f"a header of more than {_LONGEST_HEADER:,} bytes")
        return self._handle.read(size)


class _Archive(tarfile.TarFile):
    """An archive.

    Attributes:
        offset: Where the next header begins.
    """

    offset: int


def _archive(handle: IO[bytes]) -> _Archive:
    return _Archive.open(fileobj=cast("IO[bytes]", _Headers(handle)), mode="r:")


def _members(handle: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The plain files of an archive, in their order."""
    size = os.fstat(handle.fileno()).st_size
    with _archive(handle) as archive:
        while (member := archive.next()) is not None:
            # What it would remember of all that went before.
            archive.members = []  # type: ignore[attr-defined]
            archive.pax_headers = {}
            if member.isreg() and not member.issparse() and len(member.name) <= _LONGEST_NAME:
                if member.offset_data + member.size > size:
                    raise EOFError("it ends in the middle of a file")
                yield member
        # The reader takes what is no header for the end.
        handle.seek(archive.offset)
        if handle.read(_BLOCK).strip(b"\0") or size % _BLOCK:
            raise EOFError("it ends in the middle of a header")


class Shard:
    """A shard: where in the archive each file lies.

    Raises:
        DatasetError: If it is no whole archive.
        OSError: If it cannot be opened.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        found: dict[str, tuple[int, int]] = {}
        with os.fdopen(open_regular(file), "rb") as handle:
            status = os.fstat(handle.fileno())
            self._facts = status.st_ino, status.st_size, status.st_mtime_ns
            try:
                for member in _members(handle):
                    found[member.name] = member.offset_data, member.size
            except _FAULTS as error:
                raise DatasetError(
                    f"{file}: not a whole tar archive: {' '.join(str(error).split())[:200]}", "Get the shard again."
                ) from error
        # As three columns: there may be millions.
        self.names = sorted(found)
        self._offsets = array("q", (found[name][0] for name in self.names))
        self._sizes = array("q", (found[name][1] for name in self.names))

    def read(self, name: str) -> bytes:
        """The bytes of a member."""
        place = self._place(name)
        descriptor = open_regular(self._file)
        try:
            status = os.fstat(descriptor)
            if (status.st_ino, status.st_size, status.st_mtime_ns) != self._facts:
                raise OSError(errno.ESTALE, "the shard has changed since it was listed")
            if self._sizes[place] > MOST_OF_MEMBER:
                raise OSError(errno.EFBIG, f"larger than {MOST_OF_MEMBER:,} bytes, expected an image")
            return os.pread(descriptor, self._sizes[place], self._offsets[place])
        finally:
            os.close(descriptor)

    def size(self, name: str) -> int:
        """The bytes of a member."""
        return self._sizes[self._place(name)]

    def _place(self, name: str) -> int:
        place = bisect.bisect_left(self.names, name)
        if place == len(self.names) or self.names[place] != name:
            raise KeyError(name)
        return place


def is_shard(file: Path) -> bool:
    """Whether a tar archive begins with samples: an image beside a file of the same name that can hold its label."""
    endings: dict[str, set[str]] = {}
    try:
        with os.fdopen(open_regular(file), "rb") as handle:
            for count, member in enumerate(_members(handle)):
                if count == _LOOKED_AT:
                    break
                key, ending = _parted(member.name)
                endings.setdefault(key, set()).add(ending)
    except _FAULTS:
        return False
    return any(_image_ending(found) and _label_ending(found) for found in endings.values())


def holds_samples(folder: Path) -> bool:
    """Whether files of a folder are samples that lay in a shard, with their labels as `.cls` or `.json` files."""
    endings: dict[str, set[str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(_TABLES):
                return False  # which says the labels
            if entry.is_file(follow_symlinks=False):
                key, ending = _parted(entry.name)
                endings.setdefault(key, set()).add(ending)
    return any(_image_ending(found) and (_label_ending(found) or "txt") not in _TEXTS for found in endings.values())


def shard_lister(root: Path, files: Sequence[Path], open_shard: Callable[[Path], Shard]) -> Callable[[], Listing]:
    """What lists the samples of shards, in their order.

    Args:
        root: The folder from which paths are written.
        files: The shards.
        open_shard: Opens one, or has it open already.
    """

    def listing() -> Listing:
        paths: list[str] = []
        texts: list[str] = []
        without_image = without_label = 0
        for file in files:
            try:
                shard = open_shard(file)
                prefix = "" if file == root else f"{file.relative_to(root).as_posix()}/"
                for key, endings in _samples(shard.names):
                    image, label = _image_ending(endings), _label_ending(endings)
                    without_image += image is None
                    without_label += image is not None and label is None
                    if image is not None and label is not None:
                        paths.append(f"{prefix}{key}.{image}")
                        texts.append(_label(shard, f"{key}.{label}", f"{file}, {key}.{label}"))
            except OSError as error:
                raise DatasetError(
                    f"{file}: cannot read the shard: {error.strerror or error}", "Check the shards and their names."
                ) from error
        remarks = []
        if without_label:
            remarks.append(f"{root}: {without_label:,} images have no .cls, .json or .txt beside them: left out")
        if without_image:
            remarks.append(f"{root}: {without_image:,} samples have no image: left out")
        return Listing(tuple(paths), {"labels": GivenLabels(tuple(texts))}, tuple(remarks))

    return listing


def _samples(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The samples of a shard: what their files' names begin with, and the endings."""
    grouped: dict[str, list[str]] = {}
    for name in names:
        key, ending = _parted(name)
        if ending and not name.rpartition("/")[2].startswith("."):
            grouped.setdefault(key, []).append(ending)
    yield from grouped.items()


def _parted(name: str) -> tuple[str, str]:
    found = _KEY.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")


def _image_ending(endings: set[str] | list[str]) -> str | None:
    """The ending of a sample's image; of several the first."""
    return next((ending for ending in sorted(endings) if f".{ending}".lower().endswith(image_suffixes())), None)


def _label_ending(endings: set[str] | list[str]) -> str | None:
    """The ending of what holds a sample's label, the most telling one."""
    known = {ending.lower(): ending for ending in endings}
    # What the parts of a sample are called may stand before (`input.png`, `target.cls`).
    named = next((ending for ending in sorted(endings) if ending.lower().endswith(".cls")), None)
    return next((known[name] for name in _CLASSES if name in known), named) or next(
        (known[name] for name in ("json", *_TEXTS) if name in known), None
    )


def _label(shard: Shard, name: str, where: str) -> str:
    is_json = name.lower().endswith("json")
    if shard.size(name) > (_LONGEST_JSON if is_json else _LONGEST_LABEL):
        raise DatasetError(f"{where} has {shard.size(name):,} bytes, expected a label", "Write labels as .cls files.")
    try:
        text = shard.read(name).decode("utf-8-sig").strip()
        if not is_json:
            return text
        content = json.loads(text)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: no label can be read: {error}", "Write labels as .cls files.") from error
    value = content
    if isinstance(content, dict):
        plain = {str(key).lower(): item for key, item in content.items()}
        value = next((plain[key] for key in _JSON_KEYS if key in plain), None)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise DatasetError(
            f"{where} has none of the keys {', '.join(_JSON_KEYS)}",
            "Write labels as .cls files, or under the key label.",
        )
    return value.strip() if isinstance(value, str) else repr(value)
