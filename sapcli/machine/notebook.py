"""Progress in a notebook: a bar for each stage, and a line for what is said."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sapcli.machine.progress import Progress, SilentProgress


def usual_progress() -> Progress:
    """The listener of a run from Python where none is given: bars in a notebook, elsewhere nobody."""
    return NotebookProgress() if is_notebook() else SilentProgress()


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which shows what is displayed and not a terminal."""
    # Whoever runs in one has imported it.
    ipython = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return type(shell).__name__ in ("ZMQInteractiveShell", "Shell") and hasattr(shell, "kernel")


class NotebookProgress:
    """A `Progress` of bars as notebooks show them; a stage within a stage has a bar only while it runs."""

    def __init__(self) -> None:
        self._depth = 0

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """A bar."""
        from tqdm.auto import tqdm

        self._depth += 1
        try:
            with tqdm(total=total, desc=name, unit=f" {unit}", leave=self._depth == 1) as bar:
                yield bar.update
        finally:
            self._depth -= 1

    def note(self, text: str) -> None:
        """A line below the bars."""
        from tqdm.auto import tqdm

        tqdm.write(text)

    def warn(self, text: str) -> None:
        """The same, and that it is a warning."""
        self.note(f"warning: {text}")
