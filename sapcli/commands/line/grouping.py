"""Options in groups: a dataclass whose fields are options of a Typer command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

import typer

from sapcli.commands.line.settings_file import UsedSettings, used_settings
from sapcli.machine.results import reserved

# The name of the parameter by which Typer hands over its context.
_CONTEXT = "typer_context"


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command for Typer whose parameters of a dataclass type stand for that class's fields.

    So a group of options is written once and taken by a command as one value. A field of the type `UsedSettings` is no
    option: it tells which of the command's options a settings file has set. While the command runs, stdout carries its
    result alone.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if not is_dataclass(hint):
            parameters.append(parameter.replace(annotation=hint))
            continue
        groups[parameter.name] = hint
        field_hints = get_type_hints(hint, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field_hints[field.name]
            )
            for field in fields(hint)
            if field_hints[field.name] is not UsedSettings
        ]
    parameters.append(inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    @wraps(command)
    def expanded(**arguments: Any) -> None:
        used = used_settings(arguments.pop(_CONTEXT))
        for name, group in groups.items():
            given = {field.name: arguments.pop(field.name, used) for field in fields(group)}
            arguments[name] = group(**given)
        with reserved():
            command(**arguments)

    parameters.sort(key=lambda parameter: parameter.kind)
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded
