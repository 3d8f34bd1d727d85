"""Progress for programs: one JSON object a line, on a file descriptor that the caller opened.

`{"event": "stage", "name": ..., "total": ..., "unit": ..., "depth": ...}` opens a stage, `progress` (`name`, `done`)
follows at most ten times a second, `done` (`name`, `done`, `seconds`) closes it; `note` and `warning` have a `text`,
and `summary` has a `title` and its `rows` by name.
"""

from __future__ import annotations

import json
import os
import time

from sapcli.errors import UsageError
from sapcli.machine.text import json_without_commands

_SECONDS_BETWEEN = 0.1


class Events:
    """The events of a run.

    Args:
        descriptor: A file descriptor that is open for writing.

    Raises:
        UsageError: It is not open.
    """

    def __init__(self, descriptor: int) -> None:
        try:
            os.write(descriptor, b"")
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"--progress-json {descriptor}: this file descriptor cannot be written to",
                "open it first, as in `sap ... --progress-json 3 3>progress.ndjson`",
            ) from error
        self._descriptor: int | None = descriptor
        self._last_progress = 0.0

    def send(self, event: str, **fields: object) -> None:
        """Write an event; when nobody reads any more, the run goes on without."""
        if self._descriptor is None:
            return
        line = memoryview(json_without_commands(json.dumps({"event": event, **fields})).encode() + b"\n")
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            self._descriptor = None

    def progress(self, name: str, done: int) -> None:
        """Write how far a stage is, unless that was written a moment ago."""
        now = time.monotonic()
        if now - self._last_progress >= _SECONDS_BETWEEN:
            self._last_progress = now
            self.send("progress", name=name, done=done)
