"""The library itself: imported only where a checkpoint is one of its models, kept quiet and away from the network."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from typing import Any

from sapcli.errors import ArchitectureError
from sapcli.machine.text import in_one_line

_NAME = "transformers"
# So that nothing is looked up on the Hub, whatever a folder lacks.
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def is_installed() -> bool:
    """Whether transformers is there, found out without importing it."""
    return importlib.util.find_spec(_NAME) is not None


@contextlib.contextmanager
def transformers(of: str) -> Iterator[Any]:
    """The module `transformers`, quiet within the context.

    Args:
        of: What needs it, for messages: the checkpoint or the architecture.

    Raises:
        ArchitectureError: It is not installed, or does what it is asked for in vain.
    """
    try:
        with _offline():
            module = importlib.import_module(_NAME)
            logging = importlib.import_module(f"{_NAME}.utils.logging")
    except ImportError as error:
        raise ArchitectureError(
            f"{of} is a model of transformers', which {_why_not(error)}",
            "Install it with: pip install 'sapcli[transformers]'.",
        ) from error
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with _offline(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield module
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _why_not(error: ImportError) -> str:
    return "cannot be imported: " + in_one_line(error) if is_installed() else "is not installed"


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _OFFLINE}
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
