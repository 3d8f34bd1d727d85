"""Where the parameters of a network lie in memory, and what is made of them before an activation is met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Origin:
    """Where a tensor that does not depend on the images comes from.

    Attributes:
        parameters: All that had a part in it, each with the operator that first made something else of it; empty for
            a parameter itself, a view or a plain copy of it.
        ingredients: All that its numbers depend on, a weight too that was only multiplied by a constant vector.
        copied: For a copy of a single parameter, plain or scaled by what does not depend on it, which one and how.
    """

    parameters: Mapping[str, str]
    ingredients: frozenset[str] = frozenset()
    copied: CopiedWeight | None = None


@dataclass(frozen=True)
class CopiedWeight:
    """What a copy holds of a parameter.

    Attributes:
        name: The parameter.
        index: The position inside the contiguous parameter of every element of the copy's storage.
        factors: What each of these elements was multiplied by; None for a plain copy.
        gain: The parameter that gave the copy its size, instead of the weight's own (weight normalisation).
    """

    name: str
    index: Tensor
    factors: Tensor | None
    gain: str | None


@dataclass(frozen=True)
class ParameterPlace:
    """Where a parameter lies in its storage; `index` tells the logical position of each element that lies elsewhere."""

    name: str
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    index: Tensor | None

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> ParameterPlace:
        """The place of a parameter of that name."""
        index = None
        if not tensor.is_contiguous():
            index = torch.full((_extent(tensor.shape, tensor.stride()),), -1)
            index.as_strided(tensor.shape, tensor.stride()).copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
        return cls(name, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), index)

    @property
    def extent(self) -> int:
        """The distance in storage from its first element to beyond its last one."""
        return _extent(self.shape, self.stride)

    def covers_the_same_as(self, other: ParameterPlace) -> bool:
        """Whether both are one and the same tensor."""
        return (self.start, self.shape, self.stride) == (other.start, other.shape, other.stride)


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """The distance in storage from a tensor's first element to beyond its last one."""
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if 0 not in shape else 0


def storage_address(tensor: Tensor) -> int:
    """Where a tensor's memory begins: the same for all views of one tensor.

    Of a tensor that has no memory of its own (a sparse one, one in MKL-DNN's layout) it is a number of the object's.
    """
    # Addresses of storages are positive.
    return tensor.untyped_storage().data_ptr() if has_strides(tensor) else -id(tensor)


def has_strides(tensor: Tensor) -> bool:
    """Whether a tensor's elements lie at regular distances in one storage."""
    return tensor.layout is torch.strided and not tensor.is_nested
