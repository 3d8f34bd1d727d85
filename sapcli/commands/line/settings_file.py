"""Settings that are not typed each time: from `SAP_*` environment variables and from a file in the working folder.

A flag goes before an environment variable, that before the file, and that before the built-in default. The file is
`sap.toml`, or the table `[tool.sap]` of `pyproject.toml`. A setting has the name of its option without the dashes; at
the top it holds for every command that has the option, in a table with the name of a command for that command alone.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from sapcli.errors import UsageError

_NAMES = "its names are those of the options without the dashes; see `sap config`"


@dataclass(frozen=True)
class SettingsFile:
    """A file with settings, and what it holds."""

    name: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Setting:
    """An option of a command as it would be used now.

    Attributes:
        name: The option without its dashes.
        value: Its value; `None` where it has none.
        source: Where that comes from, in words.
    """

    name: str
    value: object
    source: str


def find_settings(folder: Path) -> SettingsFile | None:
    """The settings file of a folder: `sap.toml`, else a `pyproject.toml` with `[tool.sap]`.

    Raises:
        UsageError: It is not TOML.
    """
    own = folder / "sap.toml"
    if own.is_file():
        return SettingsFile(own.name, _read(own))
    project = folder / "pyproject.toml"
    table = _read(project).get("tool", {}).get("sap") if project.is_file() else None
    return None if table is None else SettingsFile(f"{project.name} [tool.sap]", table)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file.name} cannot be read: {error}", "repair it, or run in another folder") from error


def default_map(file: SettingsFile, group: Any) -> dict[str, Any]:
    """The file's settings as defaults of every command: parameters by command, nested for groups of commands.

    Args:
        file: The settings.
        group: Typer's command group.

    Raises:
        UsageError: A name is that of no option.
    """
    shared = {_plain(name): value for name, value in file.values.items() if name not in group.commands}
    used: set[str] = set()
    defaults = _defaults(file, group, shared, file.values, used)
    for name in file.values:
        if name not in group.commands and _plain(name) not in used:
            raise UsageError(f"{file.name}: {name!r} is no setting", _NAMES)
    return defaults


def _defaults(
    file: SettingsFile, group: Any, shared: Mapping[str, object], tables: Mapping[str, object], used: set[str]
) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for name, command in group.commands.items():
        own = tables.get(name, {})
        if not isinstance(own, Mapping):
            raise UsageError(f"{file.name}: {name!r} is a command", f"write its settings under [{name}]")
        if hasattr(command, "commands"):
            defaults[name] = _defaults(file, command, shared, own, used)
            continue
        options = {_plain(option): parameter for option, parameter in _options(command)}
        for key in own:
            if _plain(key) not in options:
                raise UsageError(f"{file.name}: `sap {name}` has no setting {key!r}", _NAMES)
        merged = dict(shared) | {_plain(key): value for key, value in own.items()}
        used |= shared.keys() & options.keys()
        defaults[name] = {
            parameter.name: _as_default(merged[key], parameter) for key, parameter in options.items() if key in merged
        }
    return defaults


def effective_settings(context: Any, command: str, file: SettingsFile | None) -> list[Setting]:
    """The options of a command as they would be used without flags.

    Args:
        context: Typer's context of the whole program.
        command: The command's name.
        file: The settings file, to be named.

    Raises:
        UsageError: There is no such command.
    """
    group = context.command
    found = group.commands.get(command)
    if found is None or hasattr(found, "commands"):
        names = ", ".join(name for name, other in group.commands.items() if not hasattr(other, "commands"))
        raise UsageError(f"there is no command {command!r}", f"the commands are {names}")
    used = found.make_context(command, [], parent=context, resilient_parsing=True)
    settings = []
    for option, parameter in _options(found):
        # The kind of a source is an enum of Click, of which only the name is known here.
        kind = used.get_parameter_source(parameter.name).name
        variable = parameter.envvar if isinstance(parameter.envvar, str) else ""
        source = {"ENVIRONMENT": variable, "DEFAULT_MAP": "" if file is None else file.name}.get(kind, "default")
        settings.append(Setting(option, used.params.get(parameter.name), source))
    return settings


def render_settings(command: str, settings: list[Setting]) -> str:
    """The settings as a table of a settings file, with the source of each; those without a value as comments."""
    lines = [f"[{command}]"]
    for setting in settings:
        if setting.value in (None, [], ()):
            lines.append(f"# {setting.name} =")
        else:
            lines.append(f"{setting.name} = {_toml(setting.value)}  # {setting.source}")
    return "\n".join(lines) + "\n"


def _options(command: Any) -> Iterator[tuple[str, Any]]:
    """The options of a command, by their long names without dashes."""
    for parameter in command.params:
        names = [name for name in parameter.opts if name.startswith("--")]
        if names and parameter.name != "help":
            yield names[0].removeprefix("--"), parameter


def _plain(name: str) -> str:
    return name.replace("_", "-")


def _as_default(value: object, parameter: Any) -> object:
    """A value of the file as the option takes it: `mean = [0.5, 0.5, 0.5]` is `--mean 0.5,0.5,0.5`."""
    if isinstance(value, list) and not parameter.multiple:
        return ",".join(map(str, value))
    return [value] if parameter.multiple and not isinstance(value, list) else value


def _toml(value: object) -> str:
    if isinstance(value, Enum):
        value = value.value
    elif isinstance(value, Path):
        value = str(value)
    # JSON's strings, numbers, booleans and arrays are TOML's too.
    return json.dumps(value, ensure_ascii=False, default=str)
