"""How much of a network is built before it is known that the checkpoint is one: no more than the file could fill.

The arguments of a network may come from the file (`model_args` of config.json), and a few bytes there can ask for
layers without end. On the meta device tensors take no memory, but modules do; elsewhere, both.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701
from torch.utils._pytree import tree_leaves, tree_map  # noqa: PLC2701

from sapcli.errors import ArchitectureError
from sapcli.machine.json_text import shown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sapcli.checkpoints.checkpoint import Checkpoint

# The largest network of timm has 6,000 modules; there are up to six of them for each tensor.
_MODULES, _MODULES_PER_TENSOR = 20_000, 10
# 64 MiB of float32 beside what the file has: position tables, masks and what they are computed from.
_ELEMENTS, _TIMES_THE_FILE = 16 << 20, 4
# All tensors together, those too that initial values are computed from and that are soon gone.
_TIMES_ALTOGETHER = 4
# Widths, depths and sides of images; sums of them, since factories make lists that long.
_NUMBERS = 100_000
# What operations on tensors of so few elements make stays small.
_FEW = 256


class NetworkTooLargeError(ArchitectureError):
    """A network that is larger than the checkpoint's tensors can be."""


@dataclass(frozen=True)
class BuildingLimits:
    """What may be built to find out whether a checkpoint fits.

    Attributes:
        modules: So many modules.
        elements: So many elements of a tensor that has values; four times as many of all that are made.
        number: The sum of the whole numbers among the arguments that come from the file.
    """

    modules: int
    elements: int
    number: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> BuildingLimits:
        """The limits for a checkpoint: in proportion to its tensors."""
        shapes = [entry.shape for entry in checkpoint.entries.values()]
        return cls(
            modules=_MODULES + _MODULES_PER_TENSOR * len(shapes),
            elements=_ELEMENTS + _TIMES_THE_FILE * sum(map(math.prod, shapes)),
            number=_NUMBERS + 4 * max((extent for shape in shapes for extent in shape), default=0),
        )

    def check_arguments(self, arguments: Mapping[str, object], source: str) -> None:
        """Refuse numbers that no network of the checkpoint's shapes has.

        Args:
            arguments: What the file says, as JSON.
            source: Where it says so.

        Raises:
            NetworkTooLargeError: The whole numbers of an argument are larger together than `number`.
        """
        for name, value in arguments.items():
            leaves = tree_leaves(value)
            whole = sum(abs(leaf) for leaf in leaves if isinstance(leaf, int))
            # An infinity and a NaN are no sizes, and fail where they are used as one.
            others = sum(abs(leaf) for leaf in leaves if isinstance(leaf, float) and math.isfinite(leaf))
            if max(whole, others) > self.number:
                raise NetworkTooLargeError(
                    f"{source} builds the network with {name!a:.80} of {shown(value)}, far beyond what the file holds",
                    f"Correct {source}, or give --arch and --arch-arg.",
                )

    @contextlib.contextmanager
    def on_modules(self) -> Iterator[None]:
        """Stop what builds more modules than `modules` within the context."""
        count = 0

        def check(_module: nn.Module, _name: str, _submodule: nn.Module) -> None:
            nonlocal count
            count += 1
            if count > self.modules:
                raise self._too_large(f"more than {self.modules} modules")

        handle = register_module_module_registration_hook(check)
        try:
            yield
        finally:
            handle.remove()

    def on_tensors(self) -> contextlib.AbstractContextManager[object]:
        """Stop what makes tensors of more than `elements` elements within the context."""
        return _Elements(self.elements, self._too_large)

    @staticmethod
    def _too_large(what: str) -> NetworkTooLargeError:
        return NetworkTooLargeError(
            f"the network has {what}, far more than the checkpoint",
            "Give the architecture that was trained (--arch), or its arguments (--arch-arg key=value).",
        )


class _Elements(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Asks of each operation that can make a large tensor how large it would be, on the meta device, before it runs."""

    def __init__(self, limit: int, error: Callable[[str], NetworkTooLargeError]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._limit = limit
        self._made = 0
        self._error = error

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not func._schema.is_mutable and _may_be_large((args, kwargs)):
            self._check(func, args, kwargs)
        return func(*args, **kwargs)

    def _check(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "meta":
            return
        on_meta = {**kwargs, "device": torch.device("meta")} if _makes(func) else kwargs
        try:
            made = func(*tree_map(_as_meta, args), **tree_map(_as_meta, on_meta))
        except Exception:
            # What depends on values has no shape without them, and is refused where it could be large.
            elements = math.prod(leaf.numel() for leaf in tree_leaves((args, kwargs)) if _has_values(leaf))
        else:
            elements = sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
        if _is_view(func):
            return
        self._made += elements
        if elements > self._limit:
            raise self._error(f"a tensor of {elements:.6g} elements")
        if self._made > _TIMES_ALTOGETHER * self._limit:
            raise self._error(f"tensors of more than {_TIMES_ALTOGETHER * self._limit:.6g} elements")


def _makes(func: Any) -> bool:
    """Whether an operation takes a device, as those do that make tensors of nothing."""
    return any(argument.name == "device" for argument in func._schema.arguments)


def _is_view(func: Any) -> bool:
    return any(argument.alias_info is not None for argument in func._schema.arguments)


def _has_values(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and not leaf.is_meta


def _may_be_large(arguments: object) -> bool:
    """Whether there is a tensor of many elements, or numbers that can be the size of one."""
    size: float = 1
    for leaf in tree_leaves(arguments):
        if isinstance(leaf, torch.Tensor):
            if leaf.numel() > _FEW:
                return True
        elif isinstance(leaf, int | float) and abs(leaf) > 1:
            size = min(size * abs(leaf), _FEW + 1)
    return size > _FEW


def _as_meta(leaf: object) -> object:
    if not isinstance(leaf, torch.Tensor) or leaf.is_meta:
        return leaf
    meta: Tensor = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
    return meta
