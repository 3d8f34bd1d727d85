"""Settings that are not typed each time: from `SAP_*` environment variables and from a file.

A flag goes before an environment variable, that before the file, and that before the built-in default. The file is the
one that `--config` names, else `sap.toml` of the working folder, else the table `[tool.sap]` of its `pyproject.toml`. A
setting has the name of its option without the dashes; at the top it holds for every command that has the option, in a
table with the name of a command for that command alone.

A file that lies in the working folder may have come with the data. It decides nothing outside of that folder: not what
is written and where, nor which files elsewhere are read, and no code runs because of it. All that takes `--config`.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from sapcli.errors import ArchitectureError, SapError, UsageError
from sapcli.machine.reading import read_input
from sapcli.settings import names_own_code

_NAMES = "its names are those of the options without the dashes; see `sap config`"
# A settings file is written by hand; what is larger is none.
_LARGEST = 1 << 20
# No key has so many parts; the parser takes the square of their number.
_LONG_KEY = re.compile(r"""(?:[\w"'-]+[ \t]*\.[ \t]*){100}""")

# What a file that the user did not name may not say: what is written, and where ...
_WRITING = frozenset(
    {
        "output",
        "force",
        "report",
        "summary",
        "html",
        "review",
        "estimate",
        "apply",
        "apply-to",
        "cache-dir",
        "progress-json",
        "suggest-class-map",
        "model-card",
    }
)
# ... and what it may only say of files inside of the working folder.
_READING = frozenset({"labels", "class-map", "val", "bases", "trusted", "forget", "truth", "baseline", "input"})


@dataclass(frozen=True)
class SettingsFile:
    """A file with settings, and what it holds.

    Attributes:
        name: What messages call it.
        values: The settings.
        path: The file itself.
        named: Whether the user has named it, with `--config` or in the environment.
    """

    name: str
    values: Mapping[str, object]
    path: Path = Path()
    named: bool = False


@dataclass(frozen=True)
class UsedSettings:
    """Which settings of a command come from a file.

    Attributes:
        file: What the file is called; empty where there is none.
        names: The options that it sets.
        left_out: Those that it may not set.
        path: The file itself.
    """

    file: str = ""
    names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    path: Path | None = None


NO_SETTINGS = UsedSettings()


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
    if _is_file(own):
        return SettingsFile(own.name, _read(own), own)
    project = folder / "pyproject.toml"
    table = _tool_table(project, _read(project)) if _is_file(project) else None
    return None if table is None else SettingsFile(f"{project.name} [tool.sap]", table, project)


def named_settings(path: Path) -> SettingsFile:
    """The settings file that the user names: of a `pyproject.toml`, its table `[tool.sap]`.

    Raises:
        UsageError: There is no such file, it is not TOML, or it has no such table.
    """
    content = _read(path)
    if path.name != "pyproject.toml":
        return SettingsFile(str(path), content, path, named=True)
    table = _tool_table(path, content)
    if table is None:
        raise UsageError(f"{path} has no table [tool.sap]", "write the settings there, or name a sap.toml")
    return SettingsFile(f"{path} [tool.sap]", table, path, named=True)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the working folder was removed, or may not be looked into
        return False


def _tool_table(file: Path, content: Mapping[str, Any]) -> Mapping[str, object] | None:
    tools = content.get("tool")
    table = tools.get("sap") if isinstance(tools, Mapping) else None
    if table is not None and not isinstance(table, Mapping):
        raise UsageError(f"{file.name}: [tool.sap] is no table", "write the settings under [tool.sap]")
    return table


def _read(file: Path) -> dict[str, Any]:
    hint = "repair it, or run in another folder"
    try:
        text = read_input(file, _LARGEST).decode("utf-8")
        if _LONG_KEY.search(text):
            raise ValueError("a key has more than 100 parts")
        return tomllib.loads(text)
    except SapError as error:
        raise UsageError(error.message, error.hint) from error
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it is nested too deeply"
        raise UsageError(f"{file.name} cannot be read: {reason}", hint) from error


def default_map(file: SettingsFile, group: Any) -> dict[str, Any]:
    """The file's settings as defaults of every command: parameters by command, nested for groups of commands.

    What the file may not say, since the user has not named it, is left out.

    Args:
        file: The settings.
        group: Typer's command group.

    Raises:
        UsageError: A name is that of no option, or a value is none that an option can have.
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
            parameter.name: _as_default(file, key, merged[key], parameter)
            for key, parameter in options.items()
            if key in merged and _may_say(file, key, merged[key])
        }
    return defaults


def _may_say(file: SettingsFile, name: str, value: object) -> bool:
    """Whether a setting is taken from this file."""
    if file.named or name not in _WRITING | _READING:
        return True
    return name in _READING and all(map(_is_inside, value if isinstance(value, list) else [value]))


def _is_inside(value: object) -> bool:
    """Whether a path leads to a place in the working folder, through links too."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        return Path(os.path.realpath(value)).is_relative_to(os.path.realpath(os.curdir))
    except OSError:
        return False


def used_settings(context: Any) -> UsedSettings:
    """Which settings of the command of a context come from a file.

    Raises:
        ArchitectureError: A file that the user did not name says which code runs.
    """
    file = context.find_root().obj
    if not isinstance(file, SettingsFile):
        return UsedSettings()
    names, left_out = [], []
    table = file.values.get(context.info_name)
    said = {_plain(name) for name in (*file.values, *(table if isinstance(table, Mapping) else ()))}
    for name, parameter in _options(context.command):
        source = context.get_parameter_source(parameter.name)
        kind = "" if source is None else source.name
        value = context.params.get(parameter.name)
        if kind == "DEFAULT_MAP":
            names.append(name)
            if name == "arch" and not file.named and isinstance(value, str) and names_own_code(value):
                raise ArchitectureError(
                    f"{file.name} names the code {value!r}, which only runs if you say so",
                    f"Look at it, then give --arch {value!r}.",
                )
        elif name in said and kind == "DEFAULT":
            left_out.append(name)
    return UsedSettings(file.name, tuple(names), tuple(left_out), file.path)


def effective_settings(context: Any, command: str) -> list[Setting]:
    """The options of a command as they would be used without flags.

    Args:
        context: Typer's context of the whole program, which holds the settings file.
        command: The command's name.

    Raises:
        UsageError: There is no such command.
    """
    group, file = context.command, context.obj
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


def _as_default(file: SettingsFile, name: str, value: object, parameter: Any) -> object:
    """A value of the file as the option takes it: `mean = [0.5, 0.5, 0.5]` is `--mean 0.5,0.5,0.5`.

    Raises:
        UsageError: It is a table, a date, or another thing that no option can be.
    """
    values = value if isinstance(value, list) else [value]
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{file.name}: {name!r} is {_kind(value)}, expected true or false", _NAMES)
        return value
    texts = []
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise UsageError(f"{file.name}: {name!r} is {_kind(each)}, expected a text or a number", _NAMES)
        try:
            texts.append(str(each))
        except ValueError as error:  # a number of thousands of digits, written in another base
            raise UsageError(f"{file.name}: {name!r} is too large a number", _NAMES) from error
        if "\0" in texts[-1]:
            raise UsageError(f"{file.name}: {name!r} holds a null character", _NAMES)
    if parameter.multiple:
        return texts
    return ",".join(texts) if isinstance(value, list) else texts[0]


def _kind(value: object) -> str:
    """What a value of a TOML file is, in words."""
    kinds = {dict: "a table", list: "a list", bool: "true or false", str: "a text", int: "a number", float: "a number"}
    return kinds.get(type(value), "a date or a time")


def _toml(value: object) -> str:
    if isinstance(value, Enum):
        value = value.value
    elif isinstance(value, Path):
        value = str(value)
    # JSON's strings, numbers, booleans and arrays are TOML's too.
    return json.dumps(value, ensure_ascii=False, default=str)
