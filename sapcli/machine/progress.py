"""How a stage tells how far it is, without knowing who listens.

The stages take a `Progress`; the command line passes one that draws on the terminal, programs that call the stages from
Python can pass their own or leave the silent one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """The listener of a run."""

    def stage(
        self, name: str, total: int | None = None, unit: str = "images"
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Open a stage of `total` units; the context's value is called with the units done since the last call."""

    def note(self, text: str) -> None:
        """Say a fact about the run that a user wants to see."""

    def warn(self, text: str) -> None:
        """Say something that a user ought to act on, or at least to know."""


class SilentProgress:
    """A `Progress` that tells nobody."""

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "images") -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Run the stage without telling."""
        yield lambda _done: None

    def note(self, text: str) -> None:
        """Drop the note."""

    def warn(self, text: str) -> None:
        """Drop the warning."""
