"""Whether a folder or a file is a data set in containers, and which of its files belong to which split.

A folder in which images lie as files is none, whatever else lies there.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sapcli.datasets.containers.cifar import find_cifar
from sapcli.datasets.containers.found import Found
from sapcli.datasets.containers.image_arrays import find_arrays
from sapcli.datasets.containers.shards import Shard, is_shard, shard_lister
from sapcli.datasets.containers.tables import TABLE_SUFFIXES, table_lister
from sapcli.datasets.folders import holds_images
from sapcli.datasets.formats import image_suffixes
from sapcli.datasets.split_names import mentioned_role, split_role
from sapcli.errors import DatasetError

_SHARD = ".tar"
_KINDS = {".parquet": "Parquet files", ".arrow": "Arrow files", _SHARD: "WebDataset's shards"}
_ONE = {".parquet": "a Parquet file", ".arrow": "an Arrow file", _SHARD: "a WebDataset shard"}
# Beside images, tables of labels.
_METADATA = "metadata.parquet"
_MOST_FOLDERS, _MOST_ENTRIES, _DEEPEST = 64, 100_000, 3
_MOST_SHARDS = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
# Without a way back: names may be made to have many.
_NUMBERS = re.compile(r"(?:[-_.]?(?:of[-_])?\d++)++$")


def find_containers(data: Path) -> Found | None:
    """A data set in containers; None where the folder or file is something else.

    Raises:
        DatasetError: If it is one, and cannot be read or told apart.
    """
    found = find_cifar(data) or find_arrays(data)
    if found is not None:
        return found
    if data.is_file():
        suffix = data.suffix.lower()
        if suffix in TABLE_SUFFIXES:
            # Its rows may name files beside it.
            return _found(data.parent, [data], is_one=True)
        return _found(data, [data], is_one=True) if suffix == _SHARD and is_shard(data) else None
    files = _containers_below(data)
    return _found(data, files) if files else None


def shards_of_pattern(pattern: str) -> Found:
    """The shards that a pattern names: `shard-{000..009}.tar`, as webdataset writes it.

    Raises:
        DatasetError: If it names too many, or one that is not there.
    """
    files = [Path(name) for name in itertools.islice(_expanded(pattern), _MOST_SHARDS + 1)]
    if len(files) > _MOST_SHARDS:
        raise DatasetError(f"{pattern} names more than {_MOST_SHARDS:,} files", "Write a shorter pattern.")
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DatasetError(
            f"{pattern}: there is no {missing}", f"The pattern names {len(files):,} files; write those that there are."
        )
    root = Path(os.path.commonpath([os.path.dirname(file) or "." for file in files]))  # noqa: PTH120
    return _found(root, files)


def is_pattern(data: Path) -> bool:
    """Whether a name has braces, and is no name of a file."""
    return bool(_BRACES.search(str(data))) and not os.path.lexists(data)


def _found(root: Path, files: Sequence[Path], *, is_one: bool = False) -> Found:
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise DatasetError(
            f"{root} holds {' and '.join(_KINDS[kind] for kind in kinds)}", "Give a folder that holds one of them."
        )
    kind = kinds[0]
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(root, file), []).append(file)
    if kind == _SHARD:
        listers = {split: shard_lister(root, shards, Shard) for split, shards in splits.items()}
    else:
        listers = {split: table_lister(root, tables) for split, tables in splits.items()}
    count = f"{len(files):,} " if len(files) > 1 else ""
    what = _KINDS[kind] if len(files) > 1 else f"{files[0].name}, {_ONE[kind]}"
    return Found(f"{count}{what}", root, listers, is_one=is_one)


def _split_of(root: Path, file: Path) -> str:
    """The split that a file is of, by its name (`train-00000-of-00001`) or by the name of a folder that it lies in."""
    stem = _NUMBERS.sub("", file.name.partition(".")[0])
    if stem and (split_role(stem) is not None or mentioned_role(stem) is not None):
        role = split_role(stem) or mentioned_role(stem)
        assert role is not None
        return stem if split_role(stem) is not None else role.value
    folders = file.parent.relative_to(root).parts if file != root else ()
    return next((folder for folder in folders if split_role(folder) is not None), "")


def _containers_below(root: Path) -> list[Path]:
    """The containers of a folder, sorted; none where images lie there as files."""
    found, folders = _look(root)
    if found is None:
        return []
    if found:
        if any(holds_images(folder) for folder in folders[:_MOST_FOLDERS]):
            return []
        return _without_archives(found)
    pending = [(folder, 1) for folder in folders] if len(folders) <= _MOST_FOLDERS else []
    collected: list[Path] = []
    while pending:
        folder, depth = pending.pop()
        found, inside = _look(folder)
        if found is None:
            return []
        collected += found
        if depth < _DEEPEST and len(inside) <= _MOST_FOLDERS:
            pending += [(each, depth + 1) for each in inside]
    return _without_archives(sorted(collected))


def _look(folder: Path) -> tuple[list[Path] | None, list[Path]]:
    """The containers directly in a folder, or None where images are; and its folders. Hidden ones are passed over."""
    containers, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, _MOST_ENTRIES):
                name = entry.name.lower()
                if name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(Path(entry.path))
                elif name.endswith(image_suffixes()):
                    return None, []
                elif name.endswith(tuple(_KINDS)) and name != _METADATA and entry.is_file():
                    containers.append(Path(entry.path))
    except OSError:  # what is wrong with the folder is told where it is listed
        return None, []
    return sorted(containers), sorted(folders)


def _without_archives(files: list[Path]) -> list[Path]:
    """The containers without tar archives that are none: of class folders, say."""
    tars = [file for file in files if file.suffix.lower() == _SHARD]
    if tars and not is_shard(tars[0]):
        return [file for file in files if file not in tars]
    return files


def _expanded(pattern: str) -> Iterator[str]:
    """The names that a pattern with braces stands for."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    numbers = _RANGE.fullmatch(found[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = len(numbers[1]) if numbers[1].startswith("0") or len(numbers[1]) == len(numbers[2]) else 0
        choices: Iterator[str] = (f"{number:0{width}}" for number in range(first, last + 1))
    else:
        choices = iter(found[1].split(","))
    for choice in choices:
        yield from _expanded(pattern[: found.start()] + choice + pattern[found.end() :])
