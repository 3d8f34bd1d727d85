"""Intermediate artifacts on disk, found again by what they were made from.

An entry's name is a hash of everything that its content depends on, never a name that a user gave. A damaged or partial
entry is as good as none. Several processes may share a folder: entries appear whole and two that make the same one make
the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import platformdirs

from sapcli.errors import SapError
from sapcli.machine.files import atomic_write
from sapcli.machine.progress import Progress

Content = TypeVar("Content")

# Entries of another version of this program's artifacts are never found.
_VERSION = 3
DEFAULT_LIMIT_BYTES = 10 << 30
# An entry that was used so short a time ago may be in use by another process and is not evicted.
_IN_USE_SECONDS = 600.0
_CHECKSUM_SUFFIX = ".sha256"
# What people are told of when it need not be made again, in the words of the stage that makes it.
_SHOWN = {
    "scores": "scoring training images",
    "validation": "validating the unchanged model",
    "trusted": "selecting trusted samples",
    "bases": "capturing activations",
}
_KEY_LENGTH = 32


@dataclass(frozen=True)
class CacheInfo:
    """What a cache folder holds."""

    folder: Path
    entries: int
    bytes: int
    limit_bytes: int


class Cache:
    """A folder of content-addressed entries.

    Args:
        folder: Where; `None` uses `$SAP_CACHE`, else the platform's folder for a user's caches.
        limit_bytes: The least recently used entries are removed beyond this size.
        progress: Told when the folder cannot be written, once.
    """

    def __init__(self, folder: Path | None, progress: Progress, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.folder = folder or Path(os.environ.get("SAP_CACHE") or platformdirs.user_cache_path("sap"))
        self._limit_bytes = limit_bytes
        self._progress = progress
        self._warned = False

    def fetch(
        self,
        kind: str,
        parts: Mapping[str, object],
        make: Callable[[], Content],
        read: Callable[[Path], Content],
        write: Callable[[Content, Path], None],
    ) -> Content:
        """The entry made from `parts`, or what `make` returns, which is then kept.

        Args:
            kind: What it is, the first part of its file's name.
            parts: All that the content depends on, as JSON values.
            make: Makes the content.
            read: Reads it from a file; a `SapError` counts as a damaged entry.
            write: Writes it to a file.
        """
        found = self.find(kind, parts, read)
        if found is not None:
            if kind in _SHOWN:
                self._progress.note(f"{_SHOWN[kind]}: from the cache")
            return found
        content = make()
        self.keep(kind, parts, content, write)
        return content

    def find(self, kind: str, parts: Mapping[str, object], read: Callable[[Path], Content]) -> Content | None:
        """The entry for `parts`, where there is a whole one; see `fetch`."""
        return self._read(self._path(kind, parts), read)

    def keep(
        self, kind: str, parts: Mapping[str, object], content: Content, write: Callable[[Content, Path], None]
    ) -> None:
        """Write the entry for `parts`, in the place of one that is there; see `fetch`."""
        path = self._path(kind, parts)
        self._store(path, lambda: write(content, path))

    def has(self, kind: str, parts: Mapping[str, object]) -> bool:
        """Whether there is an entry for `parts`, damaged or not."""
        return _checksum_path(self._path(kind, parts)).exists()

    def _path(self, kind: str, parts: Mapping[str, object]) -> Path:
        return self.folder / f"{kind}-{_key(parts)}"

    def info(self) -> CacheInfo:
        """What the folder holds now."""
        sizes = [size for _, size, _ in self._entries()]
        return CacheInfo(self.folder, len(sizes), sum(sizes), self._limit_bytes)

    def clear(self) -> CacheInfo:
        """Remove all entries and return what was there."""
        before = self.info()
        for path, _, _ in self._entries():
            self._remove(path)
        return before

    def _read(self, path: Path, read: Callable[[Path], Content]) -> Content | None:
        """The content of a whole and undamaged entry; a damaged one is removed."""
        checksum = _checksum_path(path)
        try:
            expected = checksum.read_text()
            intact = _file_digest(path) == expected
        except (OSError, ValueError):
            return None
        if intact:
            # Another process may remove the entry in between.
            with contextlib.suppress(SapError, OSError):
                content = read(path)
                # The time of last use, for eviction. A folder that is only readable keeps the old one.
                with contextlib.suppress(OSError):
                    os.utime(checksum)
                return content
        self._remove(path)
        return None

    def _store(self, path: Path, write: Callable[[], None]) -> None:
        """Write the entry, then the checksum that makes it count; failing only costs time."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write()
            with atomic_write(_checksum_path(path)) as handle:
                handle.write(_file_digest(path).encode())
            self._evict(path)
        except (OSError, SapError) as error:
            if not self._warned:
                message = error.message if isinstance(error, SapError) else str(error)
                self._progress.warn(f"the cache cannot be used, later runs start over: {message}")
            self._warned = True

    def _evict(self, newest: Path) -> None:
        """Remove the least recently used entries until the folder is within its limit."""
        entries = sorted(self._entries(), key=lambda entry: entry[2])
        total = sum(size for _, size, _ in entries)
        for path, size, used in entries:
            if total <= self._limit_bytes:
                return
            if path != newest and time.time() - used > _IN_USE_SECONDS:
                self._remove(path)
                total -= size

    def _entries(self) -> Iterator[tuple[Path, int, float]]:
        """Path, size in bytes and time of last use of every entry, those too that a killed process left unfinished."""
        for path in sorted(self.folder.glob("*-" + "?" * _KEY_LENGTH)):
            with contextlib.suppress(OSError):
                status = path.stat()
                with contextlib.suppress(FileNotFoundError):
                    status = _checksum_path(path).stat()
                yield path, path.stat().st_size, status.st_mtime

    def _remove(self, path: Path) -> None:
        # The checksum first: without it the entry does not count.
        for file in (_checksum_path(path), path):
            with contextlib.suppress(OSError):
                file.unlink()


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + _CHECKSUM_SUFFIX)


def _key(parts: Mapping[str, object]) -> str:
    text = json.dumps({"version": _VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_KEY_LENGTH]


def _file_digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
