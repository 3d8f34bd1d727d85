"""Which dimensions of a network's tensors follow the number of classes, found by comparing two of its outlines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

# Two numbers of classes to build a network with. Neither is 0 or 1, which some networks treat apart.
PROBED_COUNTS = (7, 12)


@dataclass(frozen=True, order=True)
class ClassDimension:
    """A dimension of a tensor whose size is `per_class` times the number of classes, plus `constant`."""

    name: str
    dimension: int
    per_class: int
    constant: int

    def size(self, num_classes: int) -> int:
        """The dimension's size at a number of classes."""
        return self.per_class * num_classes + self.constant

    def count(self, size: int) -> int | None:
        """The number of classes at which the dimension has `size`; None if there is none."""
        count, rest = divmod(size - self.constant, self.per_class)
        return count if rest == 0 and count >= 1 else None


def class_dimensions(fewer: Shapes, more: Shapes) -> tuple[ClassDimension, ...]:
    """The class-dependent dimensions of a network.

    Args:
        fewer: The shapes of the network's tensors, by name, at the first of `PROBED_COUNTS`.
        more: The shapes at the second.

    Returns:
        The dimensions that differ, in the order of the tensors; none for a network that ignores the number of classes.
    """
    low, high = PROBED_COUNTS
    found = []
    for name in fewer.keys() & more.keys():
        for dimension, (small, large) in enumerate(zip(fewer[name], more[name], strict=False)):
            per_class, rest = divmod(large - small, high - low)
            if per_class > 0 and rest == 0:
                found.append(ClassDimension(name, dimension, per_class, small - per_class * low))
    return tuple(sorted(found))


def count_classes(dimensions: tuple[ClassDimension, ...], found: Shapes) -> int | None:
    """The number of classes that shapes from a checkpoint agree on; None if they do not, or say nothing.

    Args:
        dimensions: The network's class-dependent dimensions.
        found: The shapes in the checkpoint by the network's names; a name may be absent.
    """
    counts = {
        item.count(found[item.name][item.dimension])
        for item in dimensions
        if item.name in found and item.dimension < len(found[item.name])
    }
    return counts.pop() if len(counts) == 1 else None


def at_count(shapes: Shapes, dimensions: tuple[ClassDimension, ...], num_classes: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a network at another number of classes than they were taken at."""
    result = dict(shapes)
    for item in dimensions:
        shape = list(result[item.name])
        shape[item.dimension] = item.size(num_classes)
        result[item.name] = tuple(shape)
    return result
