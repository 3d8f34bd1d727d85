"""`sap cache`: the folder of artifacts."""

from __future__ import annotations

from pathlib import Path

from sapcli.commands.line import console
from sapcli.machine.cache import Cache


def info(folder: Path | None) -> None:
    """`sap cache info`."""
    info = Cache(folder, console.Terminal()).info()
    console.print_result(f"{info.folder}: {info.entries} entries, {info.bytes / 2**20:.1f} MiB")


def clear(folder: Path | None) -> None:
    """`sap cache clear`."""
    info = Cache(folder, console.Terminal()).clear()
    console.print_result(f"{info.folder}: {info.entries} entries removed, {info.bytes / 2**20:.1f} MiB")
