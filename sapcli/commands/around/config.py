"""`sap config`: the options of a command as they would be used now, and where each comes from."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import typer

from sapcli.commands.line import console
from sapcli.commands.line.outputs import write_text
from sapcli.commands.line.settings_file import effective_settings, render_settings
from sapcli.settings import ResultFormat


def config(context: typer.Context, command: str, output_format: ResultFormat) -> None:
    """`sap config`."""
    settings = effective_settings(context.parent, command)
    if output_format is ResultFormat.TEXT:
        console.print_result(render_settings(command, settings).rstrip())
        return
    from sapcli.reports.documents import ConfigDocument, SettingDocument

    rows = tuple(
        SettingDocument(name=setting.name, value=_plain(setting.value), source=setting.source) for setting in settings
    )
    write_text(None, ConfigDocument(command=command, settings=rows).to_json(), is_json=True)


def _plain(value: object) -> bool | int | float | str | list[str] | None:
    """A value of an option as one of JSON."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list | tuple):
        return [str(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, Path) else repr(value)
