"""Scaled Activation Projection: repair a classifier checkpoint that was trained on mislabeled data.

`repair` does it in one call, `open_session` gives the stages; both import torch only when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sapcli.api import Repaired, open_session, repair
    from sapcli.settings import PreprocessingOverrides

__version__ = "0.1.0"
__all__ = ["PreprocessingOverrides", "Repaired", "__version__", "open_session", "repair"]


def __getattr__(name: str) -> object:
    """The names of the Python interface, which lie in a module that imports torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sapcli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
