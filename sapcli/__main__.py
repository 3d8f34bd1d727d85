"""`sap` and `python -m sapcli`: ready for signals before anything that takes its time is imported."""

from __future__ import annotations

import sys
from typing import NoReturn

from sapcli.errors import ExitStatus
from sapcli.signals import Terminated, end_now, end_on_signals


def main() -> NoReturn:
    """The console script."""
    end_on_signals()
    try:
        from sapcli import cli

        status = cli.start()
    except KeyboardInterrupt:
        status = ExitStatus.INTERRUPTED
    except Terminated:
        status = ExitStatus.TERMINATED
    if status in (ExitStatus.INTERRUPTED, ExitStatus.TERMINATED):
        end_now(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
