"""Scaled Activation Projection: repair a classifier checkpoint that was trained on mislabeled data.

`repair` and `polish` do it in one call, `open_session` gives the stages; torch is imported when one is asked for.
"""

import sys

# `python -m sapcli` looks for every module in the working folder first, so that a `typing.py` or `torch.py` that lies
# among data would run; from here on it is as with `python -P`, and with `sap`.
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].endswith("sapcli") and not sys.flags.safe_path:
    del sys.path[0]

# What type checkers take for `typing.TYPE_CHECKING`, without its import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from sapcli.api import Polished, Repaired, open_session, polish, repair
    from sapcli.settings import PolishSettings, PreprocessingOverrides

__version__ = "0.2.0"
__all__ = [
    "PolishSettings",
    "Polished",
    "PreprocessingOverrides",
    "Repaired",
    "__version__",
    "open_session",
    "polish",
    "repair",
]


def __getattr__(name: str) -> object:
    """The names of the Python interface, which lie in a module that imports torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sapcli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
