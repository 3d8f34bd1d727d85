"""Types of plain data that may stand beside the weights in a PyTorch file, allowed by name and by nothing else.

PyTorch's loader refuses every name that it does not know. Those here hold values and run nothing when they are made:
arrays and numbers of NumPy, paths, collections, dates. Two of them PyTorch's loader cannot fill (a `deque`, a
`defaultdict`): it is given a list and a dictionary in their place, which become what they were where they are written.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import pathlib
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

# NumPy 1 and 2 call the module of these two functions differently, and both write files.
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
# Python 3.13 has moved the classes of paths.
_PATHLIB = ("pathlib", "pathlib._local")
_PATHS: dict[str, Callable[..., object]] = {
    "Path": pathlib.PurePath,
    "PosixPath": pathlib.PurePosixPath,
    "WindowsPath": pathlib.PureWindowsPath,
    "PurePath": pathlib.PurePath,
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
}
_DATES = (datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone)
_FACTORIES: tuple[type, ...] = (bool, dict, float, int, list, str, tuple)
# Dictionaries whose keys are attributes too, as Lightning hands out hyperparameters; plain dictionaries do as well.
_ATTRIBUTE_DICTS = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
)

# A list of fastai's, in the state of its optimizers.
_FASTAI_LIST = "fastcore.foundation.L"

# Pickles of protocol 2 call the module as Python 2 did.
_FROZEN_SETS = ("builtins.frozenset", "__builtin__.frozenset")
# What `torch.__version__` is, a text.
_VERSION = "torch.torch_version.TorchVersion"

ARRAYS = frozenset(f"{module}._reconstruct" for module in _MULTIARRAY)
"""The function that makes an empty array, which is filled afterwards."""
CALLED = frozenset(
    {
        *(f"{module}.scalar" for module in _MULTIARRAY),
        "numpy.dtype",
        *(f"{module}.{name}" for module in _PATHLIB for name in _PATHS),
        *(f"datetime.{kind.__name__}" for kind in _DATES),
        "collections.deque",
        "collections.defaultdict",
        "types.SimpleNamespace",
        *_FROZEN_SETS,
        _VERSION,
        *_ATTRIBUTE_DICTS,
        _FASTAI_LIST,
    }
)
"""What may be called, besides PyTorch's own; each makes an object of the size of its arguments."""


class _Unnamed(types.SimpleNamespace):
    """What an object of a type holds that is read for the sake of the rest, and cannot be written again."""


@dataclass
class Substitutes:
    """What stands in the place of the containers of a file that PyTorch's loader cannot fill.

    Attributes:
        made: Each substitute, by its identity, and how the original is made of it.
    """

    made: dict[int, tuple[object, Callable[[Any], object]]] = field(default_factory=dict)

    def deque(self, items: Iterable[object] = (), maxlen: int | None = None) -> list[object]:
        """A list for a deque."""
        found = list(items)
        self.made[id(found)] = found, lambda values: deque(values, maxlen)
        return found

    def defaultdict(self, factory: Callable[[], object] | None = None) -> dict[object, object]:
        """A dictionary for one with a default."""
        found: dict[object, object] = {}
        self.made[id(found)] = found, lambda values: defaultdict(factory, values)
        return found

    def restored(self, content: object) -> object:
        """The content of a file with the originals in the place of the substitutes; other containers stay the same.

        Raises:
            TypeError: It holds an object whose type cannot be written.
        """
        return self._restored(content, {})

    def _restored(self, value: object, done: dict[int, object]) -> object:
        if id(value) in done:
            return done[id(value)]
        done[id(value)] = value  # what holds itself
        if isinstance(value, _Unnamed):
            raise TypeError("it holds an object of a type that is not known here")
        if isinstance(value, dict):
            for key, item in list(value.items()):
                value[key] = self._restored(item, done)
        elif isinstance(value, list):
            value[:] = [self._restored(item, done) for item in value]
        elif type(value) is tuple:
            done[id(value)] = tuple(self._restored(item, done) for item in value)
        elif isinstance(value, argparse.Namespace | types.SimpleNamespace):
            self._restored(vars(value), done)
        if id(value) in self.made:
            done[id(value)] = self.made[id(value)][1](value)
        return done[id(value)]


@contextlib.contextmanager
def harmless_types_allowed() -> Iterator[Substitutes]:
    """Have PyTorch's loader accept the types of this module, and tell what it was given in the place of others."""
    substitutes = Substitutes()
    # As NumPy's own pickles name them.
    reconstruct, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    allowed: list[Any] = [argparse.Namespace, types.SimpleNamespace, np.ndarray, np.dtype, *_DATES, *_dtype_classes()]
    for module in _MULTIARRAY:
        allowed += [(reconstruct, f"{module}._reconstruct"), (scalar, f"{module}.scalar")]
    allowed += [(make, f"{module}.{name}") for module in _PATHLIB for name, make in _PATHS.items()]
    allowed += [(substitutes.deque, "collections.deque"), (substitutes.defaultdict, "collections.defaultdict")]
    allowed += [
        torch.torch_version.TorchVersion,
        *((frozenset, name) for name in _FROZEN_SETS),
    ]
    for name in ("builtins", "__builtin__"):
        allowed += [(factory, f"{name}.{factory.__name__}") for factory in _FACTORIES]
    allowed += [(_plain_dict, name) for name in _ATTRIBUTE_DICTS] + [(_Unnamed, _FASTAI_LIST)]
    with torch.serialization.safe_globals(allowed):
        yield substitutes


def _dtype_classes() -> list[type]:
    """The classes of NumPy's types, by which PyTorch's loader knows an object that it fills."""
    kinds = [np.dtype(kind) for kind in (*np.typecodes["All"].replace("V", ""), "V1")]
    return list(dict.fromkeys(type(kind) for kind in kinds))


def _plain_dict(items: Mapping[object, object] | Iterable[Any] = ()) -> dict[object, object]:
    return dict(items)
