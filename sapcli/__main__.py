"""`sap` and `python -m sapcli`: ready for signals before anything that takes its time is imported."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import NoReturn

from sapcli.machine.signals import end_interrupted, end_now, end_on_signals, status_of_signal

# Looking for garbage as often as usual takes a fifth of the time of the imports, which make none.
_OBJECTS_BETWEEN_COLLECTIONS = 100_000


def main() -> NoReturn:
    """The console script."""
    _open_closed_streams()
    end_on_signals()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    try:
        from sapcli.commands.entry import start

        status = start()
    except BaseException:
        # Interrupted imports turn a signal's exception into others.
        if status_of_signal() is None:
            raise
    ended_by = status_of_signal()
    if ended_by is not None:
        end_interrupted(ended_by)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        # The interpreter tells of it.
        sys.exit(status)
    end_now(status)


def _open_closed_streams() -> None:
    """Have the streams that the process was started without (`2>&-`) lead nowhere, under their own numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - for as long as the process lives


if __name__ == "__main__":
    main()
