"""`sap cache`: the folder of artifacts."""

from __future__ import annotations

from pathlib import Path

from sapcli.commands.line import console
from sapcli.commands.line.outputs import write_text
from sapcli.machine.cache import Cache, CacheInfo
from sapcli.settings import ResultFormat


def info(folder: Path | None, output_format: ResultFormat) -> None:
    """`sap cache info`."""
    _print(Cache(folder, console.Terminal()).info(), output_format, cleared=False)


def clear(folder: Path | None, output_format: ResultFormat) -> None:
    """`sap cache clear`."""
    _print(Cache(folder, console.Terminal()).clear(), output_format, cleared=True)


def _print(info: CacheInfo, output_format: ResultFormat, *, cleared: bool) -> None:
    if output_format is ResultFormat.JSON:
        # Its models take time to be imported, and so does what they are made of.
        from sapcli.reports.documents import CacheDocument

        write_text(None, CacheDocument.of(info, cleared=cleared).to_json(), is_json=True)
        return
    removed = " removed" if cleared else ""
    console.print_result(f"{info.folder}: {info.entries} entries{removed}, {info.bytes / 2**20:.1f} MiB")
