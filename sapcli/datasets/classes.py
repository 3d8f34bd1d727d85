"""Which output of the model a class name means: label names, ImageNet ids, class maps, folder names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar, cast

from sapcli.datasets.folders import holds_images
from sapcli.datasets.labels.class_maps import read_class_map
from sapcli.datasets.labels.label_files import LabelFile
from sapcli.datasets.labels.label_numbers import numbered_classes, whole_number
from sapcli.errors import DatasetError

_SYNSET = re.compile(r"n\d{8}")
_NAMES_SHOWN = 8
_OTHER_FOLDER = "Give the folder that the model was trained on, or label_names in config.json to match classes by name."
_DEEPEST_LONE_FOLDER = 4

_Name = TypeVar("_Name", str, int | None)


class ClassNames:
    """The classes of a model, and the names that they go by.

    Attributes:
        names: One name per output, in the order of the outputs.
    """

    def __init__(self, names: Sequence[str], aliases: Mapping[str, int] | None = None) -> None:
        self.names = tuple(names)
        self._exact = _positions(names) | dict(aliases or {})
        self._by_spelling = _positions([_spelling(name) for name in names])
        # Names that are numbers are compared by their value: "07", "7" and "7.0" are one.
        self._by_number = _positions([whole_number(name) for name in names])
        self._by_number |= {whole_number(name): position for name, position in (aliases or {}).items()}
        self._numbered = any(whole_number(name) is not None for name in (*names, *(aliases or {})))

    def position(self, name: str) -> int | None:
        """The one output that a name means, or None.

        A name that no class has as it stands is compared without case, separators and Unicode form.
        """
        return self._exact.get(name, self._by_spelling.get(_spelling(name)))

    def label_position(self, label: str) -> int | None:
        """The one output that a label of a file means, or None; a number means the output where no name is a number."""
        number = whole_number(label)
        if label in self._exact or number is None:
            return self.position(label)
        if self._numbered:
            return self._by_number.get(number)
        return number if 0 <= number < len(self.names) else None

    def label_number(self, label: str) -> int | None:
        """The number that a label says of an output, also beyond the last; None where it says the name of a class."""
        return None if self._numbered or label in self._exact else whole_number(label)

    def unknown(self, names: Sequence[str], where: str) -> DatasetError:
        """The error about names that mean no class of the model.

        Args:
            names: The names.
            where: The folder that holds them or the line of the file that says them.
        """
        close = get_close_matches(names[0], self.names, n=1)
        known = f"did you mean {close[0]!r}?" if close else f"the model knows {shown(self.names)}"
        verb = "is no class" if len(names) == 1 else "are no classes"
        return DatasetError(
            f"{where}: {shown(names)} {verb} of the model; {known}",
            "Rename or remove what is wrong, or say with --class-map which class it is.",
        )


@dataclass(frozen=True)
class FoundClasses:
    """The class names that the data uses.

    Attributes:
        root: The folder that holds the class folders.
        folders: The class folders, in torchvision's order.
        label_file: The label file, if any.
    """

    root: Path
    folders: tuple[str, ...]
    label_file: LabelFile | None

    @property
    def labels(self) -> frozenset[str]:
        """The labels of the label file, without that of images that have none."""
        rows = self.label_file.rows if self.label_file else ()
        return frozenset(row.label for row in rows if not row.is_unlabelled or row.label in self.folders)


def resolve_class_names(
    num_classes: int, found: FoundClasses, label_names: Sequence[str] | None = None, class_map: Path | None = None
) -> ClassNames:
    """Decide which name means which output of the model.

    The names come from the checkpoint where it has them; else from the class map; else, where the folders are ImageNet
    ids and the model has the size of an ImageNet classifier, from ImageNet's order; else from the data itself, whose
    number of classes then has to fit.

    Raises:
        DatasetError: If the number of names does not fit the model, or the class map cannot be used.
    """
    mapping = read_class_map(class_map) if class_map else {}
    if label_names is not None:
        if len(label_names) != num_classes:
            raise DatasetError(
                f"the checkpoint names {len(label_names)} classes, and its classifier has {num_classes} outputs",
                "Correct label_names in the checkpoint's config.json, or remove them.",
            )
        names = tuple(label_names)
    elif class_map:
        names = _names_of_map(num_classes, mapping, class_map)
    else:
        names = _imagenet_ids(num_classes, found.folders or found.labels) or _names_on_disk(num_classes, found)
    aliases = _imagenet_aliases(names, {*found.folders, *found.labels})
    plain = ClassNames(names, aliases)
    for folder, value in mapping.items():
        position = plain.position(value) if isinstance(value, str) else value
        if position is None or not 0 <= position < num_classes:
            raise DatasetError(
                f"{class_map}: {folder!r} is mapped to {value!r}, which is no class of the model",
                f"Use a number from 0 to {num_classes - 1}, or one of {shown(names)}.",
            )
        aliases[folder] = position
    return ClassNames(names, aliases)


def overridden_names(num_classes: int, label_names: Sequence[str], class_map: Path) -> str | None:
    """What there is to be said of a class map that means other outputs than the checkpoint's own names do.

    Args:
        num_classes: The number of outputs.
        label_names: The checkpoint's names, in the order of the outputs.
        class_map: The class map.

    Returns:
        A line; `None` where both agree on every folder.
    """
    mapping = read_class_map(class_map)
    own = ClassNames(label_names, _imagenet_aliases(label_names, mapping))
    changed = []
    for folder, value in mapping.items():
        mapped, named = own.position(value) if isinstance(value, str) else value, own.position(folder)
        if named is not None and mapped is not None and mapped != named and 0 <= mapped < num_classes:
            changed.append(f"{folder!r} is {label_names[mapped]!r} (output {mapped}) and not output {named}")
    if not changed:
        return None
    more = f" and {len(changed) - _NAMES_SHOWN} more" if len(changed) > _NAMES_SHOWN else ""
    return f"{class_map} overrides the checkpoint's own names: {'; '.join(changed[:_NAMES_SHOWN])}{more}"


def shown(names: Iterable[str]) -> str:
    """A few names for a message, in quotes and with what a terminal would not show escaped."""
    names = list(names)
    rest = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(repr(name) for name in names[:_NAMES_SHOWN]) + rest


def _names_of_map(num_classes: int, mapping: Mapping[str, str | int], class_map: Path) -> tuple[str, ...]:
    folders = {value: folder for folder, value in reversed([*mapping.items()]) if isinstance(value, int)}
    if folders:
        # Numbers that the map leaves out are classes that the data lacks.
        return tuple(folders.get(position, str(position)) for position in range(num_classes))
    names = tuple(sorted({str(value) for value in mapping.values()}, key=_numbers_as_numbers))
    if len(names) != num_classes:
        raise DatasetError(
            f"{class_map}: the map has {len(names)} classes, and the model has {num_classes}",
            "Map the folders to as many classes as the model has.",
        )
    return names


def _numbers_as_numbers(name: str) -> tuple[bool, float, str]:
    """A key to sort names by: whole numbers by their value, before and apart from all other names."""
    number = whole_number(name)
    return number is None, 0 if number is None else number, name


def _names_on_disk(num_classes: int, found: FoundClasses) -> tuple[str, ...]:
    labels = found.labels
    filled = found.folders
    if len(found.folders) != num_classes:
        filled = tuple(name for name in found.folders if holds_images(found.root / name))
    if len(filled) == num_classes:
        on_disk, known = ClassNames(filled), frozenset(filled)
        if all(
            label in known or (whole_number(label) is not None and on_disk.label_position(label) is not None)
            for label in labels
        ):
            return filled
    if found.label_file is None:
        with_images = frozenset(filled)
        empty = [name for name in found.folders if name not in with_images]
        inside = _folders_inside(found.root)
        raise DatasetError(
            f"{found.root}: {len(found.folders)} class folders ({shown(found.folders)}), "
            f"and the model has {num_classes} classes{f'; without images: {shown(empty)}' if empty else ''}",
            _OTHER_FOLDER if inside is None else f"Give the folder inside of it, if that is the data: {inside}.",
        )
    numbered = numbered_classes(found.label_file.file, labels, num_classes)
    if numbered is not None:
        return numbered
    if len(labels) != num_classes:
        raise DatasetError(
            f"{found.label_file.file}: {len(labels)} different labels ({shown(sorted(labels))}), "
            f"and the model has {num_classes} classes",
            "Look for misspelt labels, or say with --class-map which label is which class of the model.",
        )
    return tuple(sorted(labels, key=_numbers_as_numbers))


def _folders_inside(folder: Path) -> Path | None:
    """The first folder of several folders below one that holds nothing but another; None where it holds more."""
    inside = folder
    for _ in range(_DEEPEST_LONE_FOLDER):
        with os.scandir(inside) as entries:
            found = [entry for entry in entries if not entry.name.startswith((".", "__"))]
        if len(found) > 1:
            return inside if inside != folder and sum(entry.is_dir() for entry in found) > 1 else None
        if not found or not found[0].is_dir():
            return None
        inside = Path(found[0].path)
    return None


def _imagenet_ids(num_classes: int, folders: Collection[str]) -> tuple[str, ...] | None:
    """ImageNet's ids in the order of the outputs, where the folders are such ids and the model has ImageNet's size."""
    if not folders or not all(_SYNSET.fullmatch(folder) for folder in folders):
        return None
    return tuple(_imagenet_descriptions(num_classes)) or None


def _imagenet_aliases(names: Sequence[str], used: Collection[str]) -> dict[str, int]:
    """The outputs that ImageNet ids mean where the model's names are ImageNet's descriptions."""
    known = frozenset(names)
    ids = [name for name in used if _SYNSET.fullmatch(name) and name not in known]
    if not ids:
        return {}
    ordered = _imagenet_descriptions(len(names))
    if ordered:
        # By position: different ids share a description ("crane", the bird and the machine).
        pairs = zip(names, ordered.values(), strict=True)
        agreeing = sum(not _synonyms(name).isdisjoint(_synonyms(description)) for name, description in pairs)
        return {name: position for position, name in enumerate(ordered)} if agreeing > len(names) / 2 else {}
    descriptions = _imagenet_descriptions(None)
    positions = _positions([_spelling(name) for name in names])
    aliases = {}
    for name in ids:
        synonyms = _synonyms(descriptions.get(name, name))
        meant = {positions[synonym] for synonym in synonyms if synonym in positions}
        if len(meant) == 1:
            aliases[name] = meant.pop()
    return aliases


def _imagenet_descriptions(num_classes: int | None) -> dict[str, str]:
    """From id to description, in the order of the outputs, of the ImageNet of that size; empty where there is none."""
    # timm brings torch along, and most data never needs it here.
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = "imagenet-22k" if num_classes is None else infer_imagenet_subset({"num_classes": num_classes})
    return cast("dict[str, str]", ImageNetInfo(subset).label_descriptions(as_dict=True)) if subset else {}


def _synonyms(description: str) -> set[str]:
    return {_spelling(description), *(_spelling(part) for part in description.split(","))}


def _positions(names: Sequence[_Name]) -> dict[_Name, int]:
    """The positions of the names that occur once."""
    counts = Counter(names)
    return {name: position for position, name in enumerate(names) if counts[name] == 1}


def _spelling(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()
