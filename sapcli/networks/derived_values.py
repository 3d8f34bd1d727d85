"""Which weights a network's own code makes other values of while it is filled and put into eval mode.

A corrected file is loaded by the same code again: a table that was made of a weight would then be made of the projected
one, while the network that was judged had that of the original. Such weights are found by following their numbers from
operator to operator, as far as those are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701
from torch.utils._pytree import tree_leaves  # noqa: PLC2701

aten = torch.ops.aten

USED_FOR_OTHERS = "the network's own code makes other values of it when it is loaded"
"""Why a weight is not projected of which something else is made."""


class FollowedTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what is made of a network's parameters and buffers while this mode is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._origins: dict[int, frozenset[str]] = {}
        # The memory of a tensor that is let go of would be given out again.
        self._held: list[Tensor] = []
        self._read_as_numbers: frozenset[str] = frozenset()

    def begin(self, network: nn.Module) -> None:
        """Follow the tensors of a network as it was built, before it is filled, and forget those of another."""
        self._origins, self._read_as_numbers = {}, frozenset()
        for name, tensor in _named(network).items():
            self._add(tensor, frozenset({name}))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        origins = frozenset[str]().union(*(self._origins_of(tensor) for tensor in inputs))
        if origins:
            if func.overloadpacket is aten._local_scalar_dense:
                self._read_as_numbers |= origins
            for tensor in _tensors((result, _written(func, args, kwargs))):
                self._add(tensor, origins)
        return result

    def used_for_others(self, network: nn.Module, outside: Mapping[str, Tensor]) -> frozenset[str]:
        """The tensors of which the filled network's code has made other values, and those that it has made so.

        Args:
            network: The network, filled and in eval mode.
            outside: Its tensors that no checkpoint holds.
        """
        found = set(self._read_as_numbers)
        tensors = {**_named(network), **outside}
        at_place: dict[int, set[str]] = {}
        for name, tensor in tensors.items():
            at_place.setdefault(_place(tensor), set()).add(name)
        for tensor in tensors.values():
            others = self._origins_of(tensor) - at_place[_place(tensor)]
            if others:
                found |= others | at_place[_place(tensor)]
        return frozenset(found)

    def _origins_of(self, tensor: Tensor) -> frozenset[str]:
        return self._origins.get(_place(tensor), frozenset())

    def _add(self, tensor: Tensor, origins: frozenset[str]) -> None:
        place = _place(tensor)
        if place:
            self._held.append(tensor)
            self._origins[place] = self._origins.get(place, frozenset()) | origins


def _named(network: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }


def _place(tensor: Tensor) -> int:
    """Where the tensor's memory begins; 0 for one that has none yet."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, ValueError, NotImplementedError):
        return 0


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that the operator changes in place."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return [
        given[argument.name]
        for argument in func._schema.arguments
        if argument.name in given and argument.alias_info is not None and argument.alias_info.is_write
    ]
