"""How a process of ours begins, before anything that takes its time is imported: its path and its streams."""

from __future__ import annotations

import io
import os
import sys

_FOLDER_OF_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120


def have_safe_path() -> None:
    """Have no module be looked for in the working folder, as with `python -P`, here and in all processes that follow.

    Those are the commands of the demo, and the helpers that multiprocessing starts.
    """
    sys.path[:] = [entry for entry in sys.path if entry not in ("", os.curdir)]
    os.environ["PYTHONSAFEPATH"] = "1"
    if _FOLDER_OF_PACKAGE not in sys.path:
        # The package runs from its checkout without being installed; nothing there goes before what is installed.
        sys.path.append(_FOLDER_OF_PACKAGE)
        others = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{others}{os.pathsep}{_FOLDER_OF_PACKAGE}" if others else _FOLDER_OF_PACKAGE


def prepare_streams() -> None:
    """Have the streams that the process was started without (`2>&-`) lead nowhere, and stderr never end the run."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - for as long as the process lives
    try:
        number = sys.stderr.fileno()
    except (OSError, ValueError):  # not a file
        return
    encoding = sys.stderr.encoding
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Stderr(number, "w", closefd=False)),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=True,
    )


class _Stderr(io.FileIO):
    """What people are told: when nobody can take it any more, a full disk or a closed pipe, it leads nowhere."""

    def write(self, data: object) -> int:
        """Write, or pretend to."""
        try:
            # Nothing is written (None) where it would have to be waited for; that is not worth an error either.
            return super().write(data) or len(memoryview(data).cast("B"))  # type: ignore[arg-type]
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(memoryview(data).cast("B"))  # type: ignore[arg-type]
