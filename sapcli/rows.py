"""Weights as matrices and activations as the rows that they multiply: pure functions of shapes and tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Unfolded patches of a convolution are made at most so many elements at a time (64 MiB of float32).
_UNFOLD_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class WeightView:
    """Where the matrices that multiply rows lie inside a contiguous parameter.

    A strided window: `size` is `(groups, outputs, *row)` and the product of the row's sizes is `d`, the length of the
    rows that the matrices multiply. A linear layer's weight is `(1, out, in)`, a convolution's
    `(groups, out / groups, in / groups, kh, kw)`; a slice of a packed weight has an offset.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @property
    def groups(self) -> int:
        """The number of matrices."""
        return self.size[0]

    @property
    def outputs(self) -> int:
        """The number of rows of each matrix."""
        return self.size[1]

    @property
    def row_length(self) -> int:
        """The number of columns `d` of each matrix."""
        return torch.Size(self.size[2:]).numel()

    def without_repetition(self) -> WeightView:
        """The same elements, each matrix and output that an expanded weight repeats named once."""
        kept = tuple(
            1 if i < 2 and step == 0 else n for i, (n, step) in enumerate(zip(self.size, self.stride, strict=True))
        )
        return WeightView(kept, self.stride, self.offset)

    def window(self, parameter: Tensor) -> Tensor:
        """The window itself: a view of the contiguous `parameter`, of shape `size`."""
        return parameter.as_strided(self.size, self.stride, parameter.storage_offset() + self.offset)

    def matrices(self, parameter: Tensor) -> Tensor:
        """The matrices, `[groups, outputs, d]`; a copy where the window cannot be reshaped in place."""
        return self.window(parameter).reshape(self.groups, self.outputs, self.row_length)

    def replace(self, parameter: Tensor, matrices: Tensor) -> None:
        """Write `matrices` (`[groups, outputs, d]`) into the contiguous `parameter`, in place."""
        self.window(parameter).copy_(matrices.reshape(self.size))

    def elements(self) -> Tensor:
        """The positions inside the flat parameter that the window covers, int64 of shape `size`."""
        positions = torch.tensor(self.offset)
        for dimension, (size, stride) in enumerate(zip(self.size, self.stride, strict=True)):
            steps = torch.arange(size) * stride
            positions = positions + steps.reshape(-1, *[1] * (len(self.size) - dimension - 1))
        return positions


@dataclass(frozen=True)
class Geometry:
    """How a convolution's kernel walks over its input: one number per spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, stride: list[int], padding: list[int], dilation: list[int], axes: int) -> Geometry:
        """The geometry from the operator's arguments, where one number may stand for all dimensions."""

        def spread(values: list[int]) -> tuple[int, ...]:
            return tuple(values) * (axes if len(values) == 1 else 1)

        return cls(spread(stride), spread(padding), spread(dilation))


def convolution_rows(images: Tensor, kernel: tuple[int, ...], geometry: Geometry, groups: int) -> Iterator[Tensor]:
    """The patches that a convolution's kernel multiplies (im2col), a few images at a time.

    Args:
        images: The convolution's input, `[N, C, *spatial]`, of any number of spatial dimensions.
        kernel: The kernel's extent per spatial dimension.
        geometry: Stride, padding and dilation per spatial dimension.
        groups: Number of groups that the channels are divided into.

    Yields:
        Chunks of rows, `[groups, n, C / groups * prod(kernel)]`, in the weight's own order of elements.
    """
    if any(geometry.padding):
        images = nn.functional.pad(images, [side for p in reversed(geometry.padding) for side in (p, p)])
    count, channels, *spatial = images.shape
    positions = [
        (extent - d * (k - 1) - 1) // s + 1
        for extent, k, s, d in zip(spatial, kernel, geometry.stride, geometry.dilation, strict=True)
    ]
    per_image = channels * torch.Size(kernel).numel() * torch.Size(positions).numel()
    step = max(1, _UNFOLD_ELEMENTS // max(per_image, 1))
    axes = len(kernel)
    for begin in range(0, count, step):
        chunk = images[begin : begin + step]
        steps = chunk.stride()[2:]
        patches = chunk.as_strided(
            (len(chunk), groups, channels // groups, *positions, *kernel),
            (
                chunk.stride(0),
                channels // groups * chunk.stride(1),
                chunk.stride(1),
                *(a * s for a, s in zip(steps, geometry.stride, strict=True)),
                *(a * d for a, d in zip(steps, geometry.dilation, strict=True)),
            ),
            chunk.storage_offset(),
        )
        # [n, groups, channels, *positions, *kernel] -> [groups, n, *positions, channels, *kernel]
        order = (1, 0, *range(3, 3 + axes), 2, *range(3 + axes, 3 + 2 * axes))
        yield patches.permute(order).reshape(groups, -1, channels // groups * torch.Size(kernel).numel())
