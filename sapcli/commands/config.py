"""`sap config`: the options of a command as they would be used now, and where each comes from."""

from __future__ import annotations

import typer

from sapcli.commands.line import console
from sapcli.commands.line.settings_file import effective_settings, render_settings


def config(context: typer.Context, command: str) -> None:
    """`sap config`."""
    settings = effective_settings(context.parent, command)
    console.print_result(render_settings(command, settings).rstrip())
