"""Training images varied at random: whole batches at once, on the device, before they are normalised."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sapcli.errors import UsageError
from sapcli.settings import Augment

SMALL = 64
"""Up to so many pixels a side, images are shifted; larger ones are cropped and resized."""
# An eighth of the side: the usual 4 of 32 pixels.
_SHIFTED_BY = 8
_HARDLY = 32
# Milder than what networks are trained with from scratch (0.08): a few epochs have to be enough.
_SMALLEST_AREA = 0.35
_WIDEST_RATIO = 4 / 3


class Augmentation:
    """Varies batches of images.

    All that is random comes from PyTorch's global generators, those of the device as well.

    Args:
        kind: How.
        flip: Whether half of the images are mirrored.
        input_size: Channels, height and width.

    Raises:
        UsageError: Images of so many channels cannot be varied in this way.
    """

    def __init__(self, kind: Augment, flip: bool, input_size: tuple[int, int, int]) -> None:
        self._kind = kind
        self._flip = flip
        channels, height, width = input_size
        self.is_small = max(height, width) <= SMALL
        self._policy: Callable[[Tensor], Tensor] | None = None
        if kind in (Augment.TRIVIAL, Augment.RAND):
            if channels not in (1, 3):
                raise UsageError(
                    f"--augment {kind} is for images of 1 or 3 channels, not {channels}", "leave it out, or take none"
                )
            from torchvision.transforms import v2

            self._policy = v2.TrivialAugmentWide() if kind is Augment.TRIVIAL else v2.RandAugment()

    def __str__(self) -> str:
        """What is done, in words."""
        ways = ["flips"] if self._flip else []
        if self._kind is not Augment.NONE:
            ways.append("small crops" if self.is_small else "resized crops")
        if self._policy is not None:
            ways.append("TrivialAugment" if self._kind is Augment.TRIVIAL else "RandAugment")
        return ", ".join(ways) or "none"

    def __call__(self, pixels: Tensor) -> Tensor:
        """The images varied, of the same shape, their channels together.

        Args:
            pixels: uint8 `[n, C, H, W]`.

        Returns:
            uint8, or float32 from 0 to 255 where images were resized.
        """
        if self._policy is not None:
            pixels = torch.stack([self._policy(image) for image in pixels])
        if self._kind is Augment.NONE:
            return shifted(pixels, 0, self._flip) if self._flip else pixels
        if self.is_small:
            return shifted(pixels, max(pixels.shape[-2:]) // _SHIFTED_BY, self._flip)
        return cropped(pixels, self._flip)


def shifted(pixels: Tensor, reach: int, flip: bool) -> Tensor:
    """Each image shifted by up to `reach` pixels, filled up by reflection, and half of them mirrored.

    It is the usual crop from a padded image, made by one look-up.

    Args:
        pixels: `[n, C, H, W]`.
        reach: In pixels.
        flip: Whether to mirror.
    """
    count, _, height, width = pixels.shape
    device = pixels.device
    rows = _reflected(_offsets(count, min(reach, height - 1), device) + torch.arange(height, device=device), height)
    columns = _reflected(_offsets(count, min(reach, width - 1), device) + torch.arange(width, device=device), width)
    if flip:
        mirrored = torch.rand(count, 1, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    numbers = torch.arange(count, device=device)[:, None, None]
    return pixels[numbers, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def moved(pixels: Tensor) -> Tensor:
    """All images shifted down and to the right by a 32nd of their side, a pixel at least: that makes no other class."""
    height, width = pixels.shape[-2:]
    rows, columns = (
        _reflected(torch.arange(side, device=pixels.device) - min(max(side // _HARDLY, 1), side - 1), side)
        for side in (height, width)
    )
    return pixels[:, :, rows][:, :, :, columns]


def _offsets(count: int, reach: int, device: torch.device) -> Tensor:
    return torch.randint(-reach, reach + 1, (count, 1), device=device)


def _reflected(positions: Tensor, length: int) -> Tensor:
    """Positions beyond an end, mirrored at it, the pixel at the end not repeated."""
    last = length - 1
    return last - (last - positions.abs()).abs()


def cropped(pixels: Tensor, flip: bool) -> Tensor:
    """A random part of each image, resized to the whole, and half of them mirrored; float32.

    Args:
        pixels: `[n, C, H, W]`.
        flip: Whether to mirror.
    """
    count, device = len(pixels), pixels.device
    area = torch.empty(count, device=device).uniform_(_SMALLEST_AREA, 1)
    ratio = torch.empty(count, device=device).uniform_(-math.log(_WIDEST_RATIO), math.log(_WIDEST_RATIO)).exp()
    width, height = ((area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1))
    # In the coordinates of affine_grid an image reaches from -1 to 1.
    across, down = ((1 - side) * torch.empty(count, device=device).uniform_(-1, 1) for side in (width, height))
    if flip:
        width = torch.where(torch.rand(count, device=device) < 0.5, -width, width)
    nothing = torch.zeros_like(width)
    maps = torch.stack([torch.stack([width, nothing, across], 1), torch.stack([nothing, height, down], 1)], 1)
    grid = functional.affine_grid(maps, list(pixels.shape), align_corners=False)
    images = functional.grid_sample(
        pixels.to(torch.float32), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return images.contiguous(memory_format=torch.channels_last)
