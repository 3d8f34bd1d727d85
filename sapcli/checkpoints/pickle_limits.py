"""How much a pickle may ask for, found out by reading it without making anything of it.

PyTorch's unpickler runs no code of the file, but it does what the file says: a pickle of a hundred bytes can ask for a
`bytearray` of any size, for copies of copies, or for the hash of a tuple that holds itself a billion times. Here its
instructions are followed with stand-ins in the place of objects, and what each would cost is added up. What PyTorch
refuses anyway (unknown functions, unknown instructions, a pickle that ends early) is left to its own words.
"""

from __future__ import annotations

import pickle
import struct
from pickle import UnpicklingError
from typing import TYPE_CHECKING, NoReturn

from sapcli.checkpoints.harmless_types import ARRAYS, CALLED
from sapcli.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

# The pickle of 70,000 tensors with long names; networks have less than 5,000, and an optimizer three times as many.
MAX_PICKLE = 16 << 20
MAX_OBJECTS = 256 << 20
"""Bytes of Python's objects. A tensor of a state dict counts about 3,500 here, with its storage, sizes and name."""

_MAX_DEPTH = 100
_FEW = 64
# More than anything can be; counting on would make numbers of millions of digits.
_ENDLESS = 1 << 60
# Of the names that a storage has: a number in the archive, and a device.
_LONG_NAME = 1000
_HINT = "Where you trust the file, load it and save its state dict alone, best with safetensors' save_file."

# What an instruction leaves in memory: sizes of CPython 3.11's objects, a slot on the stack included.
_COSTS = {
    pickle.NONE: 8,
    pickle.NEWTRUE: 8,
    pickle.NEWFALSE: 8,
    pickle.EMPTY_TUPLE: 8,
    pickle.BININT: 40,
    pickle.BININT1: 16,
    pickle.BININT2: 40,
    pickle.BINFLOAT: 32,
    pickle.BINGET: 8,
    pickle.LONG_BINGET: 8,
    pickle.BINPUT: 100,
    pickle.LONG_BINPUT: 100,
    pickle.EMPTY_DICT: 72,
    pickle.EMPTY_LIST: 64,
    pickle.EMPTY_SET: 224,
    pickle.MARK: 64,
    pickle.TUPLE1: 56,
    pickle.TUPLE2: 64,
    pickle.TUPLE3: 72,
    pickle.SETITEM: 110,
}
_PER_ENTRY = 110
_PER_ITEM = 16
_PER_STORAGE = 600
_PER_TENSOR = 800
_PER_OBJECT = 300

_REBUILD_TENSOR = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"})
_KEEP_ELEMENTS = frozenset({"_rebuild_parameter", "_rebuild_parameter_with_state"})
# These look at, or copy, the elements of the tensors that they are given, which may be views of any size.
_TOUCH_ELEMENTS = frozenset({"_rebuild_device_tensor_from_cpu_tensor", "_rebuild_sparse_tensor"})
_OTHER_TENSORS = frozenset({"_rebuild_qtensor", "_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass"})
_TENSOR_FUNCTIONS = frozenset(
    f"torch._utils.{name}" for name in _REBUILD_TENSOR | _KEEP_ELEMENTS | _TOUCH_ELEMENTS | _OTHER_TENSORS
) | {"torch.nn.parameter.Parameter"}
_CONTAINERS = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "builtins.set",
        "builtins.complex",
        "torch.Size",
        "torch.device",
        "torch.serialization._get_layout",
        "argparse.Namespace",
    }
)
_TEXT_TO_BYTES = frozenset({"_codecs.encode", "builtins.bytearray"})
_PLAIN_ENCODINGS = frozenset({"latin1", "latin-1"})
_WITH_TYPE = "torch._tensor._rebuild_from_type_v2"


class _Global:
    """A function or class that the pickle names."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Tuple:
    """A tuple: its leaves when it is written out, its depth, what its tensors claim; its items where they are few."""

    __slots__ = ("depth", "elements", "items", "weight")

    def __init__(self, items: Sequence[object]) -> None:
        self.weight: int = min(1 + sum(map(_weight, items)), _ENDLESS)
        self.depth: int = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
        self.elements: int = min(sum(item.elements for item in items if isinstance(item, (_Tuple, _Tensor))), _ENDLESS)
        self.items = tuple(items) if len(items) <= _FEW else ()


class _Container:
    """A list, dictionary, set or byte string of `weight` items."""

    __slots__ = ("weight",)

    def __init__(self, weight: int = 1) -> None:
        self.weight = weight


class _Bytes(_Container):
    """A byte string."""

    __slots__ = ()


class _Tensor:
    """A tensor that claims `elements`."""

    __slots__ = ("elements",)

    def __init__(self, elements: int) -> None:
        self.elements = elements


def _weight(item: object) -> int:
    """How many objects a copy of an item, or its hash, has to look at."""
    if isinstance(item, (_Tuple, _Container)):
        return item.weight
    return 1 + len(item) if isinstance(item, str) else 1


def _cost_of_state(state: object) -> int:
    """What filling an object with a state takes; bytes, as of an array, are copied once."""
    items = state.items if isinstance(state, _Tuple) and state.items else (state,)
    return sum(item.weight if isinstance(item, _Bytes) else _PER_ENTRY * _weight(item) for item in items)


_STORAGE, _OTHER = object(), object()
_EMPTY = _Tuple(())


class PickleLimits:
    """What the pickles of one file may ask for together.

    Args:
        file_size: The bytes of the file, which hold all that its tensors can.
        source: What messages call the file.
        storages: The keys of the storages that an archive has; None where they follow the pickle.
    """

    def __init__(self, file_size: int, source: str, storages: Collection[str] | None = None) -> None:
        self._file_size = file_size
        self._source = source
        self._records = storages
        self._spent = 0
        self._touched = 0
        self._storages: set[str] = set()
        self._claimed = 0
        self._stack: list[object] = []
        self._marks: list[list[object]] = []
        self._memo: dict[int, object] = {}

    def check(self, data: bytes, start: int = 0) -> int | None:
        """Follow one pickle.

        Args:
            data: Bytes that the pickle is in.
            start: Where it begins.

        Returns:
            Where it ends; None where PyTorch will find it damaged.

        Raises:
            CheckpointError: It asks for more than the limits.
            UnpicklingError: It calls what no state dict needs.
        """
        self._stack, self._marks, self._memo = [], [], {}
        try:
            return self._follow(data, start)
        except (IndexError, KeyError, ValueError, AttributeError, struct.error):
            return None
        finally:
            self._stack, self._marks, self._memo = [], [], {}

    def _follow(self, data: bytes, position: int) -> int | None:
        push = self._push
        while position < len(data):
            code = data[position : position + 1]
            position += 1
            self._spend(_COSTS.get(code, 8))
            match code:
                case pickle.BINPUT:
                    self._memo[data[position]] = self._stack[-1]
                    position += 1
                case pickle.BINGET:
                    push(self._memo[data[position]])
                    position += 1
                case pickle.LONG_BINPUT:
                    self._memo[_number(data, position, 4)] = self._stack[-1]
                    position += 4
                case pickle.LONG_BINGET:
                    push(self._memo[_number(data, position, 4)])
                    position += 4
                case pickle.BININT1:
                    push(data[position])
                    position += 1
                case pickle.BININT2:
                    push(_number(data, position, 2))
                    position += 2
                case pickle.BININT:
                    push(_number(data, position, 4, signed=True))
                    position += 4
                case pickle.LONG1:
                    length = data[position]
                    self._spend(32 + length)
                    push(_number(data, position + 1, length, signed=True))
                    position += 1 + length
                case pickle.BINFLOAT:
                    push(_OTHER)
                    position += 8
                case pickle.NONE | pickle.NEWTRUE | pickle.NEWFALSE:
                    push(None)
                case pickle.BINUNICODE:
                    length = _number(data, position, 4)
                    text = _part(data, position + 4, length)
                    self._spend(60 + length * (1 if text.isascii() else 4))
                    push(text.decode(errors="surrogatepass"))
                    position += 4 + length
                case pickle.SHORT_BINSTRING:
                    length = data[position]
                    self._spend(60 + length)
                    push(_part(data, position + 1, length).decode())
                    position += 1 + length
                case pickle.GLOBAL:
                    middle = data.index(b"\n", position)
                    end = data.index(b"\n", middle + 1)
                    module, name = data[position:middle].decode(), data[middle + 1 : end].decode()
                    push(_Global(f"{'builtins' if module == '__builtin__' else module}.{name}"))
                    position = end + 1
                case pickle.EMPTY_DICT | pickle.EMPTY_LIST | pickle.EMPTY_SET:
                    push(_Container())
                case pickle.EMPTY_TUPLE:
                    push(_EMPTY)
                case pickle.MARK:
                    self._marks.append(self._stack)
                    self._stack = []
                case pickle.TUPLE:
                    self._push_tuple(self._to_mark())
                case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                    count = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}[code]
                    items = self._stack[-count:]
                    del self._stack[-count:]
                    self._push_tuple(items)
                case pickle.APPEND:
                    self._extend([self._stack.pop()], _PER_ITEM)
                case pickle.APPENDS:
                    self._extend(self._to_mark(), _PER_ITEM)
                case pickle.SETITEM:
                    value, key = self._stack.pop(), self._stack.pop()
                    self._set_items([key, value])
                case pickle.SETITEMS:
                    self._set_items(self._to_mark())
                case pickle.REDUCE | pickle.NEWOBJ:
                    arguments, function = self._stack.pop(), self._stack.pop()
                    push(self._call(function, arguments))
                case pickle.BUILD:
                    state, target = self._stack.pop(), self._stack[-1]
                    if isinstance(target, _Tensor) or target is _STORAGE:
                        raise UnpicklingError("it sets the storage of a tensor")
                    self._spend(_cost_of_state(state))
                case pickle.BINPERSID:
                    push(self._storage(self._stack.pop()))
                case pickle.PROTO:
                    position += 1
                case pickle.STOP:
                    return position
                case _:
                    return None
        return None

    def _push(self, item: object) -> None:
        self._stack.append(item)

    def _push_tuple(self, items: list[object]) -> None:
        made = _Tuple(items)
        self._spend(_PER_ITEM * len(items))
        if made.depth > _MAX_DEPTH:
            self._fail(f"nests values more than {_MAX_DEPTH} deep")
        self._stack.append(made)

    def _to_mark(self) -> list[object]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _extend(self, items: list[object], cost: int) -> None:
        self._spend(cost * len(items))
        target = self._stack[-1]
        if isinstance(target, _Container):
            target.weight = min(target.weight + sum(map(_weight, items)), _ENDLESS)

    def _set_items(self, items: list[object]) -> None:
        # Python finds the hash of a tuple anew each time, from all its leaves.
        self._spend(sum(_PER_ITEM * key.weight for key in items[::2] if isinstance(key, _Tuple)))
        self._extend(items[::2], _PER_ENTRY)

    def _storage(self, identity: object) -> object:
        if not isinstance(identity, _Tuple) or not 5 <= len(identity.items) <= 6:
            raise UnpicklingError("it names a storage in another way than PyTorch does")
        items = identity.items
        _, kind, key, _, count = items[:5]
        if (
            not (isinstance(kind, _Global) and isinstance(key, str) and isinstance(count, int))
            or identity.weight > _LONG_NAME
        ):
            raise UnpicklingError("it names a storage in another way than PyTorch does")
        if self._records is not None and key not in self._records:
            raise EOFError(f"the archive has no record of storage {key!r}")
        if key not in self._storages:
            self._spend(_PER_STORAGE)
            self._storages.add(key)
            self._claimed += max(count, 0) * _element_size(kind.name)
            if self._records is None and self._claimed > self._file_size:
                self._fail(f"claims storages of more bytes than the {self._file_size} that it has")
        return _STORAGE

    def _call(self, function: object, arguments: object) -> object:
        if not isinstance(function, _Global) or not isinstance(arguments, _Tuple):
            raise UnpicklingError("it calls what is no function")
        name, items = function.name, arguments.items
        if name == _WITH_TYPE:
            if len(items) < 3:
                raise UnpicklingError("it calls a function in another way than PyTorch does")
            self._spend(_PER_OBJECT + _PER_ENTRY * arguments.weight)
            return self._call(items[0], items[2])
        if name in _TENSOR_FUNCTIONS:
            self._spend(_PER_TENSOR + _PER_ITEM * arguments.weight)
            return self._tensor(name.rpartition(".")[2], arguments)
        if name in ARRAYS and len(items) == 3:
            # The array is made here and filled later; a size at this place would be memory that nothing fills.
            if not isinstance(items[1], _Tuple) or items[1].items != (0,):
                raise UnpicklingError("it makes an array in another way than NumPy does")
            self._spend(_PER_OBJECT)
            return _OTHER
        if name in _CONTAINERS or name in CALLED:
            self._spend(_PER_OBJECT + _PER_ENTRY * (arguments.weight - 1))
            return _Container(arguments.weight)
        if name in _TEXT_TO_BYTES:
            if name == "builtins.bytearray" and (not items or (len(items) == 1 and isinstance(items[0], _Bytes))):
                self._spend(_PER_OBJECT + arguments.weight)
                return _Container(arguments.weight)
            if len(items) == 2 and isinstance(items[0], str) and items[1] in _PLAIN_ENCODINGS:
                self._spend(_PER_OBJECT + len(items[0]))
                return _Bytes(1 + len(items[0]))
        raise UnpicklingError(f"Unsupported global: GLOBAL {name} was not an allowed global by default")

    def _tensor(self, name: str, arguments: _Tuple) -> _Tensor:
        elements = arguments.elements
        if name in _REBUILD_TENSOR and len(arguments.items) > 2:
            elements = 1
            for extent in getattr(arguments.items[2], "items", ()):
                elements = min(elements * (max(extent, 0) if isinstance(extent, int) else 1), _ENDLESS)
        if name in _TOUCH_ELEMENTS:
            self._touched += elements
            if self._touched > self._file_size:
                self._fail(f"claims {elements} elements, more than a file of {self._file_size} bytes can hold")
        return _Tensor(elements)

    def _spend(self, cost: int) -> None:
        self._spent += cost
        if self._spent > MAX_OBJECTS:
            self._fail(f"would fill more than {MAX_OBJECTS >> 20} MiB of memory before its first tensor is read")

    def _fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self._source} {what}", _HINT)


def _element_size(storage: str) -> int:
    """The bytes of an element of a storage class, at least."""
    kind = storage.rpartition(".")[2].removesuffix("Storage")
    return {"Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Float": 4, "Int": 4}.get(kind, 1)


def _number(data: bytes, start: int, length: int, *, signed: bool = False) -> int:
    return int.from_bytes(_part(data, start, length), "little", signed=signed)


def _part(data: bytes, start: int, length: int) -> bytes:
    part = data[start : start + length]
    if len(part) < length:
        raise ValueError("the pickle ends early")
    return part
