"""A live dataset, as `torch.utils.data.Dataset` has it: images and labels that are asked for by their number.

Every sample is asked for once, when the dataset is opened: that tells its label, and the content by which it is found
again in another dataset. What it looks like is kept as far as memory allows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sapcli.datasets.dataset import Dataset
from sapcli.datasets.decoding import Decoded, Decoder
from sapcli.errors import DatasetError
from sapcli.machine.progress import Progress
from sapcli.machine.text import in_one_line

if TYPE_CHECKING:
    from sapcli.networks.preprocessing import Preprocessing

_KEPT_BYTES = 1 << 30
_ASKED_TWICE = 8
# If so many cannot be had, none can.
_TRIED = 64
_NAMED_AT_MOST = 3
_UNLABELLED = -1
_FORM = "give a torch.utils.data.Dataset whose items are (image, label), with images of PIL or tensors"


class SampleSource(Protocol):
    """What numbers have samples: a dataset of PyTorch, a list of pairs."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> object:
        """One of them: an image and its label."""


@dataclass(frozen=True)
class LiveDataset(Dataset):
    """The samples of a live dataset. Their paths are what messages call them.

    Attributes:
        decode: What gives their pixels.
        contents: Size and SHA-256 of each, as it was handed over.
    """

    decode: LiveDecoder = field(kw_only=True, repr=False, compare=False)
    contents: tuple[tuple[int, bytes], ...] = field(kw_only=True, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over content and label of every sample, and over the classes."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for (_size, content), label in zip(self.contents, self.labels, strict=True):
            digest.update(f"\0{content.hex()}\0{label}".encode())
        return digest.hexdigest()

    def decoder(self, preprocessing: Preprocessing) -> LiveDecoder:  # noqa: ARG002 - it was opened with it
        """What gives the pixels of the samples."""
        return self.decode

    def size_of(self, index: int) -> int | None:
        """The bytes of a sample."""
        return self.contents[index][0]

    def content_of(self, index: int) -> tuple[int, bytes] | None:
        """Size and SHA-256 of a sample."""
        return self.contents[index]


class LiveDecoder:
    """From a sample's number to what the network is shown.

    Ready tensors are taken as they are, in float32. All else is a picture, brought into shape as one of a file is.

    Attributes:
        shape: Channels, height and width.
        dtype: Of the values: float32 of ready tensors, else uint8.
        in_memory: That no other process can do the work, and that what was made is kept here.

    Args:
        source: The samples.
        preprocessing: How the model wants its images.
    """

    in_memory = True

    def __init__(self, source: SampleSource, preprocessing: Preprocessing) -> None:
        self._source = source
        self._pictures = None if preprocessing.is_ready else Decoder(Path(), preprocessing)
        self.shape = preprocessing.input_size
        self.dtype = np.dtype(np.float32 if preprocessing.is_ready else np.uint8)
        self._kept: dict[int, Decoded] = {}
        self._room = _KEPT_BYTES // (math.prod(self.shape) * self.dtype.itemsize)

    def __call__(self, paths: Sequence[str]) -> list[Decoded | str]:
        """For each sample, by its path, the image, or the reason why there is none."""
        return [self._decoded_or_reason(number_of(path)) for path in paths]

    def _decoded_or_reason(self, number: int) -> Decoded | str:
        if number in self._kept:
            return self._kept[number]
        try:
            return self.decoded(number, _pair(self._source, number)[0])
        except Exception as error:  # a dataset's code may raise anything
            return error.message if isinstance(error, DatasetError) else in_one_line(error)

    def decoded(self, number: int, image: object) -> Decoded:
        """An image as the network is shown it, which is kept where there is room.

        Raises:
            DatasetError: It has another shape than the first one, or is no image.
        """
        if self._pictures is None:
            if not isinstance(image, Tensor) or not image.is_floating_point():
                raise DatasetError(f"it is {_kind(image)}, and the first one is a tensor of floats", _FORM)
            if tuple(image.shape) != self.shape:
                raise DatasetError(
                    f"it has the shape {tuple(image.shape)}, and the first one {self.shape}",
                    "have the dataset bring all images to one size",
                )
            found = Decoded(image.detach().to("cpu", torch.float32).numpy().copy())
        else:
            found = self._pictures.prepared(_picture(image))
        if number not in self._kept and len(self._kept) < self._room:
            self._kept[number] = found
        return found


def first_image(source: SampleSource) -> object:
    """The image of the first sample that can be had, which tells of what kind all are.

    Raises:
        DatasetError: There is none, or it cannot be had.
    """
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        what = "a data loader or an iterable dataset" if hasattr(source, "__iter__") else type(source).__name__
        raise DatasetError(
            f"the dataset is {what}, whose samples have no numbers", f"{_FORM}, or a list of its samples"
        )
    if not len(source):
        raise DatasetError("the dataset is empty", _FORM)
    failure: Exception | None = None
    for number in range(min(len(source), _TRIED)):
        try:
            return _pair(source, number)[0]
        except DatasetError as error:
            raise DatasetError(f"sample {number} of the dataset: {error.message}", error.hint) from error
        except Exception as error:  # a dataset's code may raise anything
            failure = failure or error
    assert failure is not None
    raise DatasetError(f"sample 0 of the dataset cannot be had: {in_one_line(failure)}", _FORM) from failure


def ready_shape(image: object) -> tuple[int, int, int] | None:
    """The shape of an image that is ready for the network, a tensor of floats; `None` of a picture.

    Raises:
        DatasetError: It is a tensor of another number of dimensions.
    """
    if not isinstance(image, Tensor) or not image.is_floating_point():
        return None
    if image.dim() != 3:
        raise DatasetError(
            f"the images of the dataset are tensors of the shape {tuple(image.shape)}",
            "give tensors of channels, height and width",
        )
    channels, height, width = image.shape
    return channels, height, width


def open_live(
    source: SampleSource,
    preprocessing: Preprocessing,
    num_classes: int,
    label_names: Sequence[str] | None,
    progress: Progress,
    name: str = "the dataset",
) -> LiveDataset:
    """Ask for every sample of a live dataset once.

    Args:
        source: The samples.
        preprocessing: How the model wants its images.
        num_classes: The number of its outputs, whose positions the labels are.
        label_names: Their names; those that the dataset has itself as `classes` where `None`.
        progress: Told how far it is.
        name: What messages call the dataset.

    Raises:
        DatasetError: No sample can be had, a label is none of the network's outputs, or an image is another one each
            time it is asked for.
    """
    decode = LiveDecoder(source, preprocessing)
    numbers: list[int] = []
    labels: list[int] = []
    contents: list[tuple[int, bytes]] = []
    failed: dict[int, str] = {}
    unlabelled = 0
    with progress.stage(f"reading {name}", len(source)) as advance:
        for number in range(len(source)):
            advance(1)
            try:
                image, given = _pair(source, number)
                label = _label(given, num_classes)
                if label == _UNLABELLED:
                    unlabelled += 1
                    continue
                decode.decoded(number, image)
                content = _content(image)
            except _LabelError as error:
                raise DatasetError(f"sample {number} of {name}: {error.message}", error.hint) from error
            except Exception as error:  # a dataset's code may raise anything
                failed[number] = error.message if isinstance(error, DatasetError) else in_one_line(error)
                continue
            numbers.append(number)
            labels.append(label)
            contents.append(content)
    if not numbers:
        reason = f": {next(iter(failed.values()))}" if failed else ""
        raise DatasetError(f"{name}: none of its {len(source)} samples can be used{reason}", _FORM)
    _refuse_augmentation(source, numbers, contents, name)
    remarks = []
    if failed:
        named = ", ".join(f"{number} ({reason})" for number, reason in list(failed.items())[:_NAMED_AT_MOST])
        more = ", ..." if len(failed) > _NAMED_AT_MOST else ""
        remarks.append(f"{name}: {len(failed):,} samples cannot be read and are left out: {named}{more}")
    if unlabelled:
        remarks.append(f"{name}: {unlabelled:,} samples have the label {_UNLABELLED}, for none: left out")
    return LiveDataset(
        Path(name),
        None,
        _classes(source, num_classes, label_names),
        tuple(f"sample {number}" for number in numbers),
        tuple(labels),
        tuple(remarks),
        unpacked=True,
        decode=decode,
        contents=tuple(contents),
    )


def number_of(path: str) -> int:
    """The number of a sample in the dataset that was handed over, by its path."""
    return int(path.rpartition(" ")[2])


class _LabelError(DatasetError):
    """A label that no sample can have: the rest makes no sense then."""


def _pair(source: SampleSource, number: int) -> tuple[object, object]:
    """One sample as its image and its label."""
    item = source[number]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DatasetError(f"it is {_kind(item)}, not a pair of an image and a label", _FORM)
    return item[0], item[1]


def _label(given: object, num_classes: int) -> int:
    """A label as the position of an output; -1 for none."""
    if isinstance(given, Tensor | np.ndarray) and given.size in (1, ()) and given.ndim == 0:
        given = given.item()
    if isinstance(given, Tensor) and given.numel() == 1:
        given = given.item()
    if isinstance(given, np.generic):
        given = given.item()
    if isinstance(given, bool) or not isinstance(given, int):
        raise _LabelError(
            f"its label is {_kind(given)}, expected a whole number", "give the position of the network's output"
        )
    if not _UNLABELLED <= given < num_classes:
        raise _LabelError(
            f"its label is {given}, and the network has the outputs 0 to {num_classes - 1}",
            "give the position of the network's output, from 0; -1 for none",
        )
    return given


def _picture(image: object) -> Image.Image:
    """An image of PIL, or 8-bit values as one: tensors as `[C, H, W]`, arrays as `[H, W, C]`, both also `[H, W]`."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor) and image.dtype == torch.uint8:
        image = image.cpu().permute(*range(1, image.dim()), 0).numpy() if image.dim() == 3 else image.cpu().numpy()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
    raise DatasetError(f"it is {_kind(image)}, not an image", _FORM)


def _content(image: object) -> tuple[int, bytes]:
    """Size and SHA-256 of an image as it was handed over."""
    if isinstance(image, Tensor):
        kind, values = f"{image.dtype} {tuple(image.shape)}", image.detach().cpu().contiguous()
        data = values.reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        picture = _picture(image)
        kind, data = f"{picture.mode} {picture.size}", picture.tobytes()
    return len(data), hashlib.sha256(kind.encode() + b"\0" + data).digest()


def _refuse_augmentation(
    source: SampleSource, numbers: Sequence[int], contents: Sequence[tuple[int, bytes]], name: str
) -> None:
    """Make sure, on some samples, that an image is the same whenever it is asked for."""
    step = max(len(numbers) // _ASKED_TWICE, 1)
    for place in range(0, len(numbers), step):
        if _content(_pair(source, numbers[place])[0]) != contents[place]:
            raise DatasetError(
                f"sample {numbers[place]} of {name} is another image each time it is asked for",
                "give the dataset with the transform of the evaluation, without random augmentation",
            )


def _classes(source: object, num_classes: int, label_names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the outputs: those of the model, else of the dataset or that which it is a part of, else numbers."""
    if label_names is not None:
        return tuple(label_names)
    for _ in range(8):
        names = getattr(source, "classes", None)
        if isinstance(names, list | tuple) and len(set(names)) == num_classes == len(names):
            return tuple(map(str, names))
        source = getattr(source, "dataset", None)
    return tuple(map(str, range(num_classes)))


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
