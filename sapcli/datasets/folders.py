"""What lies in a data folder: its image files, its class folders and its splits."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sapcli.datasets.formats import image_suffixes
from sapcli.errors import DatasetError

_SYSTEM_NAMES = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}
)
# What lies beside images and is none: labels, lists, texts, settings, code. Other files are told of.
_TEXT_SUFFIXES = frozenset(
    {
        *(".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".lst", ".list", ".xml", ".yaml", ".yml", ".toml"),
        *(".md", ".rst", ".html", ".htm", ".tex", ".bib", ".ini", ".cfg", ".log", ".py", ".pyc", ".ipynb", ".sh"),
        *(".md5", ".sha1", ".sha256", ".xls", ".xlsx", ".ods", ".parquet"),
    }
)
_LONGEST_ENDING = 12
_ENDINGS_SHOWN = 5
_TEXT_NAMES = frozenset({"readme", "license", "licence", "copying", "notice", "authors", "changelog", "makefile"})

_Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
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
        passed_over: How many files that are no images lie in each class folder, by their endings in lower case; under
            the empty name those of a split without class folders. Texts, system and hidden files are not counted.
    """

    root: Path
    name: str
    class_folders: tuple[str, ...]
    files: tuple[ImageFile, ...]
    passed_over: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

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
    passed_over: dict[str, Counter[str]] = {}
    beside: Counter[str] = Counter()
    for entry in entries:
        if _is_folder(entry):
            class_folders.append(entry.name)
            passed_over[entry.name] = Counter()
            files.extend(_images_below(entry.path, prefix + entry.name, set(holders), passed_over[entry.name]))
        elif _is_image(entry):
            files.append(ImageFile(prefix + entry.name))
        else:
            _count_file(entry, beside)
    files.sort(key=lambda file: file.path)
    return Split(root, name, tuple(class_folders), tuple(files), passed_over if class_folders else {"": beside})


def told_of(split: Split, folders: Collection[str]) -> str:
    """How many files of these class folders are no images by their ending, in one line; empty where there are none."""
    counts: Counter[str] = Counter()
    for folder in folders:
        counts.update(split.passed_over.get(folder, {}))
    if not counts:
        return ""
    if len(counts) == 1:
        [(ending, number)] = counts.items()
        files, end, have, are = ("file", "ends", "has", "is") if number == 1 else ("files", "end", "have", "are")
        what = f"{end} in {ending}" if ending else f"{have} no ending"
        return f"{number:,} {files} of {split.folder} {what} and {are} left out"
    endings = [
        f"{number:,} {f'with the ending {ending}' if ending else 'without an ending'}"
        for ending, number in counts.most_common(_ENDINGS_SHOWN)
    ]
    more = ", ..." if len(counts) > _ENDINGS_SHOWN else ""
    return (
        f"{counts.total():,} files of {split.folder} are left out, being no images by their names: "
        f"{', '.join(endings)}{more}"
    )


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


@dataclass(frozen=True)
class Contents:
    """What lies directly in a folder, hidden and system files aside.

    Attributes:
        folders: The names of its folders.
        images: Whether there are images.
        files: Whether there are any files.
    """

    folders: tuple[str, ...]
    images: bool
    files: bool


def look_into(folder: Path) -> Contents:
    """See what lies directly in a folder.

    Raises:
        DatasetError: If the folder cannot be listed.
    """
    entries = _entries(folder)
    folders = tuple(entry.name for entry in entries if _is_folder(entry))
    return Contents(folders, any(map(_is_image, entries)), len(entries) > len(folders))


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


def _images_below(
    folder: str | Path, path: str, seen: set[_Identity], passed_over: Counter[str] | None = None
) -> Iterator[ImageFile]:
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
            elif passed_over is not None:
                _count_file(entry, passed_over)


def _count_file(entry: os.DirEntry[str], passed_over: Counter[str]) -> None:
    """Count a file that is no image by its name, unless it is a text that belongs beside images."""
    suffix = _ending(entry.name)
    if suffix in _TEXT_SUFFIXES or entry.name.lower() in _TEXT_NAMES or suffix in image_suffixes():
        return
    with contextlib.suppress(OSError):
        if entry.is_file():
            passed_over[suffix] += 1


def _ending(name: str) -> str:
    """What a file name ends in, in lower case and with its dot; empty where it is no ending as formats have them."""
    stem, _, ending = name.lower().rpartition(".")
    return f".{ending}" if stem and ending.isalnum() and len(ending) <= _LONGEST_ENDING else ""


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
    if not entry.is_symlink():
        # The folder itself tells, which spares a million calls for a million files.
        return entry.is_file(follow_symlinks=False)
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a link that leads nowhere is a sample that is named when it is read
        return True
