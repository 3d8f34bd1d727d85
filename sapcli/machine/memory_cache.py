"""A cache that lasts as long as the process: for what is made of things that no hash on disk could tell apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sapcli.machine.cache import Cache, Content, entry_key
from sapcli.machine.progress import Progress


class MemoryCache(Cache):
    """Entries as objects in memory; nothing is read from a disk or written to one.

    Args:
        progress: As of `Cache`.
    """

    def __init__(self, progress: Progress) -> None:
        super().__init__(Path(), progress)
        self._contents: dict[str, object] = {}

    def find(self, kind: str, parts: Mapping[str, object], read: Callable[[Path], Content]) -> Content | None:  # noqa: ARG002
        """The entry for `parts`, where it was kept."""
        found: Content | None = self._contents.get(_name(kind, parts))  # type: ignore[assignment]
        return found

    def keep(
        self,
        kind: str,
        parts: Mapping[str, object],
        content: Content,
        write: Callable[[Content, Path], None],  # noqa: ARG002
    ) -> None:
        """Keep the entry for `parts`."""
        self._contents[_name(kind, parts)] = content

    def has(self, kind: str, parts: Mapping[str, object]) -> bool:
        """Whether there is an entry for `parts`."""
        return _name(kind, parts) in self._contents


def _name(kind: str, parts: Mapping[str, object]) -> str:
    return f"{kind}-{entry_key(parts)}"
