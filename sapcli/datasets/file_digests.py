"""The contents of files as hashes; a file that is the same as before is not read again.

A file counts as the same where its device, inode, size and the times of its last change are. The time at which its
inode changed (`st_ctime`) is the system's own, and no copying tool sets it back, as they do with the time of
modification. Since a system's clock ticks only every few milliseconds, a file that was changed a moment ago is read but
not remembered.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from sapcli.datasets.containers.members import containing_file, member_bytes
from sapcli.datasets.formats import open_regular
from sapcli.errors import DatasetError
from sapcli.machine.cache import Cache
from sapcli.machine.files import atomic_write
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import Progress, SilentProgress

_KIND = "digests"
_KEY_BYTES, _DIGEST_BYTES = 16, 32
_BLOCK = 1 << 20
_SETTLED_NS = 2_000_000_000
# So many bytes take a second or more to read, and it is said that they are.
_WORTH_SAYING = 1 << 30
# Records of a folder's other files are kept as well up to this number: a list may name now these and now those.
_RECORDS_KEPT = 100_000
_REMEMBERED = 1 << 18

_FACTS, _64_BITS = struct.Struct("<5Q"), (1 << 64) - 1
# Of so many files or more, what is known of them is taken to be true as long as their folders and some of them are as
# they were: to look at each of a million takes longer than a repair may.
_MANY, _LOOKED_AT = 200_000, 1000

_remembered: dict[bytes, bytes] = {}


def file_digest(path: str) -> tuple[int, bytes] | None:
    """The size of a file and the SHA-256 of its bytes; `None` for what is gone, unreadable or no regular file."""
    known = _known(path)
    if known is None:
        content = member_bytes(path)
        return None if content is None else (len(content), hashlib.sha256(content).digest())
    size, key = known
    if key in _remembered:
        return size, _remembered[key]
    read = _read(path)
    return None if read is None else read[:2]


class FileDigests:
    """The hashes of a folder's files, kept between runs.

    Args:
        cache: Where; `None` keeps them in this process alone.
        progress: Told when so much has to be read that it takes a while.
        ranks: The processes of the run, of which the first alone reads.
    """

    def __init__(
        self, cache: Cache | None = None, progress: Progress | None = None, ranks: Ranks | None = None
    ) -> None:
        self._cache = cache
        self._progress = progress or SilentProgress()
        self.ranks = ranks or Ranks()

    def of(self, folder: Path, paths: Sequence[str], *, keep: bool = True) -> tuple[bytes, ...]:
        """The SHA-256 of each file's bytes, in their order; empty bytes for what cannot be read.

        Of an image inside of a file it is that of the file's own SHA-256 and the image's name in it.

        Args:
            folder: Where the files lie.
            paths: Their paths below it.
            keep: Whether the folder will be there in another run.
        """
        cache = self._cache if keep else None
        parts = {"folder": os.path.realpath(folder)}
        table = (cache.find(_KIND, parts, _read_table) if cache is not None else None) or {}
        digests = [b""] * len(paths)
        records: dict[bytes, bytes] = {}
        # By what tells a file: one of many names is read once.
        unknown: dict[bytes, list[int]] = {}
        to_read = 0
        inside: dict[int, str] = {}
        files = [f"{folder}/{path}" for path in paths]
        for index, path in enumerate(files):
            known = _known(path)
            if known is None:
                inside[index] = path
                continue
            size, key = known
            digest = _remembered.get(key) or table.get(key)
            if digest is None:
                others = unknown.setdefault(key, [])
                to_read += 0 if others else size
                others.append(index)
            else:
                digests[index] = records[key] = digest
                _remember(key, digest)
        with self._stage(len(unknown), to_read) as advance:
            for indices in unknown.values():
                read = _read(files[indices[0]])
                if read is not None:
                    _size, digest, lasting = read
                    for index in indices:
                        digests[index] = digest
                    if lasting is not None:
                        records[lasting] = digest
                advance(1)
        for index, digest in self._of_members(inside, keep=keep).items():
            digests[index] = digest
        if cache is not None and not records.keys() <= table.keys():
            kept = table if len(table) <= _RECORDS_KEPT + len(records) else {}
            cache.keep(_KIND, parts, {**kept, **records}, _write_table)
        return tuple(digests)

    def fingerprint(
        self, folder: Path, paths: Sequence[str], labels: Sequence[int], start: bytes, *, keep: bool = True
    ) -> str:
        """SHA-256 over what `start` says, and path, content and label of each file; of very many files kept as well.

        Args:
            folder: Where the files lie.
            paths: Their paths below it.
            labels: Their labels.
            start: What else it is of.
            keep: Whether the folder will be there in another run.
        """
        cache = self._cache if keep and len(paths) >= _MANY else None
        parts = None if cache is None else _state(folder, paths, labels, start)
        if cache is not None and parts is not None:
            known = cache.find("fingerprint", parts, lambda path: path.read_text())
            if known is not None:
                self._progress.note(
                    f"{folder}: {len(paths):,} files are taken to be as they were, since their folders and"
                    f" {_LOOKED_AT:,} of them are (`sap cache clear` has all read again)"
                )
                return known
        digest = hashlib.sha256(start)
        contents = self.of(folder, paths, keep=keep)
        for path, content, label in zip(paths, contents, labels, strict=True):
            digest.update(f"\0{path}\0{content.hex()}\0{label}".encode(errors="surrogateescape"))
        made = digest.hexdigest()
        if cache is not None and parts is not None:
            cache.keep("fingerprint", parts, made, _write_text)
        return made

    def _of_members(self, paths: Mapping[int, str], *, keep: bool) -> dict[int, bytes]:
        """The digests of images inside of files; each file is read once."""
        holders: dict[str, str | None] = {}
        found: dict[int, str] = {}
        for index, path in paths.items():
            parent = path.rpartition("/")[0]
            if parent not in holders:
                holders[parent] = containing_file(path)
            holder = holders[parent]
            if holder is not None:
                found[index] = holder
        digests: dict[str, bytes] = {}
        folders: dict[Path, list[str]] = {}
        for file in set(found.values()):
            folders.setdefault(Path(file).parent, []).append(file)
        for folder, inside in folders.items():
            of_files = self.of(folder, [Path(file).name for file in inside], keep=keep)
            digests |= dict(zip(inside, of_files, strict=True))
        return {
            index: hashlib.sha256(digests[file] + paths[index][len(file) :].encode(errors="surrogateescape")).digest()
            for index, file in found.items()
        }

    def _stage(self, count: int, size: int) -> AbstractContextManager[Callable[[int], None]]:
        """A stage for reading so many files of this size together, to those who listen if it takes a while."""
        listener = self._progress if size > _WORTH_SAYING else SilentProgress()
        return listener.stage("reading files", count, "files")


def _state(folder: Path, paths: Sequence[str], labels: Sequence[int], start: bytes) -> dict[str, object] | None:
    """What tells the files of a folder from what they were or will be, without a look at each of them.

    `None` where a folder was changed a moment ago, or is gone: more may come that its clock does not tell.
    """
    digest = hashlib.sha256(start)
    folders: dict[str, None] = {}
    last = "\0"
    for path, label in zip(paths, labels, strict=True):
        digest.update(f"\0{path}\0{label}".encode(errors="surrogateescape"))
        # Sorted paths come folder by folder.
        if not path.startswith(last) or "/" in path[len(last) :]:
            inside = path.rpartition("/")[0]
            folders[inside] = None
            last = f"{inside}/"
    newest = 0
    for inside in folders:
        try:
            status = os.stat(f"{folder}/{inside}")  # noqa: PTH116 - beside the others
        except (OSError, ValueError):
            return None
        newest = max(newest, status.st_ctime_ns, status.st_mtime_ns)
        digest.update(_key(status))
    if time.time_ns() - newest < _SETTLED_NS:
        return None
    for path in paths[:: max(len(paths) // _LOOKED_AT, 1)]:
        known = _known(f"{folder}/{path}")
        digest.update(b"" if known is None else known[1])
    return {"folder": os.path.realpath(folder), "state": digest.hexdigest()}


def _write_text(text: str, path: Path) -> None:
    with atomic_write(path) as handle:
        handle.write(text.encode())


def _known(path: str) -> tuple[int, bytes] | None:
    """A file's size, and the key by which its content is remembered; `None` where there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116 (of thousands, without making an object of each name)
    except (OSError, ValueError):
        return None
    return status.st_size, _key(status)


def _key(status: os.stat_result) -> bytes:
    """What tells a file as it is now from every other, and from itself as it was or will be."""
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns, status.st_mtime_ns)
    return hashlib.blake2b(_FACTS.pack(*(fact & _64_BITS for fact in facts)), digest_size=_KEY_BYTES).digest()


def _read(path: str) -> tuple[int, bytes, bytes | None] | None:
    """A file's size, its digest and the key to remember that by, if it may be; `None` where it cannot be read."""
    try:
        descriptor = open_regular(path)
    except (OSError, ValueError):
        return None
    try:
        before = os.fstat(descriptor)
        digest = hashlib.sha256()
        while block := os.read(descriptor, min(before.st_size + 1, _BLOCK)):
            digest.update(block)
        after = os.fstat(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    content, key = digest.digest(), _key(after)
    changed = max(after.st_ctime_ns, after.st_mtime_ns)
    if key != _key(before) or time.time_ns() - changed < _SETTLED_NS:
        return after.st_size, content, None
    _remember(key, content)
    return after.st_size, content, key


def _remember(key: bytes, digest: bytes) -> None:
    if len(_remembered) < _REMEMBERED:
        _remembered[key] = digest


def _write_table(table: Mapping[bytes, bytes], path: Path) -> None:
    with atomic_write(path) as handle:
        handle.write(b"".join(key + digest for key, digest in table.items()))


def _read_table(path: Path) -> dict[bytes, bytes]:
    content = path.read_bytes()
    length = _KEY_BYTES + _DIGEST_BYTES
    if len(content) % length:
        raise DatasetError(f"{path} is no table of digests", "remove it")
    return {
        content[start : start + _KEY_BYTES]: content[start + _KEY_BYTES : start + length]
        for start in range(0, len(content), length)
    }
