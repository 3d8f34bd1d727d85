"""torchvision imported without PyTorch's compiler, which takes as long again as PyTorch itself.

One function of `torchvision.ops.roi_align` asks the compiler (`torch._dynamo`) whether it works on a device, and
imports it for that. No classifier needs the answer. So that one name is put off: it comes from a module that stands in
for the compiler's while torchvision is imported, and asks the compiler itself when it is called. Whatever else is asked
of that module is answered by the compiler, which is imported then.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_PACKAGE, _MODULE = "torch._dynamo", "torch._dynamo.utils"


class _StandIn(ModuleType):
    """A module of the compiler's that is imported once something is asked of it."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        _remove()
        return getattr(importlib.import_module(self.__name__), name)


def _is_compile_supported(device: object) -> object:
    """What the compiler's own function says."""
    return importlib.import_module(_MODULE).is_compile_supported(device)


def _remove() -> None:
    """Have the next import of the compiler be one."""
    for name in (_PACKAGE, _MODULE):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


@contextmanager
def without_compiler() -> Iterator[None]:
    """While torchvision is imported, by whomever, it does without the compiler; afterwards nothing is different."""
    if _PACKAGE in sys.modules or "torchvision.ops.roi_align" in sys.modules:
        yield
        return
    utils = _StandIn(_MODULE)
    vars(utils)["is_compile_supported"] = _is_compile_supported
    sys.modules |= {_PACKAGE: _StandIn(_PACKAGE), _MODULE: utils}
    try:
        yield
    finally:
        _remove()
