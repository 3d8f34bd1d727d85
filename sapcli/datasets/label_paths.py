"""Which image each line of a label file means.

A path means the file beside the label file before it means anything else, then the file in the data folder, then that
in a split. Where several splits have it, nothing is guessed.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from sapcli.datasets.classes import shown
from sapcli.datasets.folders import Split, open_split
from sapcli.datasets.formats import image_suffixes
from sapcli.datasets.labels.label_files import LabelFile, LabelRow
from sapcli.errors import DatasetError

# Of the folders that an absolute path of another machine leads through.
_MOST_LEFT_OUT = 64


@dataclass(frozen=True)
class LocatedRows:
    """The lines of a label file that are about one split.

    Attributes:
        rows: The lines by the image that each names.
        remarks: What was guessed or passed over, for people.
        notes: What was understood, for people.
    """

    rows: Mapping[str, LabelRow]
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def locate_rows(label_file: LabelFile, opened: Split, others: Collection[str], meant: str | None) -> LocatedRows:
    """Find the image of the opened split that each line means; lines about images elsewhere are passed over.

    Args:
        label_file: The lines.
        opened: The images that are in question.
        others: The other splits of the data folder.
        meant: The split that is meant where a path stands for an image in several.

    Raises:
        DatasetError: If a line names no image, one that another line names, or images in several splits; if labels
            without paths are not as many as the images.
    """
    if label_file.is_ordered:
        return _in_order(label_file, opened, others, meant)
    places = _Places(label_file.file, opened, others)
    located: dict[str, LabelRow] = {}
    remarks: Counter[str] = Counter()
    by_their_end: list[tuple[str, str]] = []
    for row in label_file.rows:
        found = places.images(row.path)
        what = None if found else places.passed_over(row.path)
        if not found and what is None:
            found = places.by_their_end(row.path, label_file.where(row))
            by_their_end += [(row.path, path) for _split, path in found[:1]]
        splits = [split for split, _path in found]
        if len(found) > 1:
            if meant not in splits:
                raise DatasetError(
                    f"{label_file.where(row)}: {row.path!r} is an image in each of {shown(sorted(splits))}",
                    f"Write paths from the data folder on ({found[0][1]}), put the file into the folder that it is"
                    " about, or say with --split which folder is meant.",
                )
            remarks[f"name images in each of {shown(sorted(splits))}: taken as those in {meant!r}"] += 1
            found = [found[splits.index(meant)]]
        if not found:
            if what is None:
                raise DatasetError(
                    f"{label_file.where(row)}: there is no image {row.path!r} in the folder {str(opened.folder)!r}",
                    "Write paths relative to the data folder, its split or the file itself.",
                )
            remarks[what] += 1
            continue
        [(split, path)] = found
        if split != opened.name:
            continue
        if path in located:
            raise DatasetError(
                f"{label_file.where(row)}: {row.path!r} was named in line {located[path].line} already",
                "Keep one line per image.",
            )
        located[path] = row
    notes = []
    if by_their_end:
        written, path = by_their_end[0]
        notes.append(
            f"{label_file.file}: {len(by_their_end):,} lines name images by their end: {written!r} is {path!r}"
        )
    return LocatedRows(
        located,
        tuple(f"{label_file.file}: {count:,} lines {what}" for what, count in remarks.items()),
        tuple(notes),
    )


def _in_order(label_file: LabelFile, opened: Split, others: Collection[str], meant: str | None) -> LocatedRows:
    """Labels without paths: they are about the split that has as many images, in the order of its sorted paths."""
    counts = {opened.name: len(opened.files)}
    for other in others:
        counts[other] = len(open_split(opened.root, other).files)
    count = len(label_file.rows)
    fitting = [name for name, images in counts.items() if images == count]
    if len(fitting) > 1 and meant in fitting:
        fitting = [meant]
    if len(fitting) != 1:
        found = ", ".join(f"{images:,} in {name or str(opened.root)!r}" for name, images in counts.items())
        raise DatasetError(
            f"{label_file.file} has {count:,} labels and no paths, and there are {found}",
            "Give one label for each image of one folder, in the order of the sorted paths, or lines of path,label.",
        )
    if fitting[0] != opened.name:
        return LocatedRows({})
    paths = [file.path for file in opened.files]
    return LocatedRows(
        dict(zip(paths, label_file.rows, strict=True)),
        notes=(f"{label_file.file}: label 1 is taken for {paths[0]!r}, label {count:,} for {paths[-1]!r}",),
    )


class _Places:
    """Where the paths of a label file may lead."""

    def __init__(self, label_file: Path, opened: Split, others: Collection[str]) -> None:
        self._opened = opened
        self._root = os.path.realpath(opened.root)
        self._beside = os.path.realpath(label_file.parent)
        self._splits = sorted({opened.name, *others})
        own = _below(self._root, self._root, self._beside)
        own_split = own.partition("/")[0] if own else None
        # The file of one split says nothing about another one.
        self._searched = [own_split] if own_split in self._splits else [split for split in self._splits if split]
        self._listed = {opened.name: _Listing(opened)}
        self._folders: dict[str, str | None] = {}
        self._elsewhere: str | None = None

    def images(self, written: str) -> list[tuple[str, str]]:
        """The images that a path as written stands for: each with its split and its path from the data folder on."""
        for spelling in _spellings(written):
            for base in dict.fromkeys((self._beside, self._root)):
                found = self._image(_below(self._root, base, spelling))
                if found is not None:
                    return [found]
            if not Path(spelling).is_absolute():
                inside = (
                    self._image(_below(self._root, os.path.join(self._root, split), spelling))  # noqa: PTH118
                    for split in self._searched
                )
                found_inside = list(dict.fromkeys(found for found in inside if found is not None))
                if found_inside:
                    return found_inside
            for base in dict.fromkeys((self._beside, self._root)):
                found = self._image(self._through_links(base, spelling))
                if found is not None:
                    return [found]
        return []

    def by_their_end(self, written: str, where: str) -> list[tuple[str, str]]:
        """The images whose paths end as is written, with their ending or without it; one of a split, each with it.

        Raises:
            DatasetError: If several images of one split do.
        """
        found = []
        for spelling in _spellings(written):
            plain = os.path.normpath(spelling)
            if _is_absolute(spelling):
                found = self._as_elsewhere(spelling)
                if found:
                    break
                continue
            if plain.startswith("..") or "\0" in plain:
                continue
            for split in self._searched or [""]:
                if split not in self._listed:
                    self._listed[split] = _Listing(open_split(self._opened.root, split))
                paths = self._listed[split].ending_in(plain)
                if len(paths) > 1:
                    raise DatasetError(
                        f"{where}: {written!r} fits {len(paths)} images, {shown(sorted(paths)[:2])}"
                        f"{' among them' if len(paths) > 2 else ''}",
                        "Write paths from the data folder on.",
                    )
                found += [(split, path) for path in paths]
            if found:
                break
        return found

    def _as_elsewhere(self, written: str) -> list[tuple[str, str]]:
        """The images of a path from another machine, or of an address, which begin alike in all of a file.

        How they begin is told by the first of them: as little is left out as has to be.
        """
        if self._elsewhere is not None:
            return self.images(written.removeprefix(self._elsewhere)) if written.startswith(self._elsewhere) else []
        end = written
        for _ in range(_MOST_LEFT_OUT):
            end = end.partition("/")[2].lstrip("/")
            if not end:
                break
            if found := self.images(end):
                self._elsewhere = written[: len(written) - len(end)]
                return found
        return []

    def passed_over(self, written: str) -> str | None:
        """What a path stands for that is no image of the data, in words; None where there is no such file."""
        bases = [self._beside, self._root, *(os.path.join(self._root, split) for split in self._searched)]  # noqa: PTH118
        if not written.lower().endswith(image_suffixes()):
            return (
                "name files that are no images by their ending: passed over" if self._is_file(written, bases) else None
            )
        # A label file above the data folder, or of folders beside the splits, may be about more than these.
        above = self._beside if f"{self._root}/".startswith(f"{self._beside.rstrip('/')}/") else self._root
        lies_there = any(
            _below(above, base, spelling) is not None and self._is_file(spelling, [base])
            for spelling in _spellings(written)
            for base in (self._beside, self._root)
        )
        return f"name images outside of {self._opened.folder}: passed over" if lies_there else None

    def _is_file(self, written: str, bases: Sequence[str]) -> bool:
        # Path.is_file raises on what no file system takes for a name, and the path comes from a file.
        return any(
            os.path.isfile(os.path.join(base, spelling))  # noqa: PTH113, PTH118
            for spelling in _spellings(written)
            for base in bases
        )

    def _image(self, path: str | None) -> tuple[str, str] | None:
        """The split of an image, and its path as the disk spells it, by its path from the data folder on."""
        if path is None:
            return None
        first = path.partition("/")[0]
        split = first if first in self._splits else ""
        if split not in self._splits:
            return None
        if split not in self._listed:
            self._listed[split] = _Listing(open_split(self._opened.root, split))
        found = self._listed[split].image(path)
        return None if found is None else (split, found)

    def _through_links(self, base: str, written: str) -> str | None:
        """From a path that leads into the data folder by another way, through links, to one from the data folder on."""
        folder, name = os.path.split(os.path.normpath(os.path.join(base, written)))  # noqa: PTH118
        if folder not in self._folders:
            self._folders[folder] = self._folder_through_links(folder)
        inside = self._folders[folder]
        return None if inside is None else f"{inside}/{name}".removeprefix("/")

    def _folder_through_links(self, folder: str) -> str | None:
        root = _identity(self._root)
        steps = Path(folder)
        for step in (steps, *steps.parents):
            if root is not None and _identity(step) == root:
                inside = steps.relative_to(step).as_posix()
                return "" if inside == "." else inside
        try:
            real = os.path.realpath(folder)
        except (OSError, ValueError):
            return None
        return "" if real == self._root else _below(self._root, self._root, real)


class _Listing:
    """The images of a split by their paths, in any Unicode form."""

    def __init__(self, split: Split) -> None:
        self._paths = {file.path for file in split.files}
        self._composed: dict[str, str | None] | None = None
        self._by_stem: dict[str, list[str]] | None = None

    def image(self, path: str) -> str | None:
        """The path as the disk spells it; None where there is no such image, or two in another Unicode form."""
        if path in self._paths:
            return path
        if path.isascii():
            return None
        if self._composed is None:
            self._composed = {}
            for known in self._paths:
                composed = unicodedata.normalize("NFC", known)
                self._composed[composed] = None if composed in self._composed else known
        return self._composed.get(unicodedata.normalize("NFC", path))

    def ending_in(self, end: str) -> list[str]:
        """The paths that end so, in any Unicode form: as a whole, else without the ending of their format."""
        if self._by_stem is None:
            self._by_stem = {}
            for path in self._paths:
                self._by_stem.setdefault(_stem(path), []).append(path)
        end = unicodedata.normalize("NFC", end)
        name = end.rpartition("/")[2]
        is_image = name.lower().endswith(image_suffixes())
        for stem in (name.rpartition(".")[0],) if is_image else (name,):
            candidates = [(unicodedata.normalize("NFC", path), path) for path in self._by_stem.get(stem, ())]
            if not is_image:
                candidates = [(known.rpartition(".")[0], path) for known, path in candidates]
            found = [path for known, path in candidates if known == end or known.endswith(f"/{end}")]
            if found:
                return found
        return []


def _stem(path: str) -> str:
    """The name of a file without its ending, composed."""
    return unicodedata.normalize("NFC", path).rpartition("/")[2].rpartition(".")[0]


def _spellings(written: str) -> Iterator[str]:
    """A path as it stands there, and with the slashes of this system where it has those of Windows."""
    yield written
    if "\\" in written:
        yield written.replace("\\", "/")
    if "%" in written or written.startswith("file:"):
        yield unquote(written.removeprefix("file://"))


def _is_absolute(path: str) -> bool:
    """Whether a path begins at the root of a disk, of this system's or of another's, or is an address."""
    return path.startswith("/") or re.match(r"[A-Za-z][\w+.-]*:/", path) is not None


def _below(root: str, base: str, path: str) -> str | None:
    """From a path relative to `base` to one relative to `root`; None where it leads out. No file is looked at."""
    whole = os.path.normpath(os.path.join(base, path))  # noqa: PTH118 (pathlib does not resolve ".." without the disk)
    inside = root if root.endswith(os.sep) else root + os.sep
    return whole[len(inside) :].replace(os.sep, "/") if whole.startswith(inside) else None


def _identity(folder: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)  # noqa: PTH116 (the path comes from a file, and may be no path at all)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
