"""Ctrl-C, SIGTERM and SIGHUP: the run ends within two seconds and leaves nothing behind.

Python tells of a signal only between two of its own steps, and one of them can be a decomposition that takes a minute,
or an import that takes the exception for a missing module. So a thread waits for the signal as well, and ends the
process when the exception has not done so in time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn

from sapcli.errors import ExitStatus
from sapcli.machine.files import remove_unfinished

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_SECONDS_TO_UNWIND = 0.8
_STATUS = {signal.SIGINT: ExitStatus.INTERRUPTED, signal.SIGTERM: ExitStatus.TERMINATED}
if hasattr(signal, "SIGHUP"):
    _STATUS[signal.SIGHUP] = ExitStatus.HUNG_UP
ENDING = tuple(_STATUS)
"""The signals that end a run."""
_SHOW_CURSOR = b"\x1b[?25h"


_received: list[signal.Signals] = []
_before_ending: list[Callable[[], None]] = []


class Terminated(BaseException):
    """SIGTERM arrived, or SIGHUP."""


INTERRUPTIONS = (KeyboardInterrupt, Terminated)
"""What a signal raises, wherever the program is."""


def status_of_signal() -> ExitStatus | None:
    """The status to end with after a signal, whatever became of its exception; `None` if there was none."""
    return _STATUS[_received[0]] if _received else None


def before_ending(tell: Callable[[], None]) -> None:
    """Have something done as soon as a signal has come, within a part of a second; it may be called several times."""
    _before_ending.append(tell)


def end_on_signals() -> None:
    """Turn a first SIGINT into a `KeyboardInterrupt`, SIGTERM or SIGHUP into `Terminated`, and have them end it soon.

    Later signals change nothing: what the first one began, putting things in order, is not interrupted. A signal that
    was ignored when the process began, as SIGINT is for a shell's background jobs and SIGHUP under nohup, stays
    ignored.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # Where memory is so short that there can be no thread, the exception alone has to do.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=_end_in_time, args=(reading,), daemon=True).start()
    sys.unraisablehook = _report_unraisable
    for number in _STATUS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def _raise(number: int, _frame: FrameType | None) -> None:
    # To ignore later ones by `signal.SIG_IGN` would have Python tell of one that is on its way already.
    if _received:
        return
    _received.append(signal.Signals(number))
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """As Python does, but for the exception of a signal that came while an object was being let go of."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt | Terminated):
        sys.__unraisablehook__(unraisable)


def _end_in_time(reading: int) -> None:
    """Wait for the first signal and end the process when it is still there a second later."""
    (number,) = os.read(reading, 1)
    _do_before_ending()
    time.sleep(_SECONDS_TO_UNWIND)
    end_interrupted(_STATUS[signal.Signals(number)])


def _do_before_ending() -> None:
    for tell in _before_ending:
        with contextlib.suppress(Exception):
            tell()


def end_interrupted(status: int) -> NoReturn:
    """End the process in the middle of whatever it does."""
    _do_before_ending()
    if sys.stderr.isatty():
        # A bar that was being drawn has hidden it.
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), _SHOW_CURSOR)
    end_now(status)


def end_now(status: int) -> NoReturn:
    """End the process without the interpreter's own tidying, which takes a second once PyTorch is loaded."""
    remove_unfinished()
    os._exit(status)
