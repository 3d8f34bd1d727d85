"""The second moment of a convolution's patches, from products of its input with itself moved along.

The block of `G` for the kernel's places `a` and `b` is the correlation of the input with itself `b - a` further on,
over the positions that `a` meets. All pairs of places at one distance have the same positions in common but for a few
at the border, so what they share is computed once: a 3x3 kernel on a map of 8x8 takes a seventh of the operations that
its unfolded patches take, and no patch is ever made. It is the same sum, in another order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sapcli.activations.rows import Patches, gram

# Along a second axis too, where the products are still of so many columns: for narrower ones it saves no time.
_NARROWEST = 64
_ALL = slice(None)


@dataclass(frozen=True)
class _Pairs:
    """The pairs of a kernel's places at one distance along one axis.

    Attributes:
        distance: From the first place to the second.
        shift: The same in lines of the input.
        intervals: The input's lines `[begin, end)` that first places meet, without those whose second place meets
            padding; cut so that each is met as a whole or not at all.
        members: The numbers of the intervals that each first place meets.
    """

    distance: int
    shift: int
    intervals: tuple[tuple[int, int], ...]
    members: Mapping[int, tuple[int, ...]]


class Correlations:
    """The second moment of all patches that are alike but for their images, as a streaming sum.

    Args:
        patches: The first of them.
        device: Where the float64 sums are.
    """

    def __init__(self, patches: Patches, device: torch.device) -> None:
        self._device = device
        self._groups = patches.groups
        self._channels = patches.images.shape[1] // patches.groups
        self._kernel = patches.kernel
        self._axes = _axes(patches)
        along = [_pairs_along(patches, axis) for axis in self._axes]
        # Of two opposite distances one is enough: the blocks of the other are those transposed.
        self._pairs = [
            pairs
            for pairs in itertools.product(*along)
            if tuple(pair.distance for pair in pairs) >= (0,) * len(self._axes)
        ]
        self._sums: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def add(self, patches: Patches, weight: float = 1.0) -> None:
        """Add the second moment of more patches, of the same shape but for the number of images, times `weight`."""
        for places in patches.places(self._axes):
            for number, pairs in enumerate(self._pairs):
                for chosen in itertools.product(*(range(len(pair.intervals)) for pair in pairs)):
                    product = _product(places, pairs, chosen)
                    key = number, chosen
                    if key not in self._sums:
                        self._sums[key] = torch.zeros_like(product, dtype=torch.float64, device=self._device)
                    self._sums[key].add_(product.to(self._device), alpha=weight)

    def add_to(self, total: Tensor) -> None:
        """Add the sum of all patches so far to `total`, float64 `[groups, d, d]`."""
        # Block beside block first, and then all at once to where the weight's order of elements has them.
        places = [self._kernel[axis] for axis in self._axes]
        rest = [size for axis, size in enumerate(self._kernel) if axis not in self._axes]
        columns = self._channels * math.prod(rest)
        blocks = torch.zeros_like(total).view(self._groups, *places, columns, *places, columns)
        for number, pairs in enumerate(self._pairs):
            for place in itertools.product(*(pair.members for pair in pairs)):
                other = tuple(start + pair.distance for start, pair in zip(place, pairs, strict=True))
                block = blocks[_block(place, other)]
                met = (pair.members[start] for pair, start in zip(pairs, place, strict=True))
                for chosen in itertools.product(*met):
                    block += self._sums[number, chosen]
                if other != place:
                    blocks[_block(other, place)] = block.mT
        row = (*places, self._channels, *rest)
        order = self._element_order()
        both = (0, *(1 + axis for axis in order), *(1 + len(row) + axis for axis in order))
        element = (self._channels, *self._kernel)
        total.view(self._groups, *element, *element).add_(blocks.view(self._groups, *row, *row).permute(both))

    def _element_order(self) -> list[int]:
        """Where channels and the kernel's axes are in `(*shifted axes, channels, *other axes)`."""
        shifted = {axis: position for position, axis in enumerate(self._axes)}
        others = itertools.count(len(self._axes) + 1)
        kernel = range(len(self._kernel))
        return [len(self._axes), *(shifted[axis] if axis in shifted else next(others) for axis in kernel)]


def _product(places: Tensor, pairs: Iterable[_Pairs], chosen: Iterable[int]) -> Tensor:
    """The product of an interval's lines with those that lie the pairs' distance further on, `[groups, D, D]`.

    Args:
        places: `[groups, *extents, m, D]`.
        pairs: Of each axis.
        chosen: The interval of each axis.
    """
    left, right = [_ALL], [_ALL]
    for pair, number in zip(pairs, chosen, strict=True):
        begin, end = pair.intervals[number]
        left.append(slice(begin, end))
        right.append(slice(begin + pair.shift, end + pair.shift))
    total: Tensor | None = None
    same = left == right
    for first, second in zip(_in_one_piece(places[tuple(left)]), _in_one_piece(places[tuple(right)]), strict=True):
        if total is None:
            total = gram(first) if same else first.mT @ second
        elif same:
            total += gram(first)
        else:
            total.baddbmm_(first.mT, second)
    assert total is not None
    return total


def _in_one_piece(lines: Tensor) -> Iterator[Tensor]:
    """`[groups, *extents, m, D]` as matrices `[groups, n, D]` without a copy: one for all lines of the last axis."""
    if lines.dim() <= 4:
        yield lines.flatten(1, -2)
        return
    for line in lines.unbind(1):
        yield from _in_one_piece(line)


def _block(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int | slice, ...]:
    """The index of the block of two places in `[groups, *places, D, *places, D]`."""
    return (_ALL, *first, _ALL, *second)


def _axes(patches: Patches) -> tuple[int, ...]:
    """The axes along which patches are not unfolded."""
    axes = patches.overlapping_axes
    while len(axes) > 1 and _columns(patches, axes) < _NARROWEST:
        axes.pop()
    return tuple(axes)


def _columns(patches: Patches, axes: Iterable[int]) -> int:
    return patches.row_length // math.prod(patches.kernel[axis] for axis in axes)


def _pairs_along(patches: Patches, axis: int) -> list[_Pairs]:
    """All pairs of places along one axis, by distance."""
    extent, positions, size = patches.images.shape[2 + axis], patches.positions()[axis], patches.kernel[axis]
    padding, dilation = patches.geometry.padding[axis], patches.geometry.dilation[axis]
    found = []
    for distance in range(1 - size, size):
        shift = distance * dilation
        spans = {}
        for place in range(max(-distance, 0), size - max(distance, 0)):
            # Lines of padding are zeros and left out: line y of the input is y + padding of the padded one.
            first = place * dilation - padding
            begin, end = max(first, -shift, 0), min(first + positions, extent, extent - shift)
            if begin < end:
                spans[place] = begin, end
        edges = sorted({edge for span in spans.values() for edge in span})
        intervals = [
            (begin, end)
            for begin, end in itertools.pairwise(edges)
            if any(span[0] <= begin and end <= span[1] for span in spans.values())
        ]
        members = {
            place: tuple(number for number, (begin, end) in enumerate(intervals) if span[0] <= begin and end <= span[1])
            for place, span in spans.items()
        }
        found.append(_Pairs(distance, shift, tuple(intervals), members))
    return found
