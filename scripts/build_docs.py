"""Write `docs/commands.md`, the man page `docs/sap.1` and `docs/schemas/` from the commands themselves.

Nothing in them depends on the terminal, on the machine or on the time. Run `make docs` after a change of an option, of
a help text, of the version or of what a command writes as JSON.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from sapcli import __version__
from sapcli.commands.app import app
from sapcli.commands.line.options import RUN
from sapcli.errors import ExitStatus
from sapcli.reports.schemas import NAMES, json_schema

_NO_PANEL = "Options"
_WORDS = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}
_ABOUT = (
    "Written by `make docs` from the commands' own help. The environment sets an option by the variable that is named"
    " beside it, a settings file by its long name without the dashes; see the [README](../README.md#commands). What"
    " `--format json` writes is described by the [schemas](schemas/)."
)
_WHERE_FROM = (
    "Every option is set by the variable that is named beside it. A flag goes before a variable, that before the"
    " settings file, and that before the default."
)
_STATUSES = {
    ExitStatus.DONE: "done",
    ExitStatus.ERROR: "an error about the input or the machine",
    ExitStatus.USAGE: "wrong usage",
    ExitStatus.GATE: "a quality gate was not met",
    ExitStatus.HUNG_UP: "hung up",
    ExitStatus.INTERRUPTED: "interrupted",
    ExitStatus.TERMINATED: "terminated",
}


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command.

    Attributes:
        names: An option's, with their dashes; none of an argument.
        value: What stands for the value: `FILE`, `loss|random`; empty for a flag.
        help: What it does.
        panel: The heading that the help has it under.
        default: What holds without it; empty where that says nothing.
        variable: The environment variable that sets it; empty without one.
    """

    names: tuple[str, ...]
    value: str
    help: str
    panel: str = _NO_PANEL
    default: str = ""
    variable: str = ""

    @property
    def usage(self) -> str:
        """How it is written."""
        return " ".join(filter(None, [", ".join(self.names), self.value]))


@dataclass(frozen=True)
class Command:
    """A command: how it is called, and its help as paragraphs."""

    name: str
    paragraphs: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    @property
    def arguments(self) -> tuple[Parameter, ...]:
        """What stands there without a name."""
        return tuple(parameter for parameter in self.parameters if not parameter.names)

    @property
    def options(self) -> tuple[Parameter, ...]:
        """What has a name."""
        return tuple(parameter for parameter in self.parameters if parameter.names)

    @property
    def usage(self) -> str:
        """The command line, without the single options."""
        return " ".join([self.name, *(argument.value for argument in self.arguments), "[OPTIONS]"])

    @property
    def example(self) -> str:
        """The command line that the help shows; empty without one."""
        return next((text.removeprefix("Example: ") for text in self.paragraphs if text.startswith("Example: ")), "")

    @property
    def text(self) -> tuple[str, ...]:
        """The paragraphs but for the example."""
        return tuple(text for text in self.paragraphs if not text.startswith("Example: "))

    def panels(self) -> dict[str, list[Parameter]]:
        """The options under their headings, in the order in which these come; those of the run are the last."""
        panels: dict[str, list[Parameter]] = {}
        for option in self.options:
            panels.setdefault(option.panel, []).append(option)
        return dict(sorted(panels.items(), key=lambda panel: panel[0] == RUN))


def commands(program: typer.Typer, prefix: str = "sap") -> Iterator[Command]:
    """The commands of a program, those of its groups too, in the order of its help."""
    for info in program.registered_commands:
        assert info.callback is not None
        name = info.name or info.callback.__name__.replace("_", "-")
        yield Command(f"{prefix} {name}", _paragraphs(info.callback.__doc__), tuple(parameters(info.callback)))
    for group in program.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{prefix} {group.name}")


def parameters(command: Callable[..., Any]) -> Iterator[Parameter]:
    """The arguments and options of a command's function."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if get_origin(hints[name]) is not Annotated:
            continue
        kind, *told = get_args(hints[name])
        info = next(each for each in told if isinstance(each, ArgumentInfo | OptionInfo))
        value = info.metavar or _word(kind)
        optional = parameter.default is not inspect.Parameter.empty
        if isinstance(info, ArgumentInfo):
            several = "..." if get_origin(kind) is list else ""
            yield Parameter((), f"[{value}]" if optional else value + several, info.help or "")
            continue
        # Typer finds the first name in the place of a default, since that stands in the signature.
        first = (info.default,) if isinstance(info.default, str) else ()
        declared = (*first, *(info.param_decls or ())) or (f"--{name.replace('_', '-')}",)
        # A flag and its opposite are declared as one.
        names = sorted((part.strip() for each in declared for part in each.split("/")), key=len)
        variable = info.envvar if isinstance(info.envvar, str) else ""
        panel = info.rich_help_panel if isinstance(info.rich_help_panel, str) else _NO_PANEL
        yield Parameter(tuple(names), value, info.help or "", panel, _default(parameter.default), variable)


def _word(kind: Any) -> str:
    """What stands for a value of a type; nothing for a flag."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(each.value) for each in kind)
    return "" if kind is bool else _WORDS[kind]


def _default(value: object) -> str:
    if value is inspect.Parameter.empty or value is None or value is False:
        return ""
    return str(value.value if isinstance(value, Enum) else value)


def _paragraphs(text: str | None) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n"))


def reference() -> str:
    """`docs/commands.md`."""
    every = tuple(commands(app))
    lines = [
        "# Commands",
        "",
        *textwrap.wrap(_ABOUT, 130, break_long_words=False, break_on_hyphens=False),
        "",
        *(f"- [`{command.name}`](#{command.name.replace(' ', '-')})" for command in every),
        "",
        "Before the command stand the options of the program itself:",
        "",
        *_table(tuple(parameters(_root()))),
        "",
        "| status | meaning |",
        "|---|---|",
        *(f"| {int(status)} | {meaning} |" for status, meaning in _STATUSES.items()),
        "",
    ]
    for command in every:
        lines += [f"## {command.name}", "", "```sh", command.usage, "```", ""]
        for text in command.text:
            lines += [text, ""]
        if command.example:
            lines += ["```sh", command.example, "```", ""]
        if command.arguments:
            lines += ["| argument | |", "|---|---|"]
            lines += [f"| {_code(argument.value)} | {_cell(argument.help)} |" for argument in command.arguments]
            lines += [""]
        for panel, options in command.panels().items():
            lines += [f"**{panel}**", "", *_table(tuple(options)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(options: tuple[Parameter, ...]) -> list[str]:
    rows = ["| option | | default | environment |", "|---|---|---|---|"]
    for option in options:
        default, variable = (_code(text) if text else "" for text in (option.default, option.variable))
        rows.append(f"| {_code(option.usage)} | {_cell(option.help)} | {default} | {variable} |")
    return rows


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def man_page() -> str:
    """`docs/sap.1`: one page for the program and all its commands."""
    about, *more = _paragraphs(str(app.info.help))
    every = tuple(commands(app))
    lines = [
        r".\" Written by `make docs` from the commands\(aq own help.",
        f'.TH SAP 1 "" "sap {__version__}" "User Commands"',
        ".SH NAME",
        rf"sap \- {_roff(about[0].lower() + about[1:].removesuffix('.'))}",
        ".SH SYNOPSIS",
        *(_synopsis(command) for command in every),
        ".SH DESCRIPTION",
        *_joined([text for text in more if not text.startswith("Start with: ")]),
        ".SH OPTIONS",
        *_options(tuple(parameters(_root()))),
        ".SH COMMANDS",
    ]
    for command in every:
        lines += [f".SS {_roff(command.name)}", *_joined(command.text)]
        for argument in command.arguments:
            lines += [".TP", rf"\fI{_roff(argument.value)}\fR", _roff(argument.help)]
        lines += _options(tuple(option for options in command.panels().values() for option in options))
        if command.example:
            lines += [".PP", "Example:", ".PP", ".RS 4", rf"\fB{_roff(command.example)}\fR", ".RE"]
    lines += [".SH EXIT STATUS"]
    for status, meaning in _STATUSES.items():
        lines += [".TP", rf"\fB{int(status)}\fR", _roff(meaning)]
    lines += [
        ".SH ENVIRONMENT",
        *_joined(
            [
                _WHERE_FROM,
            ]
        ),
    ]
    for name, meaning in {
        "SAP_CONFIG": "A settings file.",
        "SAP_CACHE": "The folder of intermediate artifacts.",
        "NO_COLOR": "No colours.",
    }.items():
        lines += [".TP", rf"\fB{_roff(name)}\fR", _roff(meaning)]
    lines += [".SH FILES"]
    for name, meaning in {
        "sap.toml": "Settings of the working folder.",
        "pyproject.toml": "The same in its table [tool.sap], where there is no sap.toml.",
    }.items():
        lines += [".TP", rf"\fI{_roff(name)}\fR", _roff(meaning)]
    return "\n".join(lines) + "\n"


def _synopsis(command: Command) -> str:
    return rf"\fB{_roff(command.name)}\fR{_roff(command.usage.removeprefix(command.name))}" + "\n.br"


def _joined(texts: list[str] | tuple[str, ...]) -> list[str]:
    return [line for text in texts for line in (".PP", _roff(text))]


def _options(options: tuple[Parameter, ...]) -> list[str]:
    lines = []
    for option in options:
        names = ", ".join(rf"\fB{_roff(name)}\fR" for name in option.names)
        value = rf" \fI{_roff(option.value)}\fR" if option.value else ""
        told = [f"The default is {option.default}."] if option.default else []
        told += [f"Environment: {option.variable}."] if option.variable else []
        lines += [".TP", names + value, _roff(" ".join([option.help, *told]))]
    return lines


def _roff(text: str) -> str:
    """Text as roff shows it as it stands."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return rf"\&{escaped}" if escaped.startswith(".") else escaped


def _root() -> Callable[..., Any]:
    """The function that has the options of the program itself."""
    assert app.registered_callback is not None
    assert app.registered_callback.callback is not None
    return app.registered_callback.callback


def pages() -> Mapping[str, str]:
    """Every file by its path below `docs/`."""
    schemas = {f"schemas/{name}.schema.json": json.dumps(json_schema(name), indent=2) + "\n" for name in NAMES}
    return {"commands.md": reference(), "sap.1": man_page(), **schemas}


def main() -> None:
    """Write them, and remove schemas of what is not written any more."""
    docs = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs"
    written = pages()
    (docs / "schemas").mkdir(parents=True, exist_ok=True)
    for stale in (docs / "schemas").iterdir():
        if f"schemas/{stale.name}" not in written and re.fullmatch(r"[\w-]+\.schema\.json", stale.name):
            stale.unlink()
    for name, text in written.items():
        (docs / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
