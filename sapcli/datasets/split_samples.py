"""The images of a split that are used, each with its class."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sapcli.datasets.classes import ClassNames
from sapcli.datasets.folders import ImageFile, Split, told_of
from sapcli.datasets.label_paths import locate_rows
from sapcli.datasets.labels.label_files import LabelFile, LabelRow
from sapcli.datasets.labels.label_numbers import UNLABELLED, perhaps_one_based, refuse_one_based, whole_number
from sapcli.datasets.sources import Source
from sapcli.errors import DatasetError

# Of labels without paths: so many times the share that agrees by chance tells that the order is not another one.
_CHANCE, _FEW_LABELS = 1.5, 50


class SplitSamples:
    """The images of a split that are used, each with its class, and what is to be said of the others."""

    def __init__(
        self, source: Source, opened: Split, others: frozenset[str], meant: str | None, names: ClassNames
    ) -> None:
        self._source = source
        self._opened = opened
        self._names = names
        self._remarks: list[str] = []
        self.notes: list[str] = []
        self._positions = {folder: names.position(folder) for folder in opened.class_folders}
        self._given: dict[str, int | None] = {}
        if source.labels is not None:
            located = locate_rows(source.labels, opened, others, meant)
            self._remarks += located.remarks
            if located.rows and source.labels.understood:
                self.notes.append(f"{source.labels.file}: {source.labels.understood}")
            self.notes += located.notes
            # Beside a label file, folders of which none has the name of a class are no class folders ("images/").
            if all(position is None for position in self._positions.values()):
                self._positions = {}
            self._given = self._labels(source.labels, located.rows)
            if source.labels.is_ordered and located.rows:
                self._compare_with_folders(source.labels)
        self.listed: tuple[ImageFile, ...] = opened.files
        if source.listed is not None:
            located = locate_rows(source.listed, opened, others, meant)
            self._remarks += [remark for remark in located.remarks if remark not in self._remarks]
            self.listed = tuple(file for file in opened.files if file.path in located.rows)

    def labelled(self) -> list[tuple[ImageFile, int]]:
        """The images that are used.

        Raises:
            DatasetError: If a class folder is none of the model's classes, or no image has a label.
        """
        samples = []
        unknown: dict[str, None] = {}
        without = 0
        for file in self.listed:
            folder = self._opened.class_folder(file.path)
            label = self._given[file.path] if file.path in self._given else self._positions.get(folder or "")
            if label is not None:
                samples.append((file, label))
            elif file.path not in self._given and folder is not None and folder in self._positions:
                unknown[folder] = None
            else:
                without += file.path not in self._given
        if unknown:
            raise self._names.unknown(list(unknown), os.fspath(self._opened.folder))
        if not samples:
            raise DatasetError(
                f"{self._opened.folder}: none of its {len(self._opened.files)} images has a label",
                "Name images of this folder in the file, put them into class folders, or give another --split.",
            )
        if without:
            self._remarks.append(f"{without:,} images of {self._opened.folder} have no label: left out")
        return samples

    def remarks(self) -> list[str]:
        """What was passed over or left out."""
        used = {self._opened.class_folder(file.path) or "" for file in self.listed}
        used |= {folder for folder, position in self._positions.items() if position is not None}
        passed_over = told_of(self._opened, used)
        return self._remarks + ([passed_over] if passed_over else [])

    def _compare_with_folders(self, label_file: LabelFile) -> None:
        """Say how many of the labels that are in the order of the images are those of the class folders.

        Raises:
            DatasetError: If they are no more than would be by chance, as where the order is another one.
        """
        pairs = [
            (label, position)
            for path, label in self._given.items()
            if (position := self._positions.get(self._opened.class_folder(path) or "")) is not None
        ]
        if not pairs:
            return
        share = sum(label == position for label, position in pairs) / len(pairs)
        if share <= _CHANCE / len(self._names.names) and len(pairs) >= _FEW_LABELS:
            raise DatasetError(
                f"{label_file.file}: {share:.0%} of the labels are those of the class folders in {self._opened.folder},"
                " no more than in any other order of the images",
                "Labels without paths are in the order of the sorted paths; give lines of path,label instead.",
            )
        self.notes.append(f"{label_file.file}: {share:.1%} of the labels are those of the class folders")

    def _labels(self, label_file: LabelFile, rows: Mapping[str, LabelRow]) -> dict[str, int | None]:
        """The class of each image that a label file names; None for those that it says have none."""
        counted = {self._names.label_number(row.label) for row in label_file.rows} - {None}
        if not self._positions and self._names.names == tuple(map(str, range(len(self._names.names)))):
            counted = {whole_number(row.label) for row in label_file.rows} - {None}
        counted -= {UNLABELLED}
        numbers = {number for number in counted if number is not None}
        refuse_one_based(label_file.file, numbers, len(self._names.names))
        if perhaps_one_based(numbers, len(self._names.names)):
            self._remarks.append(
                f"{label_file.file}: no label is 0, where the numbers of the outputs begin: are they counted from 1?"
            )
        given: dict[str, int | None] = {}
        for path, row in rows.items():
            given[path] = self._names.label_position(row.label)
            if given[path] is None and not row.is_unlabelled:
                raise self._names.unknown([row.label], label_file.where(row))
        if None in given.values():
            count = sum(label is None for label in given.values())
            self._remarks.append(f"{label_file.file}: {count:,} images have the label {UNLABELLED}, for none: left out")
        return given
