"""Intermediate artifacts on disk, found again by what they were made from.

An entry's name is a hash of everything that its content depends on, never a name that a user gave. What is damaged,
partial, or cannot be read as what it should be is as good as none. Several processes may share a folder: entries appear
whole and two that make the same one make the same bytes. A folder in which others can put entries is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
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
    "views": "looking at images",
    "validation": "validating the unchanged model",
    "trusted": "selecting trusted samples",
    "bases": "capturing activations",
    "start": "preparing to train",
}
_KEY_LENGTH = 32
# What an entry is called; only files of such a name are counted or removed, and only of a kind that is ours.
_ENTRY = re.compile(rf"([a-z]+)-[0-9a-f]{{{_KEY_LENGTH}}}")
_KINDS = frozenset({*_SHOWN, "unreadable", "remarks", "probe", "digests", "training", "fingerprint", "parts", "fitted"})
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


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
        progress: Told when the folder cannot be written or trusted, once.
    """

    def __init__(self, folder: Path | None, progress: Progress, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.folder = folder or Path(os.environ.get("SAP_CACHE") or platformdirs.user_cache_path("sap"))
        self._limit_bytes = limit_bytes
        self._progress = progress
        self._kinds = set(_KINDS)
        self._warned = False

    @property
    def own(self) -> Cache:
        """The folder as this process alone sees it; see `parallel.shared_cache`."""
        return self

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
            read: Reads it from a file; any exception counts as a damaged entry.
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
        return None if self._is_open_to_others() else self._read(self._path(kind, parts), read)

    def keep(
        self, kind: str, parts: Mapping[str, object], content: Content, write: Callable[[Content, Path], None]
    ) -> None:
        """Write the entry for `parts`, in the place of one that is there; see `fetch`."""
        path = self._path(kind, parts)
        if not self._is_open_to_others():
            self._store(path, lambda: write(content, path))

    def discard(self, kind: str, parts: Mapping[str, object]) -> None:
        """Remove the entry for `parts`, if there is one."""
        if not self._is_open_to_others():
            self._remove(self._path(kind, parts))

    def has(self, kind: str, parts: Mapping[str, object]) -> bool:
        """Whether there is an entry for `parts`, damaged or not."""
        return _checksum_path(self._path(kind, parts)).exists()

    def _path(self, kind: str, parts: Mapping[str, object]) -> Path:
        self._kinds.add(kind)
        return self.folder / f"{kind}-{entry_key(parts)}"

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
            if not (_is_own_file(path) and _is_own_file(checksum)):
                return None
            expected = checksum.read_text()
            intact = _checksum(path) == expected
        except (OSError, ValueError):
            return None
        if intact:
            # Whatever is wrong with it, and be it that another process has removed it: it is made again.
            with contextlib.suppress(Exception):
                content = read(path)
                # The time of last use, for eviction. A folder that is only readable keeps the old one.
                with contextlib.suppress(OSError):
                    os.utime(checksum)
                return content
        self._remove(path)
        return None

    def _is_open_to_others(self) -> bool:
        """Whether somebody else could have put something into the folder, which is said once."""
        try:
            status = self.folder.stat()
        except OSError:
            return False
        if os.name != "posix":
            return False
        reason = ""
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            reason = "everybody may write to it"
        elif status.st_uid not in (0, os.geteuid()):
            reason = "it belongs to another user"
        if reason:
            self._warn(f"the cache folder {self.folder} is not used, since {reason}")
        return bool(reason)

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._progress.warn(text)
        self._warned = True

    def _store(self, path: Path, write: Callable[[], None]) -> None:
        """Write the entry, then the checksum that makes it count; failing only costs time."""
        try:
            # Not open to others, whatever the umask.
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            for file in (path, _checksum_path(path)):
                # It would be followed, and what it leads to replaced.
                if file.is_symlink():
                    file.unlink()
            write()
            with atomic_write(_checksum_path(path)) as handle:
                handle.write(_checksum(path).encode())
            self._evict(path)
        except (OSError, SapError) as error:
            message = error.message if isinstance(error, SapError) else str(error)
            self._warn(f"the cache cannot be used, later runs start over: {message}")

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
            if not self._is_entry(path):
                continue
            with contextlib.suppress(OSError):
                status = path.stat()
                with contextlib.suppress(FileNotFoundError):
                    status = _checksum_path(path).stat()
                yield path, path.stat().st_size, status.st_mtime

    def _is_entry(self, path: Path) -> bool:
        """Whether a file is one that this program has written: by its name, and a kind or a checksum of ours."""
        named = _ENTRY.fullmatch(path.name)
        if named is None or not path.is_file() or path.is_symlink():
            return False
        if named[1] in self._kinds:
            return True
        with contextlib.suppress(OSError, ValueError), _checksum_path(path).open() as handle:
            return _HEX_DIGEST.fullmatch(handle.read(65)) is not None
        return False

    def _remove(self, path: Path) -> None:
        # The checksum first: without it the entry does not count.
        for file in (_checksum_path(path), path):
            with contextlib.suppress(OSError):
                file.unlink()


class MemoryCache(Cache):
    """Entries as objects, for as long as the process lives: of what no hash on disk could tell apart.

    Nothing is read from a disk or written to one.

    Args:
        progress: As of `Cache`.
    """

    def __init__(self, progress: Progress) -> None:
        super().__init__(Path(), progress)
        self._contents: dict[str, object] = {}

    def find(self, kind: str, parts: Mapping[str, object], read: Callable[[Path], Content]) -> Content | None:  # noqa: ARG002
        """The entry for `parts`, where it was kept."""
        found: Content | None = self._contents.get(self._path(kind, parts).name)  # type: ignore[assignment]
        return found

    def keep(
        self,
        kind: str,
        parts: Mapping[str, object],
        content: Content,
        write: Callable[[Content, Path], None],  # noqa: ARG002
    ) -> None:
        """Keep the entry for `parts`."""
        self._contents[self._path(kind, parts).name] = content

    def discard(self, kind: str, parts: Mapping[str, object]) -> None:
        """Forget the entry for `parts`, if there is one."""
        self._contents.pop(self._path(kind, parts).name, None)

    def has(self, kind: str, parts: Mapping[str, object]) -> bool:
        """Whether there is an entry for `parts`."""
        return self._path(kind, parts).name in self._contents


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + _CHECKSUM_SUFFIX)


def entry_key(parts: Mapping[str, object]) -> str:
    """The hash by which an entry made from `parts` is found."""
    text = json.dumps({"version": _VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_KEY_LENGTH]


def _checksum(path: Path) -> str:
    """SHA-256 over an entry's kind, key and content, so that no entry passes for another one."""
    digest = hashlib.sha256(path.name.encode() + b"\0")
    with path.open("rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _is_own_file(path: Path) -> bool:
    """Whether it is a regular file of this user's or the system's: others may write to a folder like /tmp too."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and (os.name != "posix" or status.st_uid in (0, os.geteuid()))
