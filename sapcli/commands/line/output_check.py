"""One check of all that a command writes against all that it reads, and against each other, before the work begins.

What counts is the file, not its name: links and hard links are seen through, and `--force` changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import typer

from sapcli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sapcli.commands.line.settings_file import SettingsFile
from sapcli.datasets.containers.archives import is_archive
from sapcli.datasets.formats import image_suffixes
from sapcli.datasets.labels.label_files import file_and_key, read_labels, read_path_list
from sapcli.errors import CheckpointError, SapError, UsageError
from sapcli.settings import names_own_code

_Identity = tuple[int, int]
# What a data folder is read from, beside its images: files of several images, and labels under names of their own.
_CONTAINERS = (".parquet", ".arrow", ".tar", ".npz", ".npy", ".mat", ".bin")
_LABELS = re.compile(
    r"metadata\.(csv|jsonl)|val_annotations\.txt|LOC_\w+\.csv|ILSVRC2012_\w+\.txt|"
    r"data_batch_\d+|test_batch|train|test|meta|batches\.meta"
)


@dataclass
class Reads:
    """What a command reads.

    Attributes:
        files: Files, with what they are called.
        images: Data folders, label files and lists, whose images are read.
    """

    files: list[tuple[str, Path]] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)

    def add_file(self, what: str, source: str | Path | None) -> None:
        """A file; a folder is one of images, and stdin is none."""
        if source is None or str(source) == "-":
            return
        path, _key = file_and_key(Path(source))
        if _is_folder(path):
            self.images.append(path)
        else:
            self.files.append((what, path))

    def add_data(self, path: Path | None) -> None:
        """A data folder, or what stands in the place of one."""
        if path is not None:
            self.images.append(path)
            if not _is_folder(path):
                self.files.append(("the data", path))

    def add_settings(self, context: typer.Context) -> None:
        """The file that settings of the command come from, where it has no other way to tell."""
        file = context.find_root().obj
        if isinstance(file, SettingsFile):
            self.files.append(("the settings file", file.path))

    def add_checkpoint(self, checkpoint: Checkpoint) -> None:
        """A checkpoint: its file or its index and shards, and the config.json beside it."""
        if checkpoint.path is None:
            return
        self.files.append(("the input itself", checkpoint.path))
        self.files += [("a shard of the input", checkpoint.path.with_name(name)) for name in checkpoint.files]
        self.files.append(("the input's config.json", checkpoint.path.with_name("config.json")))
        if checkpoint.folder is not None:
            # All that lies beside the weights belongs to the model, and is written again with it.
            with contextlib.suppress(OSError):
                self.files += [("a file of the model's folder", file) for file in checkpoint.folder.iterdir()]

    def add_checkpoint_named(self, source: str) -> None:
        """A checkpoint that is not open; one that cannot be opened is told of when its turn comes."""
        path = Path(source)
        if not _is_folder(path) and path.suffix != ".json":
            self.add_file("another input", source)
            self.add_file("another input's config.json", path.with_name("config.json"))
            return
        with contextlib.suppress(SapError):
            self.add_checkpoint(open_checkpoint(source))

    def add_architecture(self, architecture: str | None) -> None:
        """The file of the user's own network."""
        if architecture is None or not names_own_code(architecture):
            return
        place = architecture.rpartition(":")[0]
        if place.endswith(".py"):
            self.files.append(("the network's own code", Path(place)))
            with contextlib.suppress(OSError):
                # What it imports lies beside it.
                self.files += [("code beside the network's", file) for file in Path(place).parent.glob("*.py")]
        else:
            module = Path(*place.split("."))
            self.files += [
                ("the network's own code", file) for file in (module.with_suffix(".py"), module / "__init__.py")
            ]


def check_outputs(outputs: Iterable[tuple[str, Path | None]], reads: Reads) -> None:
    """Make sure that nothing is written over what is read, and no two outputs into one file.

    Args:
        outputs: The option and the file of each output; `None` is stdout.
        reads: What the command reads.

    Raises:
        UsageError: Two outputs are one file.
        CheckpointError: An output is an input.
    """
    # A device or a pipe is written to and never replaced, and may be named as often as one likes.
    named = [(option, path) for option, path in outputs if path is not None and (path.is_file() or not path.exists())]
    for position, (option, path) in enumerate(named):
        for other_option, other in named[:position]:
            if _are_one(path, other):
                options = option if option == other_option else f"{other_option} and {option}"
                raise UsageError(f"{options} would write {path} twice", "name another file for one of them")
    existing = {identity: (option, path) for option, path in named if (identity := _identity(path)) is not None}
    if not existing:
        return
    for what, file in reads.files:
        if (found := existing.get(_identity(file) or (-1, -1))) is not None:
            _refuse(*found, what)
    for data in reads.images:
        for identity in _image_identities(data, {inode for _device, inode in existing}):
            if identity in existing:
                _refuse(*existing[identity], f"an image of {data}, or read with its images")


def _refuse(option: str, path: Path, what: str) -> None:
    raise CheckpointError(f"{path} is {what}, which is never overwritten", f"name another file with {option}")


def _are_one(first: Path, second: Path) -> bool:
    identity = _identity(first)
    if identity is not None or _identity(second) is not None:
        return identity == _identity(second)
    return os.path.realpath(first) == os.path.realpath(second)


def _identity(path: str | Path) -> _Identity | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - of many images, without making an object of each
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _image_identities(data: Path, inodes: set[int]) -> Iterator[_Identity]:
    """The identities of the images of a data folder or list; of plain files only those with one of these inodes."""
    if _is_folder(data):
        yield from _below(data, inodes, set())
        return
    if is_archive(data):
        return
    # What is wrong with a list is told where it is opened.
    with contextlib.suppress(SapError):
        rows = read_path_list(data) if data.suffix.lower() in (".txt", ".lst", ".list") else read_labels(data)
        for row in rows.rows:
            identity = _identity(data.parent / row.path)
            if identity is not None:
                yield identity


def _below(folder: str | Path, inodes: set[int], seen: set[_Identity]) -> Iterator[_Identity]:
    identity = _identity(folder)
    if identity is None or identity in seen:
        return
    seen.add(identity)
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            if entry.is_dir():
                yield from _below(entry.path, inodes, seen)
            elif _holds_data(entry.name) and (entry.is_symlink() or entry.inode() in inodes):
                found = _identity(entry.path)
                if found is not None:
                    yield found


def _holds_data(name: str) -> bool:
    """Whether a file of a data folder is read, by its name."""
    return name.lower().endswith((*image_suffixes(), *_CONTAINERS)) or _LABELS.fullmatch(name) is not None
