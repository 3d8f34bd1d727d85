"""The terminal: the only module that writes to it.

The result of a command goes to stdout; everything that is said to people goes to stderr. Bars are drawn only on a
terminal and leave one line a stage; a log file gets those lines alone.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from sapcli.errors import SapError
from sapcli.machine.events import Events
from sapcli.machine.results import are_shown, results
from sapcli.machine.text import escaped, in_github_actions, json_without_commands, printable, without_commands

# What tells that a program watches and no person: those of agents, of CI in general, and of services that set it not.
_UNATTENDED = ("AI_AGENT", "AGENT", "CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD", "JENKINS_URL", "TEAMCITY_VERSION")


def is_unattended() -> bool:
    """Whether the environment tells that no person watches."""
    return any(os.environ.get(name, "").lower() not in ("", "0", "false", "no") for name in _UNATTENDED)


class _Stderr(Console):
    """Where people are told what goes on; the work goes on when nobody listens any more.

    Where no person watches, there are plain lines alone, whatever stderr is.
    """

    def __init__(self) -> None:
        terminal = False if is_unattended() else None
        super().__init__(stderr=True, highlight=False, soft_wrap=True, force_terminal=terminal)

    def on_broken_pipe(self) -> None:
        """Say nothing from now on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Terminal:
    """What a command says to people, on stderr; a `Progress` for the stages.

    Args:
        quiet: Say nothing but errors.
        events: Programs that are told too, whether quiet or not.
    """

    def __init__(self, quiet: bool = False, events: Events | None = None) -> None:
        self._quiet = quiet
        self._events = events
        self._console = _Stderr()
        self._bars: Bars | None = None
        self._depth = 0
        self._warned: set[str] = set()

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """A bar while the stage runs, one line when it is done. A stage within a stage leaves no line."""
        started = time.perf_counter()
        done = 0
        task = self._open_bar(name, total, unit)
        self._send("stage", name=name, total=total, unit=unit, depth=self._depth)
        self._depth += 1

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self._events is not None:
                self._events.progress(name, done)
            if self._bars is not None and task is not None:
                elapsed = time.perf_counter() - started
                rate = f"{done / elapsed:,.0f} {unit}/s" if elapsed > 0 else ""
                self._bars.update(task, advance=count, rate=rate)

        finished = False
        try:
            yield advance
            finished = True
        finally:
            self._depth -= 1
            self._close_bar(task)
            if finished:
                self._send("done", name=name, done=done, seconds=round(time.perf_counter() - started, 3))
            if finished and self._depth == 0:
                count = f"{done:,} {unit}, " if done else ""
                self._say(f"{name}: {count}{time.perf_counter() - started:.1f} s")

    def note(self, text: str) -> None:
        """Say a fact about the run."""
        self._send("note", text=text)
        self._say(text)

    def warn(self, text: str) -> None:
        """Say something that the user ought to know, once."""
        if text in self._warned:
            return
        self._warned.add(text)
        self._send("warning", text=text)
        if not in_github_actions():
            self._say(f"warning: {text}", style="yellow")
        elif not self._quiet:
            self._console.print(Text(annotation("warning", text)))

    def rows(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """A small table of facts."""
        self._send("summary", title=title, rows=dict(rows))
        if not self._quiet:
            self._console.print(Text(without_commands(printable(title)), style="bold"))
            width = max((len(name) for name, _ in rows), default=0)
            for name, text in rows:
                self._console.print(Text(without_commands(f"  {name:<{width}}  {printable(text)}")))

    def next(self, text: str) -> None:
        """Say what usually comes next, to a person at a terminal alone."""
        if self._console.is_terminal:
            self._say(text, style="dim")

    def _send(self, event: str, **fields: object) -> None:
        if self._events is not None:
            self._events.send(event, **fields)

    def _say(self, text: str, style: str = "") -> None:
        if not self._quiet:
            self._console.print(Text(without_commands(printable(text)), style=style))

    def _open_bar(self, name: str, total: int | None, unit: str) -> TaskID | None:
        if self._quiet or not self._console.is_terminal:
            return None
        if self._bars is None:
            self._bars = Bars(
                # A long name is cut off, so that a bar is one line on any terminal.
                TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        return self._bars.add_task(escape(printable(name)), total=total, rate="", unit=unit)

    def _close_bar(self, task: TaskID | None) -> None:
        if self._bars is None or task is None:
            return
        self._bars.remove_task(task)
        if self._depth == 0:
            self._bars.stop()
            self._bars = None


def print_error(error: SapError) -> None:
    """The two lines of an error on stderr: what is wrong, and what to do."""
    console = _Stderr()
    if in_github_actions():
        console.print(Text(annotation("error", _sentence(error.message))))
    else:
        console.print(Text.assemble(("error: ", "bold red"), _sentence(error.message)))
    console.print(Text.assemble(("hint:  ", "bold"), without_commands(_sentence(error.hint))))


def annotation(kind: str, text: str) -> str:
    """A workflow command of GitHub Actions; what would end it, or be one itself, is written as it asks."""
    return f"::{kind} title=sap::" + without_commands(printable(text)).replace("%", "%25")


def _sentence(text: str) -> str:
    """`text` in one printable line, written alike whoever wrote it: no full stop at the end."""
    return printable(text).removesuffix(".")


def is_exact() -> bool:
    """Whether stdout is read by a program, or is a file: a terminal and the log of a job obey what is in a text."""
    if are_shown():
        return False
    try:
        return not in_github_actions() or stat.S_ISREG(os.fstat(results().fileno()).st_mode)
    except (OSError, ValueError):  # no file
        return not in_github_actions()


def harmless(text: str, *, is_json: bool = False) -> str:
    """A text for stdout that cannot steer a terminal or the log of a job, where it goes to one."""
    if is_exact():
        return text
    if is_json:
        shown = "".join(
            character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
            for character in text
        )
        return json_without_commands(shown)
    return "\n".join(without_commands(escaped(line)) for line in text.split("\n"))


def print_result(text: str) -> None:
    """A line of a command's result, on stdout, as bytes: names that are not UTF-8 go through to programs unchanged."""
    sys.stdout.flush()
    stream = results()
    stream.write(harmless(text).encode("utf-8", "surrogateescape") + b"\n")
    stream.flush()
