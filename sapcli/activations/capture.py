"""Which rows each weight of a network multiplies, seen at the level of the operators that PyTorch dispatches.

Hooks on modules miss every weight that is used functionally (the projections inside attention, for one). A dispatch
mode sees the operators themselves: a convolution or a matrix product is recognised as a use of a weight because one
operand lies in the storage of a parameter. No architecture needs code of its own.

What is here is plumbing: it finds each use and hands it to a function; what an operand is as a weight is in `operands`,
what becomes of the rows in `moments`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701
from torch.utils._pytree import tree_leaves  # noqa: PLC2701

from sapcli.activations.operands import Operand, Use, convolution_use, product_use, transposed_convolution_use
from sapcli.activations.parameters import CopiedWeight, Origin, ParameterPlace, has_strides, storage_address
from sapcli.activations.rows import Geometry

aten = torch.ops.aten

# Operators that multiply a batch of rows by a matrix, with the positions of their two factors.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    aten.mm: (0, 1),
    aten.bmm: (0, 1),
    aten.mv: (0, 1),
    aten.addmm: (1, 2),
    aten.addmm_: (1, 2),
    aten._addmm_activation: (1, 2),
    aten.addmv: (1, 2),
    aten.addmv_: (1, 2),
    aten.baddbmm: (1, 2),
    aten.baddbmm_: (1, 2),
    aten.addbmm: (1, 2),
    aten.addbmm_: (1, 2),
}
_CONVOLUTIONS = {aten.convolution, aten._convolution}
# Operators whose result holds the same numbers in the same logical order as their first argument.
_COPIES = {aten.clone, aten._to_copy, aten._reshape_copy}
# Operators whose result is one argument times another one.
_SCALINGS = {aten.mul, aten.div}


@dataclass
class Usage:
    """What was seen of one weight during the forward passes, beside the products that are reported as uses."""

    consumers: set[str] = field(default_factory=set)
    """Operators that read the weight, or what was made of it, together with activations."""
    transformed_by: set[str] = field(default_factory=set)
    """Operators that turned the weight into another matrix which then multiplied activations."""
    rows_depend_on_images: bool = False
    """Whether a use had rows that depend on the images; a table of positions, for one, does not."""

    @property
    def is_projectable(self) -> bool:
        """Whether the uses that were reported, if any, are the weight's work.

        Spectral normalisation multiplies the weight by a constant vector only to find the scale of what it then makes
        of it: that product is not.
        """
        return self.rows_depend_on_images or not self.transformed_by

    def reason(self, overlapping: bool = False) -> str:
        """Why a weight that was seen like this is not projected, in words."""
        if overlapping:
            return "used in pieces that overlap"
        if self.transformed_by:
            return f"transformed before it multiplies activations ({_operators(self.transformed_by)})"
        if self.consumers:
            return f"in no matrix product or convolution with activations (read by {_operators(self.consumers)})"
        return "not used in eval mode"


def _operators(names: set[str]) -> str:
    return ", ".join(sorted(name.removeprefix("aten.") for name in names))


class Capture:
    """Watches a module's forward passes and reports every use of a weight of two or more dimensions.

    While it is entered, the module is in eval mode, and the fused kernels of attention and of recurrent layers, which
    hide their products, are off; leaving, by an exception too, restores all of that. Nothing is attached to the module.

    Args:
        module: The network.
        on_use: Called for each use, in the order of execution, right before the multiplication.
    """

    def __init__(self, module: nn.Module, on_use: Callable[[Use], None]) -> None:
        self._module = module
        self._watcher = _Watcher(module, on_use)
        self._restore = ExitStack()

    @property
    def usages(self) -> Mapping[str, Usage]:
        """What was seen of every weight of two or more dimensions."""
        return self._watcher.usages

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for module in self._module.modules():
                stack.callback(setattr, module, "training", module.training)
            if self._module.training:  # else its own code could merge weights a second time
                self._module.eval()
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            if any(isinstance(module, nn.RNNBase) for module in self._module.modules()):
                backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
                for backend in backends:
                    stack.callback(setattr, backend, "enabled", backend.enabled)
                    backend.enabled = False
            stack.enter_context(self._watcher)
            self._restore = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._restore.__exit__(*exception)

    def forward(self, images: Tensor) -> Tensor:
        """Run one batch `[n, ...]` through the module and return its output."""
        try:
            with torch.no_grad():
                output: Tensor = self._module(images)
        finally:
            self._watcher.forget_constants()
        return output


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The dispatch mode behind `Capture`."""

    def __init__(self, module: nn.Module, on_use: Callable[[Use], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_use = on_use
        self._parameters: dict[int, list[ParameterPlace]] = {}
        self.usages: dict[str, Usage] = {}
        for name, tensor in module.named_parameters():
            parameter = ParameterPlace.of(name, tensor.detach())
            at_storage = self._parameters.setdefault(storage_address(tensor), [])
            # Parameters that are one tensor under several names are one weight.
            if any(parameter.covers_the_same_as(other) for other in at_storage):
                continue
            at_storage.append(parameter)
            if tensor.dim() >= 2:
                self.usages[name] = Usage()
        self._buffers = {storage_address(buffer) for buffer in module.buffers()}
        self._constants: dict[int, tuple[Tensor, Origin]] = {}

    def forget_constants(self) -> None:
        """Let go of the tensors that a forward pass made of the parameters."""
        self._constants.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Under inference mode composite operators arrive whole; what is watched are their parts.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        captured = self._report_use(func, args)
        result = func(*args, **kwargs)
        self._follow(func, args, kwargs, result, captured)
        return result

    def _report_use(self, func: Any, args: tuple[Any, ...]) -> str | None:
        """Report the use of a weight that `func` is, if it is one, and return the weight's name."""
        operator = func.overloadpacket
        if operator in _CONVOLUTIONS:
            rows, weight, _bias, stride, padding, dilation, transposed, _output_padding, groups = args[:9]
            operand = self._find(weight)
            if operand is None:
                return None
            images = _at_least_float32(rows)
            if transposed:
                use = transposed_convolution_use(operand, images, groups)
            else:
                geometry = Geometry.of(stride, padding, dilation, weight.dim() - 2)
                use = convolution_use(operand, images, geometry, groups)
        elif operator in _PRODUCTS:
            left, right = (args[position] for position in _PRODUCTS[operator])
            if right.dim() == 1:
                right = right.unsqueeze(1)
            from_left, operand = self._find(left), self._find(right)
            if from_left is not None and operand is not None:
                # Which of the two is the weight and which the rows cannot be told.
                return None
            if operand is not None:
                rows, use = left, product_use(operand, _at_least_float32(left))
            elif from_left is not None:
                operand, rows, use = from_left, right, product_use(from_left.transposed(), _at_least_float32(right.mT))
            else:
                return None
        else:
            return None
        usage = self.usages[operand.name]
        if use is None:
            if operand.factors is None:
                usage.transformed_by.add("an irregular selection of its elements")
            return None
        usage.rows_depend_on_images |= self._origin(rows) is None
        self._on_use(use)
        return use.weight

    def _find(self, tensor: Tensor) -> Operand | None:
        """The weight that `tensor` is a view, or a plain or scaled copy of."""
        if not has_strides(tensor) or not tensor.numel() or tensor.is_complex():
            return None
        size, stride, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
        parameter = self._parameter_at(tensor)
        if parameter is not None:
            if parameter.name not in self.usages:
                return None
            return Operand(parameter.name, size, stride, offset - parameter.start, parameter.index)
        copied = (
            self._constants[storage_address(tensor)][1].copied if storage_address(tensor) in self._constants else None
        )
        if copied is None:
            return None
        return Operand(copied.name, size, stride, offset, copied.index, copied.factors, copied.gain)

    def _parameter_at(self, tensor: Tensor) -> ParameterPlace | None:
        """The parameter in whose memory `tensor` begins."""
        if not has_strides(tensor):
            return None
        offset = int(tensor.storage_offset())
        for parameter in self._parameters.get(storage_address(tensor), ()):
            if parameter.start <= offset < parameter.start + parameter.extent:
                return parameter
        return None

    def _origin(self, tensor: Tensor) -> Origin | None:
        """Where `tensor` comes from, or `None` if it depends on the images."""
        storage = storage_address(tensor)
        if storage in self._constants:
            return self._constants[storage][1]
        parameter = self._parameter_at(tensor)
        if parameter is not None:
            return Origin({parameter.name: ""}, frozenset({parameter.name}))
        return Origin({}) if storage in self._buffers else None

    def _follow(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any, captured: str | None
    ) -> None:
        """Keep book of what becomes of the parameters before they meet an activation."""
        inputs = _tensors((args, kwargs))
        written = _tensors(_written_arguments(func, args, kwargs))
        origins = [self._origin(tensor) for tensor in inputs]
        constants = [origin for origin in origins if origin is not None]
        if len(constants) < len(origins):
            self._note_meeting(func, constants, captured)
            for tensor in written:
                self._constants.pop(storage_address(tensor), None)
            return
        parameters: dict[str, str] = {}
        for origin in constants:
            for name, operator in origin.parameters.items():
                # The product with the captured weight is accounted for: what comes of it is not made of the weight.
                if name != captured:
                    parameters.setdefault(name, operator or str(func.overloadpacket))
        ingredients = frozenset[str]().union(*(origin.ingredients for origin in constants))
        known = {storage_address(tensor) for tensor in inputs} - {storage_address(tensor) for tensor in written}
        for output in _tensors((result, written)):
            if storage_address(output) in known:
                continue
            copied = self._copied(func.overloadpacket, args, output)
            if copied is not None and copied.factors is None:
                parameters = dict.fromkeys(parameters, "")
            origin = Origin(parameters, ingredients, copied)
            # The tensor is kept as long as the entry, since the address of freed memory is given out again.
            self._constants[storage_address(output)] = (output, origin)

    def _note_meeting(self, func: Any, constants: list[Origin], captured: str | None) -> None:
        """Note that what comes from these origins meets activations in `func`."""
        multiplies = func.overloadpacket in _PRODUCTS or func.overloadpacket in _CONVOLUTIONS
        for origin in constants:
            for name, operator in origin.parameters.items():
                if name == captured or name not in self.usages:
                    continue
                if multiplies and operator:
                    self.usages[name].transformed_by.add(operator)
                else:
                    self.usages[name].consumers.add(operator or str(func.overloadpacket))

    def _copied(self, operator: Any, args: tuple[Any, ...], copy: Tensor) -> CopiedWeight | None:
        """What `copy`, the result of `operator`, is a plain or scaled copy of."""
        found = self._factored(operator, args)
        operand = None if found is None else self._find(found[0])
        if found is None or operand is None or not has_strides(copy) or operand.size != tuple(copy.shape):
            return None
        if copy.numel() * copy.element_size() != copy.untyped_storage().nbytes():
            return None

        def laid_out(values: Tensor) -> Tensor:
            storage = torch.empty(copy.numel(), dtype=values.dtype)
            storage.as_strided(copy.shape, copy.stride()).copy_(values)
            return storage

        _, factor, gain = found
        factors = operand.scale()
        if factor is not None:
            factors = factor.cpu().expand(operand.size) * (1 if factors is None else factors)
        return CopiedWeight(
            operand.name,
            laid_out(operand.positions()),
            None if factors is None else laid_out(factors),
            gain or operand.gain,
        )

    def _factored(self, operator: Any, args: tuple[Any, ...]) -> tuple[Tensor, Tensor | None, str | None] | None:
        """The weight that `operator` copies, what it multiplies it by, and the parameter that gives it its size."""
        if operator in _COPIES:
            return args[0], None, None
        if operator is aten._weight_norm_interface:
            weight, gain, *dimension = args
            parameter = self._parameter_at(gain)
            if parameter is None or parameter.shape != tuple(gain.shape):
                return None
            return weight, gain / torch.norm_except_dim(weight, 2, *dimension), parameter.name
        if operator not in _SCALINGS or len(args) != 2:
            return None
        weight, factor = (arg if isinstance(arg, Tensor) else torch.tensor(arg) for arg in args)
        if operator is aten.mul and self._find(weight) is None:
            weight, factor = factor, weight
        operand = self._find(weight)
        # A factor that changes with the weight is no mere factor: normalisations divide by the weight's own size.
        if operand is None or operand.name in self._ingredients(factor):
            return None
        return weight, (factor if operator is aten.mul else 1 / factor), None

    def _ingredients(self, constant: Tensor) -> frozenset[str]:
        """The parameters that the numbers of a tensor depend on, which does not depend on the images."""
        origin = self._origin(constant)
        return frozenset() if origin is None else origin.ingredients


def _at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in a precision that sums of its products fit into."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _written_arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that the operator changes in place."""
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments]
    if not any(written):
        return []
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return [given[name] for name, changes in zip(names, written, strict=True) if changes and name in given]
