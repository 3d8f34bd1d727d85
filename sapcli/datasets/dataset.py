"""Which images a stage works on, and which class each belongs to."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path

from sapcli.datasets.archives import is_archive, unpacked_archive
from sapcli.datasets.classes import ClassNames, FoundClasses, resolve_class_names, shown
from sapcli.datasets.file_digests import FileDigests
from sapcli.datasets.folders import (
    ImageFile,
    Split,
    open_split,
    split_folders,
    subfolders,
)
from sapcli.datasets.label_files import LabelFile, LabelRow, read_labels, read_path_list
from sapcli.errors import DatasetError, UsageError

_LABEL_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_LIST_SUFFIXES = (".txt", ".lst", ".list")
_VALIDATION_SPLITS = ("val", "valid", "validation")


class Role(Enum):
    """What a stage wants the images for, and so which split it takes, the first that exists."""

    LEARN = ("train",)
    CHOOSE = _VALIDATION_SPLITS
    JUDGE = ("test", *_VALIDATION_SPLITS)


@dataclass(frozen=True)
class Dataset:
    """The images of one split and their labels. A sample's index is its position here, for good.

    Attributes:
        root: The data folder.
        split: The split's folder below it; None where the data folder itself holds the images.
        classes: The names of the classes, in the order of the model's outputs.
        paths: POSIX paths relative to `root`, sorted.
        labels: The class of each image, as a position in `classes`.
        digests: What tells the contents of the files.
        unpacked: Whether the files are only there for this process.
    """

    root: Path
    split: str | None
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    digests: FileDigests = field(default_factory=FileDigests, repr=False, compare=False)
    unpacked: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over path, content and label of every image, and over the classes.

        Asking for it reads the files that were not read before, so it is asked for once all else has been checked.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        contents = self.digests.of(self.root, self.paths, keep=not self.unpacked)
        for path, content, label in zip(self.paths, contents, self.labels, strict=True):
            digest.update(f"\0{path}\0{content.hex()}\0{label}".encode(errors="surrogateescape"))
        return digest.hexdigest()


def open_dataset(
    root: Path,
    role: Role,
    num_classes: int,
    *,
    split: str | None = None,
    label_names: Sequence[str] | None = None,
    labels: Path | None = None,
    class_map: Path | None = None,
    dedicated: bool = False,
    digests: FileDigests | None = None,
) -> Dataset | None:
    """Find the images for a role, and the class of each. No image is read.

    The images lie in class folders, directly in `root` or in a split of it. A label file overrides the folders'
    labels; images that it does not name keep the label of their class folder, and are left out where there are no class
    folders. The order of the classes is `label_names`, else that of the class map, else that of the training split's
    folders.

    Args:
        root: The data folder; a tar archive of one; a label file or a plain list of paths inside one, which then names
            the images that are used.
        role: What the images are for. A split is chosen by it, the folder itself where it has no splits.
        num_classes: The number of the model's outputs.
        split: The folder below `root` to use, instead of the role's choice.
        label_names: The names of the model's outputs in their order. For a data folder apart from the training data,
            hand over the training data's classes.
        labels: A label file (CSV or JSON Lines with `path` and `label`). Its paths are relative to the data folder, the
            split, or the file itself; lines about images of other splits are passed over.
        class_map: A file that says which class folder is which class.
        dedicated: Whether `root` was named for this role alone, and so serves as a whole where it has no splits; only
            `Role.CHOOSE` differs.
        digests: What will tell the contents of the files; by default, nothing is kept for another run.

    Returns:
        The dataset; None for `Role.CHOOSE` where there is no validation split.

    Raises:
        DatasetError: If a folder or file cannot be used, an image's class is none of the model's, or the number of
            classes does not fit.
        UsageError: If `split` names no folder.
    """
    source = _source(root, labels)
    splits = split_folders(source.root, without_classes=source.labels is not None)
    name = _chosen_split(source.root, splits, role, split, dedicated=dedicated)
    if name is None:
        return None
    opened = open_split(source.root, name)
    _check_images(opened, source.labels)
    training = source.root / splits.get("train", name)
    training_folders = opened.class_folders if training == opened.folder else subfolders(training)
    found = FoundClasses(training, training_folders, source.labels)
    names = resolve_class_names(num_classes, found, label_names, class_map)
    samples = _samples(source, opened, frozenset(splits.values()) - {name}, names)
    return Dataset(
        root=source.root,
        split=name or None,
        classes=names.names,
        paths=tuple(file.path for file, _label in samples),
        labels=tuple(label for _file, label in samples),
        digests=digests or FileDigests(),
        unpacked=source.unpacked,
    )


@dataclass(frozen=True)
class _Source:
    """What the user gave: a data folder, perhaps a label file, perhaps a list of the images to use."""

    root: Path
    labels: LabelFile | None = None
    listed: LabelFile | None = None
    unpacked: bool = False


def _source(data: Path, labels: Path | None) -> _Source:
    label_file = read_labels(labels) if labels else None
    try:
        is_folder = stat.S_ISDIR(data.stat().st_mode)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(
            f"{data}: cannot open the data folder: {reason}", "Give the folder of the images."
        ) from error
    if is_folder:
        return _Source(data, label_file)
    if is_archive(data):
        return _Source(unpacked_archive(data), label_file, unpacked=True)
    suffix = data.suffix.lower()
    if suffix in _LIST_SUFFIXES:
        return _Source(data.parent, label_file, read_path_list(data))
    if suffix in _LABEL_SUFFIXES:
        listed = read_labels(data)
        return _Source(data.parent, label_file or listed, listed)
    raise DatasetError(
        f"{data}: neither a folder nor a tar archive, a label file or a list of images",
        f"Give a folder, or a file that ends in .tar, {', '.join((*_LABEL_SUFFIXES, *_LIST_SUFFIXES))}.",
    )


def _chosen_split(
    root: Path, splits: Mapping[str, str], role: Role, split: str | None, *, dedicated: bool
) -> str | None:
    """The folder of the images below `root`: empty for `root` itself, None where there is nothing to choose on."""
    if split is not None:
        return _named_split(root, split)
    for name in role.value:
        if name in splits:
            return splits[name]
    if role is Role.CHOOSE and not dedicated:
        return None
    if splits:
        raise DatasetError(
            f"{root}: there is {shown(splits.values())}, but no folder {' or '.join(role.value)}",
            "Say with --split which folder to use.",
        )
    return ""


def _named_split(root: Path, split: str) -> str:
    folders = subfolders(root)
    alternatives = _VALIDATION_SPLITS if split.lower() in _VALIDATION_SPLITS else (split.lower(),)
    for name in (split, *alternatives):
        for folder in folders:
            if name in (folder, folder.lower()):
                return folder
    raise UsageError(f"--split {split}: {root} has no such folder", f"The folders there: {shown(folders) or 'none'}.")


def _check_images(opened: Split, label_file: LabelFile | None) -> None:
    if not opened.files:
        inside = f" in its {len(opened.class_folders)} folders" if opened.class_folders else ""
        raise DatasetError(
            f"{opened.folder}: there are no images{inside}",
            "Images are files that end in .jpg, .png, .webp, .tif, .bmp or another ending that Pillow knows.",
        )
    if not opened.class_folders and label_file is None:
        raise DatasetError(
            f"{opened.folder}: there are {len(opened.files)} images, but no class folders",
            "Put the images of each class into a folder with the name of the class, or give --labels FILE.csv.",
        )


def _samples(
    source: _Source, opened: Split, other_splits: frozenset[str], names: ClassNames
) -> list[tuple[ImageFile, int]]:
    """The images that are used, each with its class."""
    positions = {folder: names.position(folder) for folder in opened.class_folders}
    given: dict[str, int] = {}
    if source.labels is not None:
        rows = _located(source.labels, opened, other_splits)
        given = {path: _labelled(source.labels, row, names) for path, row in rows.items()}
        # Beside a label file, folders of which none has the name of a class are no class folders ("images/").
        if all(position is None for position in positions.values()):
            positions = {}
    files = opened.files
    if source.listed is not None:
        listed = _located(source.listed, opened, other_splits)
        files = tuple(file for file in files if file.path in listed)

    samples = []
    unknown: dict[str, None] = {}
    for file in files:
        folder = opened.class_folder(file.path)
        label = given[file.path] if file.path in given else positions.get(folder or "")
        if label is not None:
            samples.append((file, label))
        elif folder is not None and folder in positions:
            unknown[folder] = None
    if unknown:
        raise names.unknown(list(unknown), os.fspath(opened.folder))
    if not samples:
        raise DatasetError(
            f"{opened.folder}: none of its {len(opened.files)} images has a label",
            "Name images of this folder in the file, or put them into class folders.",
        )
    return samples


def _labelled(label_file: LabelFile, row: LabelRow, names: ClassNames) -> int:
    label = names.label_position(row.label)
    if label is None:
        raise names.unknown([row.label], label_file.where(row))
    return label


def _located(label_file: LabelFile, opened: Split, other_splits: frozenset[str]) -> dict[str, LabelRow]:
    """The lines of a file by the image of the split that each names; lines about images of other splits left out."""
    known = {file.path for file in opened.files}
    root = os.path.realpath(opened.root)
    bases = (root, os.path.join(root, opened.name), os.path.realpath(label_file.file.parent))  # noqa: PTH118
    located: dict[str, LabelRow] = {}
    for row in label_file.rows:
        written = row.path.removeprefix(f"{opened.root.absolute()}/")
        candidates = [path for base in bases if (path := _path_below(root, base, written))]
        path = next((candidate for candidate in candidates if candidate in known), None)
        if path in located:
            raise DatasetError(
                f"{label_file.where(row)}: {row.path!r} was named in line {located[path].line} already",
                "Keep one line per image.",
            )
        if path is not None:
            located[path] = row
        elif not _is_in_splits(written, candidates, opened.root, other_splits):
            raise DatasetError(
                f"{label_file.where(row)}: there is no image {row.path!r} in the folder {str(opened.folder)!r}",
                "Write paths relative to the data folder, its split or the file itself.",
            )
    return located


def _path_below(root: str, base: str, path: str) -> str | None:
    """From a path relative to `base` to one relative to `root`; None where it leads out. No file is looked at."""
    whole = os.path.normpath(os.path.join(base, path))  # noqa: PTH118 (pathlib does not resolve ".." without the disk)
    return whole[len(root) + 1 :].replace(os.sep, "/") if whole.startswith(root + os.sep) else None


def _is_in_splits(path: str, candidates: Sequence[str], root: Path, splits: frozenset[str]) -> bool:
    below = [candidate for candidate in candidates if candidate.partition("/")[0] in splits]
    below += [f"{split}/{path}" for split in splits]
    # Path.is_file raises on what no file system takes for a name, and the path comes from a file.
    return any(os.path.isfile(root / candidate) for candidate in below)  # noqa: PTH113
