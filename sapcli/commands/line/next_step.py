"""What usually comes next: the command line of it, filled in with the names that were just used."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from sapcli.commands.line.console import Terminal
from sapcli.commands.line.inputs import Inputs
from sapcli.commands.line.options import ModelOptions
from sapcli.settings import names_own_code

DATA = "DATA"
"""Stands for a data folder that the command did not name."""


def tell_next(terminal: Terminal, command: str, *words: str | Path, options: Iterable[str] = ()) -> None:
    """Say which command usually comes next, to a person who watches.

    Args:
        terminal: Where.
        command: The command's name.
        words: Its arguments, and options with their values.
        options: Further options, as they were given.
    """
    terminal.next(f"next: sap {command} {shlex.join([*map(str, words), *options])}")


def same_model(model: ModelOptions, set_elsewhere: Sequence[str] = ()) -> list[str]:
    """The options by which the same checkpoint is understood again, but for those that a settings file has."""
    given: list[tuple[str, object]] = [
        ("arch", model.arch),
        *(("arch-arg", argument) for argument in model.arch_arguments or ()),
        ("input-size", model.input_size),
        ("mean", model.mean),
        ("std", model.std),
        ("interpolation", model.interpolation),
        ("crop-pct", model.crop_pct),
        ("exif", model.exif),
    ]
    return _options(given, set_elsewhere)


def same_inputs(inputs: Inputs, *, repaired: bool = False) -> list[str]:
    """The options by which the same checkpoint and data are understood again.

    Args:
        inputs: What was given.
        repaired: Whether the next command takes the corrected checkpoint, which remembers all but the user's own code.
    """
    model, elsewhere = inputs.model, inputs.run.settings.names
    if repaired:
        is_own = model.arch is not None and names_own_code(model.arch)
        model = ModelOptions(model.arch, model.arch_arguments) if is_own else ModelOptions()
    data: list[tuple[str, object]] = [("labels", inputs.images.labels), ("class-map", inputs.images.class_map)]
    return same_model(model, elsewhere) + _options(data, elsewhere)


def _options(given: Iterable[tuple[str, object]], set_elsewhere: Sequence[str]) -> list[str]:
    words = []
    for name, value in given:
        if value is not None and name not in set_elsewhere:
            words += [f"--{name}", str(value)]
    return words
