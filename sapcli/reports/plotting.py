"""Matplotlib with its own defaults, whatever a `matplotlibrc` says.

It reads one of the working folder when it is imported, which may have come with the data, and settings there have LaTeX
run, for one. So the import happens in the folder of its own defaults. It also looks for fonts, which starts a program
(`fc-list`), and keeps a list of them in a folder of the user's; the font that is used here is its own.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any


@contextmanager
def _beside_its_defaults() -> Iterator[None]:
    """Have the working folder be that of matplotlib's own `matplotlibrc`, which is looked for there first."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None  # it is one of our dependencies
    assert found.origin is not None
    # Found again also where it may not be listed, or was removed.
    before = os.open(os.curdir, getattr(os, "O_PATH", os.O_RDONLY))
    try:
        os.chdir(Path(found.origin).parent / "mpl-data")
        yield
    finally:
        os.fchdir(before)
        os.close(before)


@contextmanager
def _with_its_own_fonts(mpl: Any) -> Iterator[None]:
    """Have the import of matplotlib's parts neither look for fonts of the system nor write a list of them."""

    def is_missing(*_command: object, **_options: object) -> bytes:
        raise FileNotFoundError

    names = "MPL_IGNORE_SYSTEM_FONTS"
    log = logging.getLogger("matplotlib.font_manager")
    run, folder, variable, level = subprocess.check_output, mpl.get_cachedir, os.environ.get(names), log.level
    subprocess.check_output = is_missing  # type: ignore[assignment]  # of versions that do not know the variable
    mpl.get_cachedir = lambda: os.devnull  # where nothing can lie
    os.environ[names] = "1"
    log.setLevel(logging.CRITICAL)  # it warns that nothing could be written there
    try:
        yield
    finally:
        subprocess.check_output, mpl.get_cachedir = run, folder
        log.setLevel(level)
        del os.environ[names]
        if variable is not None:
            os.environ[names] = variable


if TYPE_CHECKING:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
else:
    with _beside_its_defaults():
        import matplotlib as mpl

        with _with_its_own_fonts(mpl):
            from matplotlib.axes import Axes
            from matplotlib.figure import Figure
            from matplotlib.patches import Rectangle

__all__ = ["Axes", "Figure", "Rectangle", "style"]


@contextmanager
def style(settings: Mapping[Any, Any]) -> Iterator[None]:
    """Draw with these settings and the defaults for all others, also where a user's code has changed them."""
    # It warns of figures that are too small for their names, say, in a report from elsewhere.
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mpl.rcParams.update({name: mpl.rcParamsDefault[name] for name in mpl.rcParams if name not in _OF_THE_PROCESS})
        mpl.rcParams.update(settings)
        yield


# They say how matplotlib shows windows, which it does not here, and it warns where they are changed.
_OF_THE_PROCESS = frozenset({"backend", "backend_fallback", "interactive", "toolbar", "timezone"})
