"""Runs of the command line, in the tests' own process and as one of their own, held to what always holds.

Every run leaves its inputs as they are (`untouched`) and runs no code that it was not told to (`no_code`). Tests start
the command line by these functions, or by those of `small_project` and `processes`. The inputs of one that a test
starts by itself, as a process, are compared at the end of the test.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.no_code import watched
from support.untouched import inputs_untouched, words_of

from sapcli.commands import entry


def run(arguments: Sequence[str | Path]) -> int:
    """Run a command line in this process, on the streams that it has, and return its status."""
    texts = [os.fspath(argument) for argument in arguments]
    with inputs_untouched(Path(), texts), watched(texts):
        return entry.run(texts)


def run_process(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` of a command that starts the tool, directly or in a shell (`bash -c`).

    Args:
        command: The command.
        options: Those of `subprocess.run`.
    """
    with inputs_untouched(Path(options.get("cwd") or ""), words_of(command)):
        return subprocess.run(command, **{"check": False, **options})
