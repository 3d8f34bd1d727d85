"""What lies in a data folder: its image files, its class folders and its splits."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sapcli.datasets.image_files import image_suffixes
from sapcli.errors import DatasetError

_SYSTEM_NAMES = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}
)
_SPLIT_NAMES = ("train", "val", "valid", "validation", "test")

_Identity = tuple[int, int]


@dataclass(frozen=True)
class ImageFile:
    """One image file of a data folder.

    Attributes:
        path: POSIX path relative to the data folder.
    """

    path: str


@dataclass(frozen=True)
class Split:
    """A folder of class folders, or of images, inside a data folder.

    Attributes:
        root: The data folder.
        name: The split's folder below it; empty for the data folder itself.
        class_folders: The names of the folders in it, in torchvision's order.
        files: Its images, nested folders included, sorted by path.
    """

    root: Path
    name: str
    class_folders: tuple[str, ...]
    files: tuple[ImageFile, ...]

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.root / self.name

    def class_folder(self, path: str) -> str | None:
        """The class folder of an image, by its path relative to the data folder; None where it lies in none."""
        below = path.removeprefix(f"{self.name}/") if self.name else path
        folder, slash, _rest = below.partition("/")
        return folder if slash else None


def open_split(root: Path, name: str) -> Split:
    """List a split of a data folder, or all of it where `name` is empty.

    Hidden and system files are left out. Links are followed; a folder that was seen already inside the same class
    folder, or that holds the class folder, is not entered again, so loops of links end.

    Raises:
        DatasetError: If a folder cannot be listed.
    """
    start = root / name
    entries = _entries(start)
    holders = {_identity(root), _identity(start)}
    prefix = f"{name}/" if name else ""
    class_folders = []
    files: list[ImageFile] = []
    for entry in entries:
        if _is_folder(entry):
            class_folders.append(entry.name)
            files.extend(_images_below(entry.path, prefix + entry.name, set(holders)))
        elif _is_image(entry):
            files.append(ImageFile(prefix + entry.name))
    return Split(root, name, tuple(class_folders), tuple(sorted(files, key=lambda file: file.path)))


def holds_images(folder: Path) -> bool:
    """Whether there is an image file in the folder or below it.

    Raises:
        DatasetError: If a folder cannot be listed.
    """
    return next(_images_below(folder, "", set()), None) is not None


def subfolders(folder: Path) -> tuple[str, ...]:
    """The names of the visible folders directly inside `folder`, sorted as torchvision does.

    Raises:
        DatasetError: If the folder cannot be listed.
    """
    return tuple(entry.name for entry in _entries(folder) if _is_folder(entry))


def split_folders(root: Path, *, without_classes: bool = False) -> dict[str, str]:
    """The splits of a data folder: from the name in lower case ("train", "validation") to the folder's name on disk.

    A split holds class folders, so a class that happens to be called "train" is none.

    Args:
        root: The data folder.
        without_classes: Whether splits may hold their images directly, as they do where a file has the labels.

    Raises:
        DatasetError: If a folder cannot be listed.
    """
    names = subfolders(root)
    named = {name.lower(): name for name in reversed(names) if name.lower() in _SPLIT_NAMES}
    if without_classes and all(name.lower() in _SPLIT_NAMES for name in names):
        return named
    return {split: name for split, name in named.items() if subfolders(root / name)}


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The visible entries of a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not _is_hidden(entry.name)]
    except OSError as error:
        raise _unlisted(folder, error) from error
    return sorted(visible, key=lambda entry: entry.name)


def _identity(folder: str | Path) -> _Identity:
    try:
        status = Path(folder).stat()
    except OSError as error:
        raise _unlisted(folder, error) from error
    return status.st_dev, status.st_ino


def _unlisted(folder: str | Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"{os.fspath(folder)!r}: cannot list the folder: {error.strerror}",
        "Check that the folder exists and that you may read it.",
    )


def _images_below(folder: str | Path, path: str, seen: set[_Identity]) -> Iterator[ImageFile]:
    # A stack rather than recursion: folders can be nested deeper than Python's frames.
    pending = [(folder, path)]
    while pending:
        folder, path = pending.pop()
        identity = _identity(folder)
        if identity in seen:
            continue
        seen.add(identity)
        for entry in reversed(_entries(folder)):
            below = f"{path}/{entry.name}"
            if _is_folder(entry):
                pending.append((entry.path, below))
            elif _is_image(entry):
                yield ImageFile(below)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether an image by its name, and no named pipe or device, which would block or never end."""
    if not entry.name.lower().endswith(image_suffixes()):
        return False
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a link that leads nowhere is a sample that is named when it is read
        return True
