"""The orders into which tools sort class folders: the same names are other outputs of a network by each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum

_Key = Callable[[str], tuple[object, ...]]


def _natural(name: str) -> tuple[object, ...]:
    # The split gives text and digits in turn, so that numbers are never compared with text.
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name))


class ClassOrder(Enum):
    """How class names are sorted; the values say it to people."""

    ALPHABETICAL = "the alphabetical order (torchvision's)"
    """By code points, as torchvision's and fastai's loaders, Keras and scikit-learn do: 1, 10, 2 and B, a."""
    TIMM = "the order of timm's folders (natural, ignoring case)"
    """Numbers by value and without case, as `timm.data.readers` does: 1, 2, 10 and a, B."""
    NATURAL = "the natural order (numbers by value)"
    """Numbers by value, capitals first: 1, 2, 10 and B, a."""
    IGNORING_CASE = "the alphabetical order ignoring case"
    """Without case, numbers as text: 1, 10, 2 and a, B."""

    @property
    def short(self) -> str:
        """Its name without what it means."""
        return self.value.partition(" (")[0]

    def sort(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names in this order; names that are alike to it go alphabetically."""
        key = _KEYS[self]
        return tuple(sorted(names, key=lambda name: (key(name), name)))


_KEYS: dict[ClassOrder, _Key] = {
    ClassOrder.ALPHABETICAL: lambda name: (name,),
    ClassOrder.TIMM: lambda name: _natural(name.lower()),
    ClassOrder.NATURAL: _natural,
    ClassOrder.IGNORING_CASE: lambda name: (name.lower(),),
}


def known_orders(names: Sequence[str]) -> dict[ClassOrder, tuple[str, ...]]:
    """The orders into which tools would sort these names, without those that come to the same as an earlier one.

    The first is the alphabetical one, the second timm's.
    """
    orders: dict[ClassOrder, tuple[str, ...]] = {}
    for order in ClassOrder:
        found = order.sort(names)
        if found not in orders.values():
            orders[order] = found
    return orders
