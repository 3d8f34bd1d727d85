"""A GPU that is pretended: its tensors lie in the CPU's memory, and may not be mixed with the CPU's own.

That is what programs written on a CPU forget, and what no run on a CPU tells; Apple's GPUs have no float64 either. The
arithmetic is the CPU's. Nothing is said of a GPU's own rounding, memory or speed, or of autocast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
MPS = torch.device("mps", 0)
_MOVING = ("_to_copy", "copy_", "to")
_INDEXING = ("index", "index_put", "index_put_")


class OnGpu(Tensor):
    """A tensor of the machine's GPU, `place`; `held` is where its values are."""

    held: Tensor
    place = CUDA

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        """Show `held` as a tensor of the GPU.

        Raises:
            TypeError: The GPU has no numbers of that precision.
        """
        if cls.place.type == "mps" and held.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        # For PyTorch's own code it lies nowhere, which asks no driver for anything.
        shown: OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("meta"),
            requires_grad=held.requires_grad,
        )
        shown.held = held
        return shown

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The GPU."""
        return self.place

    def data_ptr(self) -> int:
        """Where the values lie, by which tensors that share them are recognised."""
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """As `data_ptr`."""
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        """The values."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator on the values."""
        return _run(func, args, kwargs or {})


class _Gpu(TorchDispatchMode):
    """Also operators without tensors, such as `zeros`, run on the GPU where they are asked to."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """What has to be seen to before PyTorch's own code: it asks for MPS's driver, and for no CUDA's.

    And `torch.where` makes a tensor of a number where the others lie, which is nowhere.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.device:
            return torch.device(*args, **(kwargs or {}))
        if func is torch.where:
            dtype = next((each.dtype for each in args[1:] if isinstance(each, Tensor)), None)
            args = tuple(each if isinstance(each, Tensor) else torch.tensor(each, dtype=dtype) for each in args)
        return func(*tree_map(_for_cuda, args), **tree_map(_for_cuda, kwargs or {}))


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator on the CPU, where it would run on a GPU.

    Raises:
        RuntimeError: It is given tensors of both.
    """
    name = func.overloadpacket.__name__
    leaves = tree_leaves((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, OnGpu)]
    # Numbers of the CPU are welcome everywhere.
    others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, OnGpu) and leaf.dim()]
    indexed = name in _INDEXING and isinstance(args[0], OnGpu)
    if ours and others and name not in _MOVING and not indexed:
        shapes = ", ".join(str(list(other.shape)) for other in others)
        raise RuntimeError(f"{func}: expected all tensors on {OnGpu.place}, found on the CPU: {shapes}")
    on_gpu = _ends_on_gpu(name, args, ours, leaves)
    if on_gpu and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{func}: expected a generator on {OnGpu.place}, found one on the CPU")
    result = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, dict(kwargs)))
    if name.endswith("_"):
        return args[0]
    if not on_gpu:
        return result
    shown = {id(tensor.held): tensor for tensor in ours}

    def show(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        return shown[id(leaf)] if id(leaf) in shown else OnGpu(leaf)

    return tree_map(show, result)


def _ends_on_gpu(name: str, args: Sequence[Any], ours: Sequence[OnGpu], leaves: Sequence[object]) -> bool:
    if name == "copy_":
        return isinstance(args[0], OnGpu)
    asked = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    return bool(ours) if asked is None else asked.type == "cuda"


def _on_cpu(leaf: object) -> object:
    if isinstance(leaf, torch.device) and leaf.type == "cuda":
        return torch.device("cpu")
    return leaf.held if isinstance(leaf, OnGpu) else leaf


def _for_cuda(leaf: object) -> object:
    return CUDA if leaf == "mps" or (isinstance(leaf, torch.device) and leaf.type == "mps") else leaf


@contextmanager
def pretended_gpu(place: torch.device = CUDA) -> Iterator[None]:
    """A machine with one GPU, for the time being."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnGpu, "place", place)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: place.type == "cuda")
        patch.setattr(torch.cuda, "device_count", lambda: int(place.type == "cuda"))
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        patch.setattr(torch.cuda, "synchronize", lambda *_: None)
        # PyTorch looks for the function that this one wraps.
        is_available = functools.wraps(torch.backends.mps.is_available)(lambda: place.type == "mps")
        patch.setattr(torch.backends.mps, "is_available", is_available)
        patch.setattr(torch.mps, "synchronize", lambda: None)
        patch.setattr(Tensor, "pin_memory", lambda self: self)
        # Views of tensors that are shown are not made in inference mode.
        patch.setattr(torch, "inference_mode", torch.no_grad)
        only_lifts = torch._C._only_lift_cpu_tensors()
        # `torch.tensor` makes what it is given on the CPU and moves it, instead of asking a driver for memory.
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with _Calls(), _Gpu():
                yield
        finally:
            torch._C._set_only_lift_cpu_tensors(only_lifts)
