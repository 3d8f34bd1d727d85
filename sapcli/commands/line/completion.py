"""What the shell offers when Tab is pressed: files, architectures, layers. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

# A longer header is not worth the wait at a prompt.
_LARGEST_HEADER = 1 << 24


def files(*endings: str) -> Callable[[str], Iterator[str]]:
    """A completion of paths: folders, and files with one of these endings, all of them without any."""

    def complete(incomplete: str) -> Iterator[str]:
        folder, start = os.path.split(incomplete)
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(folder or "."), key=lambda entry: entry.name):
                shown = entry.name.startswith(start) and (start.startswith(".") or not entry.name.startswith("."))
                path = os.path.join(folder, entry.name)  # noqa: PTH118 - pathlib would drop what the user typed of "./"
                if shown and entry.is_dir():
                    yield path + "/"
                elif shown and (not endings or entry.name.endswith(endings)):
                    yield path

    return complete


def architectures(incomplete: str) -> Iterator[str]:
    """Timm's and torchvision's classifiers, with and without the library's name, and Python files."""
    index = importlib.resources.files("sapcli.networks") / "data" / "architectures.json.xz"
    for name, *_ in json.loads(lzma.decompress(index.read_bytes()))["architectures"]:
        bare = name.removeprefix("timm:")
        yield from (form for form in dict.fromkeys((name, bare)) if form.startswith(incomplete))
    yield from files(".py")(incomplete)


def layers(context: typer.Context, incomplete: str) -> Iterator[str]:
    """The modules and weights of the checkpoint that was typed already."""
    # While a command line is incomplete, its arguments are not assigned to parameters yet.
    names = next(filter(None, (_weights(Path(argument)) for argument in context.args)), [])
    offered: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        # Up to the next dot after what is typed, so that a deep network is not listed whole.
        for length in range(1, len(parts) + 1):
            prefix = ".".join(parts[:length])
            if prefix.startswith(incomplete):
                offered[prefix] = None
                if len(prefix) > len(incomplete):
                    break
    yield from offered


def _weights(path: Path) -> list[str]:
    """The names of tensors of two or more dimensions in a safetensors file; none where it cannot be read."""
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():  # a pipe would keep the shell waiting
        return []
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _LARGEST_HEADER else {}
        return [name for name, entry in header.items() if name != "__metadata__" and len(entry["shape"]) > 1]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
