"""The pixels of training images in any order: kept on a GPU where they fit, else decoded and copied batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sapcli.datasets.images import Images
from sapcli.machine.out_of_memory import is_out_of_memory
from sapcli.machine.progress import Progress

# So much of a GPU's free memory may hold images.
_SHARE_OF_MEMORY = 0.25


class Pixels:
    """Training images as uint8 on the device.

    Args:
        images: The images.
        indices: Those that are trained on, all of them readable.
        device: Where they are wanted.
        progress: Told of the images done.
    """

    def __init__(self, images: Images, indices: Sequence[int], device: torch.device, progress: Progress) -> None:
        self._images = images
        self._device = device
        self._held: Tensor | None = None
        self._places: Tensor | None = None
        if _fits(len(indices) * math.prod(images.preprocessing.input_size), device):
            self._hold(indices, progress)

    def _hold(self, indices: Sequence[int], progress: Progress) -> None:
        """Copy all images to the device, once."""
        try:
            held = torch.empty(
                (len(indices), *self._images.preprocessing.input_size), dtype=torch.uint8, device=self._device
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return
        places = torch.zeros(len(self._images.dataset.paths), dtype=torch.int64)
        start = 0
        with progress.stage("decoding training images", len(indices)) as advance:
            for batch in self._images.batches(indices):
                stop = start + len(batch.indices)
                held[start:stop] = batch.images.to(self._device)
                places[batch.indices] = torch.arange(start, stop)
                start = stop
                advance(len(batch.indices))
        self._held, self._places = held, places.to(self._device)

    def batches(self, order: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in an order: the samples' indices, int64 `[n]`, and their pixels, uint8 `[n, C, H, W]`.

        Args:
            order: Indices of samples.
            size: Images a batch.
        """
        if self._held is not None and self._places is not None:
            for indices in torch.split(torch.tensor(order, device=self._device), size):
                yield indices, self._held[self._places[indices]]
            return
        for batch in self._images.batches(order, size):
            pixels = batch.images
            if self._device.type == "cuda":
                # Memory that stays in its place is copied while the GPU computes.
                pixels = pixels.pin_memory()
            yield (
                batch.indices.to(self._device, non_blocking=True),
                pixels.to(self._device, non_blocking=True),
            )


def _fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes are a small part of a GPU's free memory."""
    if device.type != "cuda":
        return False
    try:
        free, _ = torch.cuda.mem_get_info(device)
    except (RuntimeError, AssertionError):  # a driver that does not tell
        return False
    return size <= _SHARE_OF_MEMORY * free
