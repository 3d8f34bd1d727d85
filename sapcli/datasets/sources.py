"""What stands in the place of a data folder: the folder itself, an archive, a label file, a list of images.

A label file is the data: its rows are the images, wherever below or beside it they lie.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sapcli.datasets.containers.archives import archive_suffixes, is_archive, unpacked_archive
from sapcli.datasets.containers.finding import find_containers, is_pattern, shards_of_pattern
from sapcli.datasets.containers.found import Found
from sapcli.datasets.containers.shards import holds_samples
from sapcli.datasets.folders import ImageFile, Split
from sapcli.datasets.formats import image_suffixes
from sapcli.datasets.labels.label_files import (
    LABEL_SUFFIXES,
    LIST_SUFFIXES,
    LabelFile,
    is_path_list,
    read_labels,
    read_path_list,
)
from sapcli.datasets.split_names import SplitRole, file_role
from sapcli.datasets.splits import Splits
from sapcli.errors import DatasetError

# Where Kaggle's archive of ImageNet has the images.
_IMAGENET = "ILSVRC/Data/CLS-LOC"
_DECOMPRESS = (
    ("gunzip -k", (".gz", ".tgz")),
    ("bunzip2 -k", (".bz2", ".tbz2")),
    ("unxz -k", (".xz", ".txz")),
    ("unzstd", (".zst", ".tzst", ".zstd")),
)
_DOWNLOAD = (
    "Download it, and give the folder: of a data set of the Hub, hf download --repo-type dataset OWNER/NAME --local-dir"
    " FOLDER."
)
# Files of images that other tools read, by their endings: what they are, and the line that makes an .npz file of them.
_OTHER_DATA: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        (".mat",),
        "a file of MATLAB's",
        "m = scipy.io.loadmat(FILE); numpy.savez('data.npz', images=m['X'].transpose(3, 0, 1, 2), labels=m['y'] % 10)",
    ),
    (
        (".h5", ".hdf5"),
        "an HDF5 file",
        "f = h5py.File(FILE); numpy.savez('data.npz', images=f[IMAGES][:], labels=f[LABELS][:])",
    ),
    ((".npy",), "a single array", "numpy.savez('data.npz', images=numpy.load(FILE), labels=numpy.load(LABELS))"),
    (
        (".pt", ".pth"),
        "a file of tensors",
        "x, y = torch.load(FILE); numpy.savez('data.npz', images=x.numpy(), labels=y.numpy())",
    ),
    (
        ("-ubyte", "-ubyte.gz"),
        "a file of MNIST's",
        "d = torchvision.datasets.MNIST(ROOT, train=False); numpy.savez('data.npz', images=d.data, labels=d.targets)",
    ),
)
_DATA_SUFFIXES = (*LABEL_SUFFIXES, ".json")


@dataclass(frozen=True)
class Source:
    """What the user gave: a data folder, perhaps a label file, perhaps a list of the images to use.

    Attributes:
        root: The data folder.
        labels: What says the images' labels, instead of class folders.
        listed: What says which images are used.
        unpacked: Whether the folder is only there for this process.
        files: The listed images, where some lie outside of the folder of the list.
        containers: The data set, where its images lie inside of files.
    """

    root: Path
    labels: LabelFile | None = None
    listed: LabelFile | None = None
    unpacked: bool = False
    files: tuple[ImageFile, ...] | None = None
    containers: Found | None = None

    @property
    def is_label_file(self) -> bool:
        """Whether a label file stands in the place of the data folder."""
        return self.listed is not None and bool(self.listed.rows[0].label)

    def everywhere(self) -> Split:
        """The listed images as a folder without class folders."""
        return Split(self.root, "", (), self.files or ())


def open_source(data: Path, labels: Path | None) -> Source:
    """Read what is not an image: an archive's members, the label file, the list.

    Args:
        data: A folder, a tar archive, a label file or a list of images.
        labels: A label file beside it.

    Raises:
        DatasetError: If one of them cannot be read.
    """
    label_file = read_labels(labels) if labels else None
    if is_pattern(data):
        found = shards_of_pattern(str(data))
        return Source(found.root, label_file, containers=found)
    try:
        is_folder = stat.S_ISDIR(data.stat().st_mode)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if re.match(r"[A-Za-z][\w+.-]+:/", str(data)):
            raise DatasetError(f"{data} is an address, and data are read from this machine", _DOWNLOAD) from error
        raise DatasetError(
            f"{data}: cannot open the data folder: {reason}", "Give the folder of the images."
        ) from error
    contained = find_containers(data)
    if contained is None and not is_folder and is_archive(data):
        folder = unpacked_archive(data)
        if label_file is None and holds_samples(folder):
            raise DatasetError(
                f"{data} is a WebDataset shard, and those are read in place, from plain .tar files",
                f"Have it as one: {_plain_tar(data)}.",
            )
        return Source(folder, label_file, unpacked=True, containers=find_containers(folder))
    if contained is None and is_folder and (data / _IMAGENET).is_dir():
        return Source(data / _IMAGENET, label_file)
    if contained is not None or is_folder:
        return Source(data, label_file, containers=contained)
    suffix = data.suffix.lower()
    if suffix in LIST_SUFFIXES and is_path_list(data):
        return Source(data.parent, label_file, read_path_list(data))
    if suffix in (*LIST_SUFFIXES, *_DATA_SUFFIXES):
        listed = read_labels(data)
        if listed.is_ordered:
            raise DatasetError(
                f"{data} holds {len(listed.rows):,} labels and names no image",
                f"Give the data folder, and this with --labels {data}.",
            )
        root, files = _outside(listed)
        return Source(root, label_file or listed, listed, files=files)
    kind = next((found for endings, *found in _OTHER_DATA if data.name.lower().endswith(endings)), None)
    if kind is not None:
        raise DatasetError(f"{data} is {kind[0]}, which is not read", f"Write its images as an .npz file: {kind[1]}")
    raise DatasetError(
        f"{data}: neither a folder nor an archive, a label file or a list of images",
        f"Give a folder, or a file that ends in {', '.join((*archive_suffixes(), *_DATA_SUFFIXES, *LIST_SUFFIXES))}.",
    )


def _plain_tar(data: Path) -> str:
    """What makes a plain tar file of an archive."""
    for command, endings in _DECOMPRESS:
        if data.name.lower().endswith(endings):
            return f"{command} {shlex.quote(str(data))}"
    return "unpack it, and tar --sort=name -cf shard.tar what is in it"


def listed_folder(source: Source, splits: Splits, wanted: tuple[SplitRole, ...], meant: str | None) -> str | None:
    """The folder whose images a list names, for the images that are wanted.

    Args:
        source: A list of images.
        splits: How its folder is divided.
        wanted: What the images are for.
        meant: The split that the list is about by its name, or as the user says.

    Returns:
        A split, or the empty name for the folder as a whole; None where it is left to what the images are for.
    """
    assert source.listed is not None
    if source.files is not None:
        return ""
    places = set(_first_folders(source.listed, frozenset(splits.folders)))
    if len(places) == 1 and "" not in places:
        return places.pop()
    if not source.is_label_file:
        return meant
    if places != {""}:
        return ""
    first = source.listed.rows[0].path
    # The path comes from a file, and may be no path at all.
    if os.path.isfile(os.path.join(source.root, first.replace("\\", "/"))):  # noqa: PTH113, PTH118
        return ""
    if meant is not None:
        return meant
    return "" if not any(splits.roles.get(role) for role in wanted) else None


def divides(source: Source, splits: Splits) -> tuple[str, ...]:
    """The splits for which a label file without the name of one has images, where it has them for several purposes."""
    if source.files is not None or not source.is_label_file:
        return ()
    assert source.listed is not None
    if file_role(source.listed.file.stem) is not None:
        return ()
    places = set(_first_folders(source.listed, frozenset(splits.folders)))
    roles = {role for role, names in splits.roles.items() if not places.isdisjoint(names)}
    return tuple(sorted(places)) if "" not in places and len(roles) > 1 and SplitRole.TRAIN in roles else ()


def _first_folders(listed: LabelFile, splits: frozenset[str]) -> Iterator[str]:
    """For each row the split that its path begins with; empty where it begins with none."""
    for row in listed.rows:
        path = os.path.normpath(row.path.replace("\\", "/"))
        if os.path.isabs(path):  # noqa: PTH117
            inside = path.removeprefix(f"{os.path.abspath(listed.file.parent)}/")  # noqa: PTH100 (links stay links)
            path = inside if inside != path else ""
        first = path.partition("/")[0]
        yield first if first in splits else ""


def _outside(listed: LabelFile) -> tuple[Path, tuple[ImageFile, ...] | None]:
    """The folder of a label file; where rows name images outside of it, one that holds all, and the images there.

    Rows may be written from the folder above, as in an `annotations/` beside the images.
    """
    folder = listed.file.parent
    here = os.path.abspath(folder)  # noqa: PTH100 (links stay links)
    # pathlib neither takes what is no path nor resolves ".." without the disk.
    written = [row.path.replace("\\", "/") for row in listed.rows]
    places = [os.path.normpath(os.path.join(here, path)) for path in written]  # noqa: PTH118
    outside = [path for path in places if not path.startswith(f"{here.rstrip('/')}/") and _is_image(path)]
    above = os.path.dirname(here)  # noqa: PTH120
    if not outside and not _is_image(places[0]) and "/" in written[0] and _is_image(f"{above}/{written[0]}"):
        places = [os.path.normpath(os.path.join(above, path)) for path in written]  # noqa: PTH118
        outside = [path for path in places if _is_image(path)]
    if not outside:
        return folder, None
    root = os.path.commonpath([here, *map(os.path.dirname, outside)])
    found = sorted({path[len(root.rstrip("/")) + 1 :] for path in places if _is_image(path)})
    return Path(root), tuple(map(ImageFile, found))


def _is_image(path: str) -> bool:
    return path.lower().endswith(image_suffixes()) and _is_file(path)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
    except (OSError, ValueError):
        return False
