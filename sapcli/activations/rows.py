"""Weights as matrices and activations as the rows that they multiply: pure functions of shapes and tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Unfolded patches of a convolution are made at most so many elements at a time (64 MiB of float32).
_UNFOLD_ELEMENTS = 1 << 24
# A weight is projected at most so many elements at a time (32 MiB of float32).
_BLOCK_ELEMENTS = 1 << 23
# Below this, halving a product costs more than the half that it saves.
_SMALLEST_HALF = 128


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

    @property
    def products(self) -> int:
        """The multiplications that a row for each matrix takes."""
        return self.groups * self.outputs * self.row_length

    def simplified(self) -> WeightView:
        """The same matrices in the one form that equal windows share, however they were reshaped.

        Matrices and outputs that an expanded weight repeats are named once, and a row's dimensions become one wherever
        a single stride walks through them.
        """
        outer = [(1 if step == 0 else n, step) for n, step in zip(self.size[:2], self.stride[:2], strict=True)]
        row: list[tuple[int, int]] = []
        for n, step in zip(self.size[2:], self.stride[2:], strict=True):
            if row and row[-1][1] == n * step:
                row[-1] = (row[-1][0] * n, step)
            elif n != 1:
                row.append((n, step))
        axes = [*outer, *(row or [(1, 0)])]
        return WeightView(tuple(n for n, _ in axes), tuple(step if n > 1 else 0 for n, step in axes), self.offset)

    def names_each_element_once(self) -> bool:
        """Whether no element of the parameter lies in the window twice."""
        reach = 0
        for step, n in sorted((step, n) for n, step in zip(self.size, self.stride, strict=True) if n > 1):
            if step <= reach:
                return False
            reach += (n - 1) * step
        return True

    def lies_within(self, elements: int) -> bool:
        """Whether this is a window of a parameter of so many elements, which a window from a file need not be."""
        if len(self.size) < 3 or len(self.size) != len(self.stride):
            return False
        if min(self.size) < 1 or min(self.stride) < 0 or self.offset < 0:
            return False
        reach = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        return reach < elements and self.names_each_element_once()

    def window(self, parameter: Tensor) -> Tensor:
        """The window itself: a view of the contiguous `parameter`, of shape `size`."""
        return parameter.as_strided(self.size, self.stride, parameter.storage_offset() + self.offset)

    def matrices(self, parameter: Tensor) -> Tensor:
        """The matrices, `[groups, outputs, d]`; a copy where the window cannot be reshaped in place."""
        return self.window(parameter).reshape(self.groups, self.outputs, self.row_length)

    def blocks(self, parameter: Tensor) -> Iterator[Tensor]:
        """The window in pieces of bounded size along its outputs: views of `parameter`, `[groups, n, *row]`."""
        outputs = max(_BLOCK_ELEMENTS // (self.groups * self.row_length), 1)
        window = self.window(parameter)
        for start in range(0, self.outputs, outputs):
            yield window[:, start : start + outputs]

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


@dataclass(frozen=True)
class Patches:
    """The rows of a convolution: the patches that its kernel multiplies (im2col), never all of them in memory at once.

    Attributes:
        images: The convolution's input, `[N, C, *spatial]`, of any number of spatial dimensions.
        kernel: The kernel's extent per spatial dimension.
        geometry: Stride, padding and dilation per spatial dimension.
        groups: Number of groups that the channels are divided into.
    """

    images: Tensor
    kernel: tuple[int, ...]
    geometry: Geometry
    groups: int

    @property
    def row_length(self) -> int:
        """`d = C / groups * prod(kernel)`."""
        return self.images.shape[1] // self.groups * torch.Size(self.kernel).numel()

    @property
    def count(self) -> int:
        """How many rows each group has."""
        return self.images.shape[0] * torch.Size(self.positions()).numel()

    @property
    def overlapping_axes(self) -> list[int]:
        """The spatial dimensions along which a patch and the next have all lines but one in common."""
        return [axis for axis, size in enumerate(self.kernel) if size > 1 and self.geometry.stride[axis] == 1]

    def chunks(self) -> Iterator[Tensor]:
        """The rows, a few images at a time: `[groups, n, d]`, in the weight's own order of elements."""
        axes = range(len(self.kernel))
        for chunk in self._padded_chunks(axes):
            patches = self._windows(chunk, axes)
            # [groups, n, channels, *positions, *kernel] -> [groups, n, *positions, channels, *kernel]
            order = (0, 1, *(3 + axis for axis in axes), 2, *(3 + len(axes) + axis for axis in axes))
            yield patches.permute(order).reshape(self.groups, -1, self.row_length)

    def places(self, axes: Sequence[int]) -> Iterator[Tensor]:
        """The input, unfolded along all axes but `axes`, along which it stays without padding; a few images at a time.

        Returns:
            `[groups, *extents of axes, m, D]`: `m` counts images and the positions along the other axes, `D` channels
            and the kernel's places along the other axes, in the weight's own order of elements.
        """
        others = [axis for axis in range(len(self.kernel)) if axis not in axes]
        for chunk in self._padded_chunks(others):
            windows = self._windows(chunk, others)
            # From [groups, n, channels, *spatial, *kernel of others] to [groups, *axes, n, *others, channels, *kernel].
            kernels = (3 + len(self.kernel) + number for number in range(len(others)))
            order = (0, *(3 + axis for axis in axes), 1, *(3 + axis for axis in others), 2, *kernels)
            ordered = windows.permute(order)
            lead = ordered.shape[: 1 + len(axes)]
            columns = self.row_length // torch.Size(self.kernel[axis] for axis in axes).numel()
            yield ordered.reshape(*lead, -1, columns).contiguous()

    def positions(self) -> list[int]:
        """How many patches there are per spatial dimension."""
        geometry = self.geometry
        return [
            (extent + 2 * p - d * (k - 1) - 1) // s + 1
            for extent, k, s, p, d in zip(
                self.images.shape[2:], self.kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True
            )
        ]

    def _padded_chunks(self, axes: Sequence[int]) -> Iterator[Tensor]:
        """A few images at a time, padded along `axes`, so that their windows over `axes` are of bounded size."""
        unfolded = torch.Size(self.kernel[axis] for axis in axes).numel()
        per_image = self.images[:1].numel() * unfolded
        step = max(1, _UNFOLD_ELEMENTS // max(per_image, 1))
        padding = [p if axis in axes else 0 for axis, p in enumerate(self.geometry.padding)]
        sides = [side for p in reversed(padding) for side in (p, p)]
        for chunk in torch.split(self.images, step):
            yield nn.functional.pad(chunk, sides) if any(sides) else chunk

    def _windows(self, chunk: Tensor, axes: Sequence[int]) -> Tensor:
        """The windows of the kernel over `axes`, a view `[groups, n, channels, *spatial, *kernel]`.

        Along `axes`, `spatial` counts positions and `kernel` has an entry; other axes are left as they are.
        """
        count, channels = chunk.shape[0], chunk.shape[1] // self.groups
        steps, geometry, positions = chunk.stride()[2:], self.geometry, self.positions()
        spatial = [positions[axis] if axis in axes else extent for axis, extent in enumerate(chunk.shape[2:])]
        between = [step * (geometry.stride[axis] if axis in axes else 1) for axis, step in enumerate(steps)]
        return chunk.as_strided(
            (self.groups, count, channels, *spatial, *(self.kernel[axis] for axis in axes)),
            (
                channels * chunk.stride(1),
                chunk.stride(0),
                chunk.stride(1),
                *between,
                *(steps[axis] * geometry.dilation[axis] for axis in axes),
            ),
            chunk.storage_offset(),
        )


def gram(rows: Tensor) -> Tensor:
    """`R^T R` of rows `[groups, n, d]`, as `[groups, d, d]`; the equal halves of a large one are made once."""
    half = rows.shape[2] // 2
    if half < _SMALLEST_HALF:
        return rows.mT @ rows
    left, right = rows[..., :half], rows[..., half:]
    product = torch.empty(rows.shape[0], rows.shape[2], rows.shape[2], dtype=rows.dtype, device=rows.device)
    product[:, :half, :half] = gram(left)
    product[:, half:, half:] = gram(right)
    product[:, :half, half:] = left.mT @ right
    product[:, half:, :half] = product[:, :half, half:].mT
    return product
