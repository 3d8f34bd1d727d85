"""The decoded images of a dataset: read once, in worker processes, and kept as far as memory allows."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sapcli.datasets.decoding import Decoded, Pixels, Treatment
from sapcli.errors import DatasetError
from sapcli.machine.workers import WorkerError, map_in_workers

if TYPE_CHECKING:
    from sapcli.datasets.dataset import Dataset
    from sapcli.networks.preprocessing import Preprocessing

_CHUNK = 32  # images per task of a worker: all workers share the work of one batch
# Seconds that workers have to save before they are started: as much goes into copying this process' memory and into
# their competition with the network for the cores.
_WORTH_WORKERS = 1.5
_NOT_DECODED = -1
_UNREADABLE = -2

_Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Images of a dataset, ready for the model but for the normalisation.

    Attributes:
        indices: The samples' indices, int64 `[n]`.
        images: Pixels from 0 to 255, uint8 `[n, C, H, W]`; float32 where the dataset has the network's inputs.
        labels: The samples' classes, int64 `[n]`.
        end: How many of the samples that were asked for are done with it.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor
    end: int = 0

    def part(self, start: int, size: int) -> Batch:
        """At most `size` of the images, from the one at `start` on."""
        part = slice(start, start + size)
        return Batch(self.indices[part], self.images[part], self.labels[part])


@dataclass(frozen=True)
class Remarks:
    """What decoding images told beside their pixels, by the sample's index.

    Attributes:
        unreadable: Why an image could not be read.
        treated: What was done to an image that its training may have done otherwise.
    """

    unreadable: Mapping[int, str]
    treated: Mapping[int, Treatment]

    def to_json(self) -> dict[str, object]:
        """The remarks as JSON values."""
        return {"unreadable": self.unreadable, "treated": {index: asdict(item) for index, item in self.treated.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Mapping[str, Any]]) -> Remarks:
        """What `to_json` returned, after a way through text."""
        return cls(
            {int(index): str(reason) for index, reason in values["unreadable"].items()},
            {int(index): Treatment.from_json(item) for index, item in values["treated"].items()},
        )


class Images:
    """The images of a dataset under one preprocessing.

    A decoded image is kept in memory while there is room, so a later pass decodes only what is missing. The batches are
    the same whatever the number of workers.

    Attributes:
        dataset: Where the images come from.
        preprocessing: How the model wants its images.
        batch_size: Images per batch; when it is changed, also of the batches that are still to come.
        shared: Whether what is asked for is a share of something: then it is no error that none of it can be read.
        unreadable: The images that could not be read so far: from the sample's index to the reason.
        treated: The images so far of which there is more to be said than their pixels, by the sample's index.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        workers: int,
        strict: bool = False,
        keep_bytes: int = 1 << 30,
        shared: bool = False,
    ) -> None:
        """Prepare to decode; nothing is read yet.

        Args:
            dataset: The samples.
            preprocessing: How the model wants its images.
            batch_size: Images per batch.
            workers: Processes that decode; with 0, and for the work of a moment, this process does.
            strict: Whether an image that cannot be read is an error.
            keep_bytes: The size up to which decoded images stay in memory.
            shared: Whether other processes have other shares of what is asked for.

        Raises:
            UsageError: If the preprocessing cannot be carried out.
        """
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.shared = shared
        self.unreadable: dict[int, str] = {}
        self.treated: dict[int, Treatment] = {}
        self._decoder = dataset.decoder(preprocessing)
        self.batch_size = batch_size
        self._workers = 0 if self._decoder.in_memory else workers
        self._strict = strict
        self._labels = np.asarray(dataset.labels, dtype=np.int64)
        # Memory that is reserved here is taken only when an image is written to it.
        capacity = min(len(dataset.paths), keep_bytes // math.prod(self._decoder.shape))
        if self._decoder.in_memory:
            capacity = 0
        self._kept = np.empty((capacity, *self._decoder.shape), self._decoder.dtype)
        self._kept_count = 0
        self._slots = np.full(len(dataset.paths), _NOT_DECODED, dtype=np.int64)

    def batches(self, indices: Sequence[int] | None = None, batch_size: int | None = None) -> Iterator[Batch]:
        """Decode the samples, in the given order (all, in the dataset's order, without one), batch by batch.

        An image that cannot be read is left out of its batch and noted in `unreadable`; a batch without any image is
        left out.

        Args:
            indices: Which samples.
            batch_size: Images per batch, instead of those of `self`.

        Raises:
            DatasetError: If an index is none of the dataset's, no image can be read or, when strict, one cannot; if a
                worker process cannot be started or dies.
        """
        order = self._checked(indices)
        pending = self._slots[order] == _NOT_DECODED
        decoded = self._decoded(order[pending])
        readable = 0
        stop = 0
        while stop < len(order):
            start, stop = stop, stop + (batch_size or self.batch_size)
            batch = self._batch(order[start:stop], pending[start:stop], decoded)
            readable += len(batch.indices)
            if len(batch.indices):
                yield replace(batch, end=min(stop, len(order)))
        if len(order) and not readable and not self.shared:
            raise self.none_readable(len(order), int(order[0]))

    def none_readable(self, count: int, index: int) -> DatasetError:
        """The error that none of so many images can be read, of which the one at `index` was tried."""
        return DatasetError(
            f"{self.dataset.root}: none of {count} images can be read; "
            f"{self.dataset.paths[index]!r}: {self.unreadable[index]}",
            "Check that the files are images and complete.",
        )

    def remarks(self, indices: Sequence[int]) -> Remarks:
        """What decoding some of the images has told so far."""
        return Remarks(
            {index: self.unreadable[index] for index in indices if index in self.unreadable},
            {index: self.treated[index] for index in indices if index in self.treated},
        )

    def add_remarks(self, remarks: Remarks) -> None:
        """Take over what an earlier run was told; images that it could not read are left out without another look.

        Raises:
            DatasetError: If there is an unreadable one, when strict.
        """
        self.treated.update(remarks.treated)
        for index, reason in remarks.unreadable.items():
            self._leave_out(index, reason)

    def _checked(self, indices: Sequence[int] | None) -> _Indices:
        count = len(self.dataset.paths)
        if indices is None:
            return np.arange(count, dtype=np.int64)
        order = np.asarray(indices, dtype=np.int64).reshape(-1)
        outside = order[(order < 0) | (order >= count)]
        if len(outside):
            raise DatasetError(
                f"{self.dataset.root}: there is no sample {outside[0]}, the indices go from 0 to {count - 1}",
                "Use a list that was made for this data folder.",
            )
        return order

    def _batch(self, indices: _Indices, pending: npt.NDArray[np.bool_], decoded: Iterator[Decoded | str]) -> Batch:
        slots = self._slots[indices]
        kept = ~pending & (slots >= 0)
        if kept.all():
            images = self._kept[slots]
        else:
            images = np.empty((len(indices), *self._decoder.shape), self._kept.dtype)
            images[kept] = self._kept[slots[kept]]
            readable = kept
            for row in np.flatnonzero(pending):
                image = next(decoded)
                if isinstance(image, str):
                    self._leave_out(int(indices[row]), image)
                else:
                    images[row] = image.pixels
                    readable[row] = True
                    self._keep(indices[row], image.pixels)
                    if image.treatment is not None:
                        self.treated[int(indices[row])] = image.treatment
            indices, images = indices[readable], images[readable]
        of_samples = (indices.copy(), images, self._labels[indices])
        found, pixels, labels = (torch.from_numpy(array) for array in of_samples)
        return Batch(found, pixels, labels)

    def _keep(self, index: np.int64, pixels: Pixels) -> None:
        if self._slots[index] == _NOT_DECODED and self._kept_count < len(self._kept):
            self._kept[self._kept_count] = pixels
            self._slots[index] = self._kept_count
            self._kept_count += 1

    def _leave_out(self, index: int, reason: str) -> None:
        self.unreadable[index] = reason
        if self._strict:
            raise DatasetError(
                f"{self.dataset.root / self.dataset.paths[index]}: {reason}",
                "Repair or remove the file, or run without --strict-images to leave it out.",
            )
        self._slots[index] = _UNREADABLE

    def _decoded(self, indices: _Indices) -> Iterator[Decoded | str]:
        """The images one by one, or the reasons why there are none."""
        paths = [self.dataset.paths[index] for index in indices]
        chunks = deque(paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))
        saved = 0.0
        while chunks and (self._workers == 0 or saved <= _WORTH_WORKERS):
            began = time.perf_counter()
            decoded = self._decoder(chunks.popleft())
            seconds_left = (time.perf_counter() - began) * len(chunks)
            saved = seconds_left * (1 - 1 / (self._workers + 1))
            yield from decoded
        if chunks:
            try:
                for decoded in map_in_workers(self._decoder, list(chunks), self._workers):
                    yield from decoded
            except WorkerError as error:
                raise DatasetError(
                    f"{self.dataset.root}: a process that decodes images died or could not start: {error}",
                    "The machine may be short of memory: use fewer --workers; 0 decodes without processes.",
                ) from error
