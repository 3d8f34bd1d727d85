"""Which rows each weight of a network multiplies, seen at the level of the operators that PyTorch dispatches.

Hooks on modules miss every weight that is used functionally (the projections inside attention, for one). A dispatch
mode sees the operators themselves: a convolution or a matrix product is recognised as a use of a weight because one
operand lies in the storage of a parameter. No architecture needs code of its own.

What is here is plumbing: it turns each use into rows and hands them to a function; what becomes of them is in
`moments`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sapcli.rows import Geometry, WeightView, convolution_rows

aten = torch.ops.aten

# Operators that multiply a batch of rows by a matrix, with the positions of their two factors.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    aten._addmm_activation.default: (1, 2),
    aten.mv.default: (0, 1),
    aten.addmv.default: (1, 2),
}
_CONVOLUTIONS = {aten.convolution.default, aten._convolution.default}
# Operators whose result holds the same numbers in the same logical order as their first argument.
_COPIES = {aten.clone.default, aten._to_copy.default, aten._reshape_copy.default}


@dataclass(frozen=True)
class Use:
    """One multiplication of rows by a weight."""

    weight: str
    view: WeightView
    rows: Callable[[], Iterator[Tensor]]
    """The rows, as a sequence of chunks `[groups, n, d]`, made when asked for and only once."""


@dataclass(frozen=True)
class _Origin:
    """Where a tensor that does not depend on the images comes from.

    `index` is the position inside the parameter of every element of the tensor's storage, and is there only for a plain
    copy of one parameter; `parameters` are all those that had a part in it.
    """

    parameters: frozenset[str]
    operator: str = ""
    index: Tensor | None = None


@dataclass
class Sighting:
    """What was seen of one weight during a forward pass."""

    consumers: set[str] = field(default_factory=set)
    """Operators, other than the products that are captured, that read the weight or what was made of it."""
    transformed_by: set[str] = field(default_factory=set)
    """Operators that turned the weight into another matrix which then met activations."""


class Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches a module's forward passes and reports every use of a weight of two or more dimensions.

    While it is entered, the module is in eval mode and attention's fused path, which hides its products, is off;
    leaving, by an exception too, restores both. Nothing is attached to the module.

    Args:
        module: The network; its parameters must be contiguous.
        on_use: Called for each use, in the order of execution, right before the multiplication.
    """

    def __init__(self, module: nn.Module, on_use: Callable[[Use], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._module = module
        self._on_use = on_use
        self._training: dict[nn.Module, bool] = {}
        self._fastpath = True
        self._parameters: dict[int, list[tuple[str, Tensor]]] = {}
        for name, parameter in module.named_parameters():
            self._parameters.setdefault(_storage(parameter), []).append((name, parameter.detach()))
        self._buffers = {_storage(buffer) for buffer in module.buffers()}
        self._constants: dict[int, tuple[Tensor, _Origin]] = {}
        self.sightings: dict[str, Sighting] = {
            name: Sighting() for name, parameter in module.named_parameters() if parameter.dim() >= 2
        }

    def __enter__(self) -> Self:
        self._training = {module: module.training for module in self._module.modules()}
        self._fastpath = torch.backends.mha.get_fastpath_enabled()
        self._module.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        torch.backends.mha.set_fastpath_enabled(self._fastpath)
        for module, training in self._training.items():
            module.training = training
        self._constants.clear()

    def forward(self, images: Tensor) -> Tensor:
        """Run one batch `[n, ...]` through the module and return its output."""
        try:
            with torch.no_grad():
                output: Tensor = self._module(images)
        finally:
            self._constants.clear()
        return output

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Under inference mode composite operators arrive whole; what is watched are their parts.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        captured = self._capture(func, args)
        result = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._follow(func, inputs, result, captured)
        return result

    def _capture(self, func: Any, args: tuple[Any, ...]) -> str | None:
        """Report the use of a weight that `func` is, if it is one, and return the weight's name."""
        if func in _CONVOLUTIONS:
            images, weight, _bias, stride, padding, dilation, transposed, _output_padding, groups = args[:9]
            operand = self._find(weight)
            if operand is None:
                return None
            geometry = Geometry.of(stride, padding, dilation, weight.dim() - 2)
            if images.dim() < weight.dim():
                images = images.unsqueeze(0)
            use = (
                _transposed_convolution_use(operand, images, groups)
                if transposed
                else _convolution_use(operand, images, geometry, groups)
            )
        elif func in _PRODUCTS:
            left, right = (args[position] for position in _PRODUCTS[func])
            if right.dim() == 1:
                right = right.unsqueeze(1)
            operand_left, operand_right = self._find(left), self._find(right)
            if operand_left is not None and operand_right is not None:
                for name in (operand_left.name, operand_right.name):
                    self.sightings[name].transformed_by.add("a product with another parameter")
                return None
            if operand_right is not None:
                operand, use = operand_right, _product_use(operand_right, left)
            elif operand_left is not None:
                operand, use = operand_left, _product_use(operand_left.transposed(), right.mT)
            else:
                return None
        else:
            return None
        if use is None:
            self.sightings[operand.name].transformed_by.add("an irregular selection of its elements")
            return None
        self._on_use(use)
        return use.weight

    def _find(self, tensor: Tensor) -> _Operand | None:
        """The parameter of two or more dimensions that `tensor` is a view or plain copy of."""
        storage, offset = _storage(tensor), int(tensor.storage_offset())
        for name, parameter in self._parameters.get(storage, ()):
            start = int(parameter.storage_offset())
            if name in self.sightings and start <= offset < start + parameter.numel():
                return _Operand(name, tuple(tensor.shape), tensor.stride(), offset - start)
        if storage in self._constants:
            origin = self._constants[storage][1]
            if origin.index is not None:
                (name,) = origin.parameters
                return _Operand(name, tuple(tensor.shape), tensor.stride(), offset, origin.index)
        return None

    def _follow(self, func: Any, inputs: list[Tensor], result: Any, captured: str | None) -> None:
        """Keep book of what becomes of the parameters before they meet an activation."""
        origins = [self._origin(tensor) for tensor in inputs]
        operator = str(func.overloadpacket)
        if any(origin is None for origin in origins):
            multiplies = func in _PRODUCTS or func in _CONVOLUTIONS
            for origin in origins:
                if origin is None:
                    continue
                for name in (origin.parameters - {captured}) & self.sightings.keys():
                    sighting = self.sightings[name]
                    if multiplies and origin.operator:
                        sighting.transformed_by.add(origin.operator)
                    else:
                        sighting.consumers.add(origin.operator or operator)
            return
        known = {_storage(tensor) for tensor in inputs}
        parameters = frozenset[str]().union(*(origin.parameters for origin in origins if origin is not None))
        first_operator = next(
            (origin.operator for origin in origins if origin is not None and origin.operator), operator
        )
        for output in tree_leaves(result):
            if not isinstance(output, Tensor) or _storage(output) in known:
                continue
            index = self._copied_index(inputs[0], output) if func in _COPIES else None
            # The tensor is kept as long as the entry, since the address of freed memory is given out again.
            self._constants[_storage(output)] = (
                output,
                _Origin(parameters, "" if index is not None else first_operator, index),
            )

    def _origin(self, tensor: Tensor) -> _Origin | None:
        """Where `tensor` comes from, or `None` if it depends on the images."""
        storage = _storage(tensor)
        if storage in self._constants:
            return self._constants[storage][1]
        for name, parameter in self._parameters.get(storage, ()):
            start = parameter.storage_offset()
            if start <= tensor.storage_offset() < start + max(parameter.numel(), 1):
                return _Origin(frozenset({name}))
        return _Origin(frozenset()) if storage in self._buffers else None

    def _copied_index(self, source: Tensor, copy: Tensor) -> Tensor | None:
        """The positions inside a parameter of every element of `copy`'s storage, where `source` is a view of one."""
        operand = self._find(source)
        if operand is None or copy.numel() * copy.element_size() != copy.untyped_storage().nbytes():
            return None
        index = torch.empty(copy.numel(), dtype=torch.int64)
        index.as_strided(copy.shape, copy.stride()).copy_(operand.positions())
        return index


@dataclass(frozen=True)
class _Operand:
    """A factor of a product that is a view of a parameter, or of a plain copy of one."""

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    index: Tensor | None = None
    """For a copy: the position inside the parameter of every element of its storage."""

    def positions(self) -> Tensor:
        """The position inside the parameter of every element, int64 of shape `size`."""
        positions = WeightView(self.size, self.stride, self.offset).elements()
        return positions if self.index is None else self.index[positions]

    def transposed(self) -> _Operand:
        """The operand with its last two dimensions exchanged."""
        (*size, rows, columns), (*stride, down, across) = self.size, self.stride
        return replace(self, size=(*size, columns, rows), stride=(*stride, across, down))

    def view(self, size: tuple[int, ...], stride: tuple[int, ...]) -> WeightView | None:
        """The window of the parameter that the operand, seen with this `size` and `stride`, is.

        `None` where a copy's elements do not lie in the parameter at regular distances, or where a row holds an element
        twice.
        """
        view = WeightView(size, stride, self.offset)
        if self.index is not None:
            positions = self.index[view.elements()]
            first = int(positions.flatten()[0])
            steps = tuple(
                int(positions.select(dimension, 1).flatten()[0]) - first if length > 1 else 0
                for dimension, length in enumerate(size)
            )
            view = WeightView(size, steps, first)
            if not torch.equal(view.elements(), positions):
                return None
        repeated = any(n > 1 and step == 0 for n, step in zip(view.size[2:], view.stride[2:], strict=True))
        return None if repeated else view.without_repetition()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _use(name: str, view: WeightView | None, groups: int, rows: Callable[[], Iterator[Tensor]]) -> Use | None:
    """The use, with the rows of all groups together where one matrix serves them all."""
    if view is None:
        return None
    if view.groups == groups:
        return Use(name, view, rows)
    return Use(name, view, lambda: (chunk.reshape(1, -1, chunk.shape[-1]) for chunk in rows()))


def _product_use(operand: _Operand, rows: Tensor) -> Use | None:
    """The use of a weight, `[k, m]` or `[b, k, m]`, that multiplies `rows`, `[n, k]` or `[b, n, k]`, from the right."""
    (*batch, row_length, outputs), (*batch_stride, down, across) = operand.size, operand.stride
    groups, group_stride = (batch[0], batch_stride[0]) if batch else (1, 0)
    view = operand.view((groups, outputs, row_length), (group_stride, across, down))
    return _use(operand.name, view, groups, lambda: iter((rows.reshape(groups, -1, row_length),)))


def _convolution_use(operand: _Operand, images: Tensor, geometry: Geometry, groups: int) -> Use | None:
    """The use of a convolution's weight, `[out, in / groups, *kernel]`: its rows are the patches under its kernel."""
    outputs = operand.size[0] // groups
    view = operand.view((groups, outputs, *operand.size[1:]), (outputs * operand.stride[0], *operand.stride))
    return _use(operand.name, view, groups, lambda: convolution_rows(images, operand.size[2:], geometry, groups))


def _transposed_convolution_use(operand: _Operand, images: Tensor, groups: int) -> Use | None:
    """The use of a transposed convolution's weight, `[in, out / groups, *kernel]`.

    Every input pixel's channels, `in / groups` long, are multiplied by the weight, and what overlaps is then added up:
    the rows are the pixels, and the kernel's positions belong to the outputs.
    """
    inputs = operand.size[0] // groups
    outputs, outputs_stride = _merged(operand.size[1:], operand.stride[1:])
    if outputs_stride is None:
        return None
    view = operand.view((groups, outputs, inputs), (inputs * operand.stride[0], outputs_stride, operand.stride[0]))
    axes = images.dim() - 2
    pixels = Geometry((1,) * axes, (0,) * axes, (1,) * axes)
    return _use(operand.name, view, groups, lambda: convolution_rows(images, (1,) * axes, pixels, groups))


def _merged(size: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int | None]:
    """Dimensions as one: its length and stride, `None` where no single stride walks through them."""
    length, step = 1, None
    for extent, distance in zip(reversed(size), reversed(stride), strict=True):
        if extent > 1 and step is not None and distance != length * step:
            return torch.Size(size).numel(), None
        step = distance if step is None and extent > 1 else step
        length *= extent
    return length, 1 if step is None else step
