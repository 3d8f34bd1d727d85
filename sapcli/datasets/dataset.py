"""Which images a stage works on, and which class each belongs to."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sapcli.datasets.classes import FoundClasses, resolve_class_names, shown
from sapcli.datasets.containers.members import member_size
from sapcli.datasets.containers.opening import Contained, chosen_split, open_contained
from sapcli.datasets.decoding import Decoder, Decoding
from sapcli.datasets.file_digests import FileDigests, file_digest
from sapcli.datasets.folders import Split, open_split, subfolders, told_of
from sapcli.datasets.labels.label_files import LabelFile, label_files_in, read_labels
from sapcli.datasets.labels.standard_files import metadata_in, standard_labels
from sapcli.datasets.sources import Source, divides, listed_folder, open_source
from sapcli.datasets.split_names import SplitRole, file_role, says_images
from sapcli.datasets.split_samples import SplitSamples
from sapcli.datasets.splits import ExpectedClasses, Splits, find_splits
from sapcli.errors import DatasetError

if TYPE_CHECKING:
    from sapcli.networks.preprocessing import Preprocessing


class Role(Enum):
    """What a stage wants the images for, and so which split it takes, the first that exists."""

    LEARN = (SplitRole.TRAIN,)
    CHOOSE = (SplitRole.VALIDATION,)
    JUDGE = (SplitRole.TEST, SplitRole.VALIDATION)
    CONFIRM = (SplitRole.TEST,)


@dataclass(frozen=True)
class Dataset:
    """The images of one split and their labels. A sample's index is its position here, for good.

    Attributes:
        root: The data folder.
        split: The split's folder below it; None where the data folder itself holds the images.
        classes: The names of the classes, in the order of the model's outputs.
        paths: POSIX paths relative to `root`, sorted.
        labels: The class of each image, as a position in `classes`.
        remarks: What was passed over, left out or is doubtful, a line each, for people.
        notes: What was understood, a line each, for people.
        digests: What tells the contents of the files.
        unpacked: Whether the files are only there for this process.
        contained: Whether the images lie inside of files, and their paths go on there.
        given: What the user named where that is a file: a list of images, a label file, an archive.
    """

    root: Path
    split: str | None
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    digests: FileDigests = field(default_factory=FileDigests, repr=False, compare=False)
    unpacked: bool = False
    contained: bool = False
    given: Path | None = field(default=None, compare=False)

    @property
    def where(self) -> Path:
        """What messages call the place of the images: as the user named it, or the split's folder."""
        return self.given or (self.root if self.split is None else self.root / self.split)

    def decoder(self, preprocessing: Preprocessing) -> Decoding:
        """What gives the pixels of the samples, by their paths."""
        return Decoder(self.root, preprocessing)

    def size_of(self, index: int) -> int | None:
        """The size of a sample's file in bytes; `None` for what is gone."""
        path = f"{self.root}/{self.paths[index]}"
        try:
            return os.stat(path).st_size  # noqa: PTH116 (of thousands, fast)
        except (OSError, ValueError):
            return member_size(path)

    def content_of(self, index: int) -> tuple[int, bytes] | None:
        """The size of a sample's file and the SHA-256 of its bytes; `None` for what cannot be read."""
        return file_digest(f"{self.root}/{self.paths[index]}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over path, content and label of every image, and over the classes.

        Asking for it reads the files that were not read before, so it is asked for once all else has been checked.
        """
        return self.digests.ranks.from_first(self._fingerprint)

    def _fingerprint(self) -> str:
        start = json.dumps(self.classes).encode()
        return self.digests.fingerprint(self.root, self.paths, self.labels, start, keep=not self.unpacked)


def open_dataset(
    root: Path,
    role: Role,
    num_classes: int,
    *,
    split: str | None = None,
    label_names: Sequence[str] | None = None,
    labels: Path | None = None,
    class_map: Path | None = None,
    labels_split: str | None = None,
    dedicated: bool = False,
    undivided: bool = False,
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
        split: The folder below `root` to use, instead of the role's choice, in any spelling; "." for `root` itself.
        label_names: The names of the model's outputs in their order. For a data folder apart from the training data,
            hand over the training data's classes.
        labels: A label file (CSV or JSON Lines with `path` and `label`). Its paths are relative to the data folder, the
            split, or the file itself; lines about images of other splits are passed over.
        class_map: A file that says which class folder is which class.
        labels_split: The split that a label file's path means where it stands for images in several, and `split` does
            not say so.
        dedicated: Whether `root` was named for this role alone, and so serves as a whole where it has no splits; only
            `Role.CHOOSE` differs.
        undivided: Whether the rows of a label file in the place of `root` are for this role alone, in whatever split
            folders they lie; else those of one that is not called after a split are divided by the folders.
        digests: What will tell the contents of the files; by default, nothing is kept for another run.

    Returns:
        The dataset; None for `Role.CHOOSE` where there is no validation split, and for `Role.CONFIRM` where there is no
        test split, or none of whose images `root` names where it is a file.

    Raises:
        DatasetError: If a folder or file cannot be used, an image's class is none of the model's, or the number of
            classes does not fit.
        UsageError: If `split` names no folder.
    """
    source = open_source(root, labels)
    optional = role is Role.CONFIRM or (role is Role.CHOOSE and not dedicated)
    if source.containers is not None:
        place = chosen_split(source.containers, role.value, split, optional=optional)
        if place is None:
            return None
        contained = open_contained(
            source.containers, place, num_classes, label_names, source.labels, class_map, is_named=split is not None
        )
        return _of_containers(source, contained, digests)
    expected = ExpectedClasses.of(num_classes, label_names, class_map)
    if source.files is None:
        splits = find_splits(source.root, expected, labelled=source.labels is not None)
    else:
        splits = Splits(source.root)
    meant = _split_that_is_meant(splits, source, labels_split if split is None else split)
    said: tuple[str, ...] = ()
    if split is not None:
        name: str | None = splits.named(split)
    else:
        name, said = _folder_for(role, source, splits, meant, optional=optional, undivided=undivided)
    if name is None:
        return None
    opened = open_split(source.root, name) if source.files is None else source.everywhere()
    others = frozenset(splits.folders) - {name} if name else frozenset()
    training_labels = None
    if source.labels is None and source.listed is None and _is_flat(opened):
        source, training_labels, others = _with_standard_labels(source, opened, splits, others)
    if not source.is_label_file:
        _check_images(opened, source.labels)
    training = source.root / (splits.only(SplitRole.TRAIN) or name) if name or source.is_label_file else opened.folder
    training_folders = opened.class_folders if training == opened.folder else subfolders(training)
    found = FoundClasses(training, training_folders, training_labels or source.labels)
    names = resolve_class_names(num_classes, found, label_names, class_map)
    samples = SplitSamples(source, opened, others, meant, names)
    if optional and not samples.listed:
        return None
    labelled = samples.labelled()
    remarks = (
        *(splits.remarks if split is None and source.listed is None else ()),
        *(() if name == "" or source.listed is not None else splits.left_out),
        *samples.remarks(),
        *(_unused_labels(opened) if source.labels is None else ()),
    )
    return Dataset(
        root=source.root,
        split=name or None,
        classes=names.names,
        paths=tuple(file.path for file, _label in labelled),
        labels=tuple(label for _file, label in labelled),
        remarks=remarks,
        notes=(*said, *samples.notes),
        digests=digests or FileDigests(),
        unpacked=source.unpacked,
        given=None if source.root == root else root,
    )


def _is_flat(opened: Split) -> bool:
    """Whether images lie in no class folders: directly in the folder, or in one that is called `images`."""
    return not opened.class_folders or (len(opened.class_folders) == 1 and says_images(opened.class_folders[0]))


def _with_standard_labels(
    source: Source, opened: Split, splits: Splits, others: frozenset[str]
) -> tuple[Source, LabelFile | None, frozenset[str]]:
    """The labels of images in no class folders, as files of known names have them.

    Returns:
        The source with them, where there are any; where it is another one, the labels by which classes are named, those
        of the training split too; and the other splits that the labels may be about.
    """
    own = standard_labels(opened.folder)
    if own is None:
        metadata = metadata_in(source.root)
        return (
            (source, None, others)
            if metadata is None
            else (replace(source, labels=read_labels(metadata)), None, others)
        )
    train = splits.only(SplitRole.TRAIN)
    also = standard_labels(source.root / train) if train is not None and train != opened.name else None
    both = None if also is None else LabelFile(own.file, own.rows + also.rows)
    return replace(source, labels=own), both, frozenset()


def _of_containers(source: Source, contained: Contained, digests: FileDigests | None) -> Dataset:
    assert source.containers is not None
    return Dataset(
        root=source.containers.root,
        split=contained.split if contained.paths[0].startswith(f"{contained.split}/") else None,
        classes=contained.classes,
        paths=contained.paths,
        labels=contained.labels,
        remarks=contained.remarks,
        notes=contained.notes,
        digests=digests or FileDigests(),
        unpacked=source.unpacked,
        contained=True,
    )


def _split_that_is_meant(splits: Splits, source: Source, named: str | None) -> str | None:
    """The split that a label file is about where its paths do not tell: as the user says, else by the file's name."""
    if named is not None:
        return splits.named(named)
    file = source.listed or source.labels
    role = file_role(file.file.stem) if file is not None else None
    return None if role is None else splits.only(role)


def _folder_for(
    role: Role, source: Source, splits: Splits, meant: str | None, *, optional: bool, undivided: bool
) -> tuple[str | None, tuple[str, ...]]:
    """The folder to use, where `--split` says none, and what is to be said of the choice."""
    if source.listed is None:
        return splits.chosen(role.value, optional=optional), ()
    # Validation images that are named apart are those, wherever they lie.
    undivided = undivided or (role is Role.CHOOSE and not optional)
    divided = () if undivided else divides(source, splits)
    if divided:
        said = f"{source.listed.file}: its rows lie in {shown(divided)}, and are used as those (--split . takes all)"
        return splits.chosen(role.value, optional=optional), (said,)
    if optional:
        # A list of images has the labels of class folders, and may have images of several splits.
        return None if source.is_label_file else splits.chosen(role.value, optional=True), ()
    name = listed_folder(source, splits, role.value, meant)
    return splits.chosen(role.value, optional=False) if name is None else name, ()


def _check_images(opened: Split, label_file: LabelFile | None) -> None:
    if not opened.files:
        inside = f" in its {len(opened.class_folders)} folders" if opened.class_folders else ""
        others = told_of(opened, opened.passed_over)
        inside += f"; {others}" if others else ""
        raise DatasetError(
            f"{opened.folder}: there are no images{inside}",
            "Images are files that end in .jpg, .png, .webp, .tif, .bmp or another ending that Pillow knows.",
        )
    if not opened.class_folders and label_file is None:
        raise DatasetError(
            f"{opened.folder}: there are {len(opened.files)} images, but no class folders",
            "Put the images of each class into a folder with the name of the class, or give --labels FILE.csv.",
        )


def _unused_labels(opened: Split) -> list[str]:
    """A word on label files that lie beside the class folders and have no say."""
    places = dict.fromkeys((opened.root, opened.folder))
    files = [file for place in places for file in label_files_in(place)]
    return [f"{shown(map(str, files))}: not used, the class folders have the labels (--labels FILE)"] if files else []
