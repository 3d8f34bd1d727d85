"""Data folders that come as a tar archive."""

from __future__ import annotations

import functools
import secrets
import tarfile
import tempfile
import zlib
from lzma import LZMAError
from pathlib import Path

from sapcli.errors import DatasetError
from sapcli.machine.files import remove_at_end

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def is_archive(path: Path) -> bool:
    """Whether the name is that of a tar archive, compressed or not."""
    return path.name.lower().endswith(_SUFFIXES)


def unpacked_archive(path: Path) -> Path:
    """Unpack a tar archive of a data folder; an unchanged archive is unpacked once in a process.

    Returns:
        A folder among the temporary files that is removed when the process ends; where the archive holds nothing but a
        single folder, that folder.

    Raises:
        DatasetError: If it is no tar archive, is damaged, holds links or a path that leads outside, or does not fit.
    """
    try:
        status = path.stat()
        folder = _unpacked(path.resolve(), status.st_size, status.st_mtime_ns)
        entries = list(folder.iterdir())
    except tarfile.FilterError as error:
        raise DatasetError(
            f"{path}: refused to unpack the archive: {error}", "Unpack it yourself and give the folder instead."
        ) from error
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, LZMAError) as error:
        raise DatasetError(
            f"{path}: cannot unpack the archive: {error}",
            "Check that it is a complete tar archive and fits the disk.",
        ) from error
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


class _LinkError(tarfile.FilterError):
    """A link inside an archive, which could lead outside the folder."""


@functools.cache
def _unpacked(path: Path, _size: int, _modified_ns: int) -> Path:
    folder = Path(tempfile.gettempdir(), f"sap-data-{secrets.token_hex(8)}")
    remove_at_end(folder)
    folder.mkdir(mode=0o700)
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter=_member_without_links)
    return folder


def _member_without_links(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    if member.issym() or member.islnk():
        raise _LinkError(f"{member.name!r} is a link")
    return tarfile.data_filter(member, folder)
