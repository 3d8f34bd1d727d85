"""Operands of products and convolutions, seen as the weights that they are views or copies of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sapcli.activations.rows import Geometry, Patches, WeightView


@dataclass(frozen=True)
class Use:
    """One multiplication of rows by a weight."""

    weight: str
    view: WeightView
    rows: Tensor | Patches
    """The rows, `[groups, n, d]`; of a weight that all groups share, the rows of each group."""
    gain: str | None = None
    """The parameter that gives the weight's matrices their size, where they are used without their own."""


@dataclass(frozen=True)
class Operand:
    """A factor of a product that is a view of a weight, or of a plain or scaled copy of one.

    Attributes:
        name: The weight.
        size: The factor's shape.
        stride: Its strides.
        offset: Where it begins in the weight, or in the copy's storage.
        index: For a copy, the position inside the contiguous weight of every element of its storage.
        factors: For a scaled copy, what each of these elements was multiplied by.
        gain: The parameter that gave a normalised copy its size.
    """

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    index: Tensor | None = None
    factors: Tensor | None = None
    gain: str | None = None

    def positions(self) -> Tensor:
        """The position inside the contiguous weight of every element, int64 of shape `size`."""
        positions = WeightView(self.size, self.stride, self.offset).elements()
        return positions if self.index is None else self.index[positions]

    def scale(self) -> Tensor | None:
        """What every element was multiplied by, of shape `size`; None for a plain copy."""
        return (
            None if self.factors is None else self.factors[WeightView(self.size, self.stride, self.offset).elements()]
        )

    def transposed(self) -> Operand:
        """The operand with its last two dimensions exchanged."""
        (*size, rows, columns), (*stride, down, across) = self.size, self.stride
        return replace(self, size=(*size, columns, rows), stride=(*stride, across, down))

    def seen_as(self, size: tuple[int, ...], stride: tuple[int, ...]) -> Operand:
        """The same elements under another shape."""
        return replace(self, size=size, stride=stride)

    def view(self) -> WeightView | None:
        """The window of the weight that an operand of shape `(groups, outputs, *row)` is.

        `None` where a copy's elements do not lie in the weight at regular distances, where matrices share elements, or
        where the elements of a row are scaled differently: `diag(c) W M = diag(c) (W M)`, and so a projection of what
        was scaled row by row is one of the weight itself, but no other.
        """
        scale = self.scale()
        if scale is not None and not bool((scale.flatten(2) == scale.flatten(2)[..., :1]).all()):
            return None
        view = WeightView(self.size, self.stride, self.offset)
        if self.index is not None:
            positions = self.positions()
            first = int(positions.flatten()[0])
            steps = tuple(
                int(positions.select(dimension, 1).flatten()[0]) - first if length > 1 else 0
                for dimension, length in enumerate(self.size)
            )
            view = WeightView(self.size, steps, first)
            if not torch.equal(view.elements(), positions):
                return None
        view = view.simplified()
        return view if view.names_each_element_once() else None


def product_use(operand: Operand, rows: Tensor) -> Use | None:
    """The use of a weight, `[k, m]` or `[b, k, m]`, that multiplies `rows`, `[n, k]` or `[b, n, k]`, from the right."""
    (*batch, row_length, outputs), (*batch_stride, down, across) = operand.size, operand.stride
    groups, group_stride = (batch[0], batch_stride[0]) if batch else (1, 0)
    matrices = operand.seen_as((groups, outputs, row_length), (group_stride, across, down))
    rows = rows.reshape(groups, -1, row_length)
    view = matrices.view()
    if view is None and matrices.index is not None and matrices.factors is None:
        matrices, rows = _untangled(matrices, rows)
        view = matrices.view()
    return None if view is None else Use(operand.name, view, rows, operand.gain)


def _untangled(matrices: Operand, rows: Tensor) -> tuple[Operand, Tensor]:
    """A copy of a weight with its columns in the weight's order, and each matrix that broadcasting repeated once.

    Args:
        matrices: `[groups, outputs, d]`.
        rows: What they multiply, `[groups, n, d]`.

    Returns:
        The copy and its rows, brought into the same order.
    """
    positions = matrices.positions()
    columns = positions[0, 0].argsort()
    positions, rows = positions[:, :, columns], rows[:, :, columns.to(rows.device)]
    starts, which, counts = torch.unique(positions[:, 0, 0], return_inverse=True, return_counts=True)
    times = int(counts[0])
    order = which.argsort(stable=True)
    once = positions[order[::times]]
    if bool((counts == times).all()) and torch.equal(positions[order], once.repeat_interleave(times, dim=0)):
        positions, rows = once, rows[order.to(rows.device)].reshape(len(starts), -1, rows.shape[-1])
    return Operand(matrices.name, tuple(positions.shape), positions.contiguous().stride(), 0, positions.flatten()), rows


def convolution_use(operand: Operand, images: Tensor, geometry: Geometry, groups: int) -> Use | None:
    """The use of a convolution's weight, `[out, in / groups, *kernel]`: its rows are the patches under its kernel."""
    outputs, step = operand.size[0] // groups, operand.stride[0]
    view = operand.seen_as((groups, outputs, *operand.size[1:]), (outputs * step, *operand.stride)).view()
    patches = Patches(images, operand.size[2:], geometry, groups)
    return None if view is None else Use(operand.name, view, patches, operand.gain)


def transposed_convolution_use(operand: Operand, images: Tensor, groups: int) -> Use | None:
    """The use of a transposed convolution's weight, `[in, out / groups, *kernel]`.

    Every input pixel's channels, `in / groups` long, are multiplied by the weight, and what overlaps is then added up:
    the rows are the pixels, and the kernel's positions belong to the outputs.
    """
    inputs = operand.size[0] // groups
    outputs, outputs_stride = _merged(operand.size[1:], operand.stride[1:])
    if outputs_stride is None:
        return None
    step = operand.stride[0]
    view = operand.seen_as((groups, outputs, inputs), (inputs * step, outputs_stride, step)).view()
    axes = images.dim() - 2
    pixels = Geometry((1,) * axes, (0,) * axes, (1,) * axes)
    patches = Patches(images, (1,) * axes, pixels, groups)
    return None if view is None else Use(operand.name, view, patches, operand.gain)


def _merged(size: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int | None]:
    """Dimensions as one: its length and stride, `None` where no single stride walks through them."""
    length, step = 1, None
    for extent, distance in zip(reversed(size), reversed(stride), strict=True):
        if extent > 1 and step is not None and distance != length * step:
            return torch.Size(size).numel(), None
        step = distance if step is None and extent > 1 else step
        length *= extent
    return length, 1 if step is None else step
