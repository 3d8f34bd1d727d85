"""`sap` and `python -m sapcli`: a safe path and ready for signals before anything that takes its time is imported."""

from __future__ import annotations

import gc
import sys
from typing import NoReturn

# Looking for garbage as often as usual takes a fifth of the time of the imports, which make none.
_OBJECTS_BETWEEN_COLLECTIONS = 100_000


def main() -> NoReturn:
    """The console script."""
    try:
        from sapcli.machine.signals import end_interrupted, end_now, end_on_signals, status_of_signal
        from sapcli.machine.start import have_safe_path, prepare_streams

        have_safe_path()
        prepare_streams()
        end_on_signals()
    except Exception as error:
        sys.exit(_tell_in_short(error))
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    try:
        from sapcli.commands.entry import start

        status = start()
    except BaseException as error:
        # Interrupted imports turn a signal's exception into others.
        if status_of_signal() is None:
            if not isinstance(error, Exception):
                raise
            status = _tell_in_short(error)
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


def _tell_in_short(error: Exception) -> int:
    """The two lines of an error that kept even the means of telling of it from being imported."""
    if "--debug" in sys.argv:
        sys.excepthook(type(error), error, error.__traceback__)
    text = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
    sys.stderr.write(f"error: sap could not start: {text}\n")
    sys.stderr.write("hint:  look for more memory (`ulimit -v`), or install sap again\n")
    return 1


if __name__ == "__main__":
    main()
