"""The cache of several processes, which the first alone reads and writes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from sapcli.machine.cache import DEFAULT_LIMIT_BYTES, Cache, Content
from sapcli.machine.files import remove_at_end
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import Progress


class SharedCache(Cache):
    """The cache of several processes: the first alone reads and writes the folder, the others get what it finds.

    Args:
        folder: See `Cache`.
        progress: See `Cache`.
        ranks: The processes.
        limit_bytes: See `Cache`.
    """

    def __init__(
        self, folder: Path | None, progress: Progress, ranks: Ranks, limit_bytes: int = DEFAULT_LIMIT_BYTES
    ) -> None:
        super().__init__(folder, progress, limit_bytes)
        self._ranks = ranks
        self._own = Cache(folder, progress, limit_bytes)

    @property
    def own(self) -> Cache:
        """The folder as the first process alone sees it."""
        return self._own

    def find(self, kind: str, parts: Mapping[str, object], read: Callable[[Path], Content]) -> Content | None:
        """The entry for `parts`, where the first process has a whole one; asked for by all at the same time."""
        found: list[Content] = []

        def entry() -> bytes | None:
            content = super(SharedCache, self).find(kind, parts, read)
            if content is None:
                return None
            found.append(content)
            return self._path(kind, parts).read_bytes()

        content = self._ranks.from_first(entry)
        if content is None:
            return None
        return self._ranks.together(lambda: found[0] if found else _read_copy(content, read))[self._ranks.rank]

    def keep(
        self, kind: str, parts: Mapping[str, object], content: Content, write: Callable[[Content, Path], None]
    ) -> None:
        """Write the entry, on the first process."""
        if self._ranks.is_first:
            super().keep(kind, parts, content, write)

    def discard(self, kind: str, parts: Mapping[str, object]) -> None:
        """Remove the entry for `parts`, on the first process."""
        if self._ranks.is_first:
            super().discard(kind, parts)


def _read_copy(content: bytes, read: Callable[[Path], Content]) -> Content:
    with tempfile.NamedTemporaryFile(prefix="sap-", delete=False) as copy:
        remove_at_end(Path(copy.name))
        copy.write(content)
    try:
        return read(Path(copy.name))
    finally:
        Path(copy.name).unlink(missing_ok=True)
