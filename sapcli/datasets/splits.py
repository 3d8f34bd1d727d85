"""Whether the folders of a data folder are its classes or its splits, and which split is for what.

Names alone do not tell: `train` is a split beside `test` and a class beside `bus`. What the folders hold, and the
classes that the model has, decide with them; where they leave it open, nothing is guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sapcli.datasets.classes import ClassNames, shown
from sapcli.datasets.folders import Contents, holds_images, look_into, subfolders
from sapcli.datasets.labels.class_maps import read_class_map
from sapcli.datasets.labels.label_files import label_files_in
from sapcli.datasets.labels.standard_files import has_standard_labels, metadata_in
from sapcli.datasets.split_names import SplitRole, mentioned_role, says_evaluation, says_images, split_role
from sapcli.errors import DatasetError, UsageError

THE_FOLDER_ITSELF = "."
"""What `--split` says for the data folder itself, whose folders then are classes whatever they are called."""

_SYNSET = re.compile(r"n\d{8}")
_AS_CLASSES = f"with --split {THE_FOLDER_ITSELF} the folders are the classes"


@dataclass(frozen=True)
class ExpectedClasses:
    """What is known of the classes before a data folder is opened.

    Attributes:
        count: The number of the model's outputs.
        names: Their names, where the checkpoint has them.
        mapped: The folders of the class map.
    """

    count: int
    names: ClassNames | None = None
    mapped: frozenset[str] = frozenset()

    @classmethod
    def of(cls, count: int, label_names: Sequence[str] | None, class_map: Path | None) -> ExpectedClasses:
        """Collect them.

        Raises:
            DatasetError: If the class map cannot be read.
        """
        names = None if label_names is None else ClassNames(label_names)
        return cls(count, names, frozenset(read_class_map(class_map)) if class_map else frozenset())

    @property
    def named(self) -> bool:
        """Whether a folder can be told to be a class by its name."""
        return self.names is not None or bool(self.mapped)

    def include(self, folders: Collection[str]) -> bool:
        """Whether folders of these names can be the classes: by name where names are known, else by their number."""
        if not folders:
            return False
        if all(_SYNSET.fullmatch(folder) for folder in folders):
            return True
        if not self.named:
            return len(folders) == self.count
        return all(
            folder in self.mapped or (self.names is not None and self.names.position(folder) is not None)
            for folder in folders
        )


@dataclass(frozen=True)
class Splits:
    """How a data folder is divided; without roles and others, it is one whole.

    Attributes:
        root: The data folder.
        roles: The splits' folders by what they are for, each at least one.
        others: Folders with images beside them that no role takes; `--split` may name them.
        unlabelled: The splits that hold images and no class folders, while others hold class folders.
        remarks: What was guessed or left out, for people.
        doubt: Why it cannot be told which folder is for what, where nobody says so.
    """

    root: Path
    roles: Mapping[SplitRole, tuple[str, ...]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    doubt: DatasetError | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """All folders that are not classes, sorted."""
        return tuple(sorted({*(name for names in self.roles.values() for name in names), *self.others}))

    def only(self, role: SplitRole) -> str | None:
        """The one folder of a role; None where there is none, or where several differ."""
        names = self.roles.get(role, ())
        return names[0] if len(names) == 1 else None

    def named(self, name: str) -> str:
        """The folder that `--split NAME` means: by its name, by its spelling, else by its role.

        Raises:
            UsageError: If there is no such folder, or several are meant.
        """
        if name == THE_FOLDER_ITSELF:
            return ""
        folders = subfolders(self.root)
        role = split_role(name)
        meanings = (
            [folder for folder in folders if folder == name],
            [folder for folder in folders if folder.casefold() == name.rstrip("/").casefold()],
            [folder for folder in folders if role is not None and split_role(folder) is role],
        )
        found = next((names for names in meanings if names), [])
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"--split {name}: {self.root} holds {shown(found)}", "Give the name as it stands there.")
        raise UsageError(
            f"--split {name}: {self.root} has no such folder", f"The folders there: {shown(folders) or 'none'}."
        )

    def chosen(self, wanted: Sequence[SplitRole], *, optional: bool) -> str | None:
        """The folder of the first of these roles that there is.

        Args:
            wanted: The roles, the best first.
            optional: Whether it is no error when there is none.

        Returns:
            The folder's name, empty for the data folder itself; None where there is none and it is optional.

        Raises:
            DatasetError: If there is none or it cannot be told.
        """
        if self.doubt is not None and not optional:
            raise self.doubt
        for role in wanted:
            names = [name for name in self.roles.get(role, ()) if name not in self.unlabelled]
            if len(names) > 1:
                names = [name for name in names if holds_images(self.root / name)]
            if len(names) > 1:
                raise DatasetError(
                    f"{self.root}: there are {len(names)} folders for {role.value}, {shown(names)}",
                    "Say with --split which one to use (of validation images: with --val), or move the others away.",
                )
            if names:
                return names[0]
        if optional:
            return None
        if self.folders:
            missing = " or ".join(role.value for role in wanted)
            without = f" with class folders (not in {shown(self.unlabelled)})" if self.unlabelled else ""
            raise DatasetError(
                f"{self.root}: there is {shown(self.folders)}, but no folder {missing}{without}",
                "Say with --split which folder to use.",
            )
        return ""

    @property
    def left_out(self) -> tuple[str, ...]:
        """What is to be said of splits that hold no class folders while others do."""
        if not self.unlabelled or self.doubt is not None:
            return ()
        return (f"{self.root}: {shown(self.unlabelled)} without class folders: left out",)


def find_splits(root: Path, expected: ExpectedClasses, *, labelled: bool = False) -> Splits:
    """Tell whether a data folder holds classes or splits.

    A folder is a split by its name (see `split_role`) and where it holds class folders; so are folders of any name that
    hold the same folders inside, if these can be the model's classes. Folders of images alone are classes, and splits
    only where a label file has the labels.

    Args:
        root: The data folder.
        expected: The classes.
        labelled: Whether a label file is given.

    Raises:
        DatasetError: If a folder cannot be listed.
    """
    return _Division(root, expected, labelled).splits()


class _Division:
    """The folders of a data folder, each looked into when it first matters: there may be thousands of classes."""

    def __init__(self, root: Path, expected: ExpectedClasses, labelled: bool) -> None:
        self._root = root
        self._expected = expected
        self._labelled = labelled
        self._names = subfolders(root)
        self._called = {name: role for name in self._names if (role := split_role(name)) is not None}
        self._looks: dict[str, Contents] = {}

    def splits(self) -> Splits:
        """The answer."""
        called = [name for name in self._called if self._look(name).folders or self._look(name).files]
        if not called:
            return self._without_names()
        inside = sorted({folder for name in called for folder in self._look(name).folders})
        others = [name for name in self._names if name not in called and self._filled(name)]
        return self._nested(called, inside, others) if inside else self._flat(called, others)

    def _nested(self, called: list[str], inside: list[str], others: list[str]) -> Splits:
        """Some folders that are called like splits hold folders."""
        as_classes, as_splits = self._expected.include([*called, *others]), self._expected.include(inside)
        if self._expected.named and as_classes and not as_splits:
            return Splits(self._root)
        alike = [name for name in others if not set(inside).isdisjoint(self._look(name).folders)]
        beside = [name for name in others if name not in alike]
        inner = ClassNames(inside)
        if beside:
            # A label file may name images that lie in no class folder, wherever they are.
            mixed = [name for name in beside if inner.position(name) is not None and not self._labelled]
            if mixed or (as_classes and as_splits and not self._labelled):
                named = shown(mixed or beside)
                return self._doubtful(
                    f"{_like_splits(called)}, and beside {'them' if len(called) > 1 else 'it'} lie {named}",
                    f"Say with --split which folder to use, or move the others away; {_AS_CLASSES}.",
                    called,
                    others,
                )
            if as_classes and not as_splits:
                return Splits(self._root)
        left = f"{self._root}: {shown(others)} beside {shown(called)}: left out (--split names a folder)"
        return self._divided(called, others, [left] if others else [])

    def _flat(self, called: list[str], others: list[str]) -> Splits:
        """All folders that are called like splits hold images alone."""
        several = len({self._called[name] for name in called}) > 1
        if self._expected.named and self._expected.include([*called, *others]):
            return Splits(self._root)
        inside = [file for name in called for file in label_files_in(self._root / name)]
        beside = label_files_in(self._root)
        about_them = [file for file in beside if _mentions(file.stem, called)]
        own = metadata_in(self._root) is not None or all(has_standard_labels(self._root / name) for name in called)
        if (self._labelled or own) and not (others and not several):
            return self._divided(called, others)
        # Where every class folder has such a file, it is no sign of a split.
        told = about_them or (inside and not any(label_files_in(self._root / name) for name in others))
        if others and not several and not told:
            return Splits(self._root)
        files = [*(about_them or beside), *inside]
        hint = "Give the file that has their labels, with --labels or in place of the data folder"
        return self._doubtful(
            f"{_like_splits(called)} without class folders",
            f"{hint}{f' ({shown(map(str, files))})' if files else ''}; {_AS_CLASSES}.",
            called,
            others,
        )

    def _without_names(self) -> Splits:
        """No folder is called like a split; those that all hold the same folders are splits nevertheless."""
        whole = Splits(self._root)
        alike: list[str] = []
        shared: set[str] = set()
        union: set[str] = set()
        for name in self._names:
            look = self._look(name)
            if look.folders:
                shared = shared & set(look.folders) if alike else set(look.folders)
                union |= set(look.folders)
                alike.append(name)
            if look.images or (alike and not shared):
                return whole
        alike = [name for name in alike if self._filled(name)]
        if len(alike) < 2 or 2 * len(shared) < len(union) or (self._expected.named and self._expected.include(alike)):
            return whole
        inside = sorted(union)
        if len({role for name in inside if (role := split_role(name)) is not None}) > 1:
            return self._doubtful(
                f"each of the folders {shown(alike)} holds the splits {shown(inside)}",
                f"Put the splits outside: {inside[0]}/{alike[0]} in place of {alike[0]}/{inside[0]}; "
                f"with --split {THE_FOLDER_ITSELF} all images are one.",
            )
        if not self._expected.include(inside):
            return replace(
                whole, remarks=(f"{self._root}: {shown(alike)} are taken for classes, and all hold {shown(inside)}",)
            )
        roles = {name: role for name in alike if (role := mentioned_role(name)) is not None}
        if len(set(roles.values())) == len(roles) == len(alike):
            self._called = roles
            used = ", ".join(f"{name!r} as {role.value}" for name, role in roles.items())
            return self._divided(alike, remarks=[f"{self._root}: the folders hold the same classes; used: {used}"])
        return self._doubtful(
            f"{shown(alike)} hold the same folders ({shown(inside)}), as splits do and classes do not",
            f"Say with --split which one to use, or call them train, val and test; {_AS_CLASSES}.",
            others=alike,
        )

    def _divided(self, called: Sequence[str], others: Sequence[str] = (), remarks: Sequence[str] = ()) -> Splits:
        said = list(remarks)
        roles: dict[SplitRole, list[str]] = {}
        for name in self._without_doubles(called):
            roles.setdefault(self._called[name], []).append(name)
        tests = roles.get(SplitRole.TEST, [])
        evaluations = [name for name in tests if says_evaluation(name)]
        if SplitRole.VALIDATION not in roles and 0 < len(evaluations) < len(tests):
            tests = [name for name in tests if name not in evaluations]
            roles |= {SplitRole.VALIDATION: evaluations, SplitRole.TEST: tests}
            said.append(f"{self._root}: {shown(evaluations)} beside {shown(tests)} is used for validation")
        unlabelled = () if self._labelled else tuple(name for name in called if self._is_without_labels(name))
        return Splits(
            self._root,
            {role: tuple(names) for role, names in roles.items()},
            tuple(others),
            unlabelled,
            tuple(said),
        )

    def _is_without_labels(self, name: str) -> bool:
        """Whether a split has neither class folders nor a file of a known name with its labels."""
        folders = self._look(name).folders
        if folders and not (len(folders) == 1 and says_images(folders[0])):
            return False
        return not has_standard_labels(self._root / name) and metadata_in(self._root) is None

    def _doubtful(self, what: str, hint: str, called: Sequence[str] = (), others: Sequence[str] = ()) -> Splits:
        return replace(self._divided(called, others), doubt=DatasetError(f"{self._root}: {what}", hint), remarks=())

    def _without_doubles(self, names: Sequence[str]) -> Iterator[str]:
        """The folders without those that are links to another one."""
        seen = set()
        for name in names:
            place = os.path.realpath(self._root / name)
            if place not in seen:
                seen.add(place)
                yield name

    def _look(self, name: str) -> Contents:
        if name not in self._looks:
            self._looks[name] = look_into(self._root / name)
        return self._looks[name]

    def _filled(self, name: str) -> bool:
        look = self._look(name)
        return look.images or (bool(look.folders) and holds_images(self._root / name))


def _like_splits(names: Collection[str]) -> str:
    return f"{shown(names)} {'look like splits' if len(names) > 1 else 'looks like a split'}"


def _mentions(stem: str, folders: Collection[str]) -> bool:
    """Whether a file is called after one of the folders: `train.csv`, `train_labels.csv`."""
    words = {stem.casefold(), *re.split(r"[\W_]+", stem.casefold())}
    return any(folder.casefold() in words for folder in folders)
