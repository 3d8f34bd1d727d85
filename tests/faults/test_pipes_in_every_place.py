"""Pipes that nobody writes to or reads from, for every option that names a file: a signal ends the run in two seconds.

The options are those of the command tree: what takes a path is tried, so that a new option is too. A run that stands
still is known by its processor time. Where a run does not wait at all, since the file was refused, that is well too.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from support.processes import OPTIONS, Run, start
from support.small_project import Project, run_here

from sapcli.commands.app import app

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SECONDS = 2.0
AT_ONCE = 4
# What stands for a file in the names of options whose values are texts.
FILE_WORDS = ("FILE", "PATH", "DIR", "FOLDER", "CHECKPOINT", "ORIGINAL", "DATA", "RESULT.json")
# Options whose values are texts and name no file ...
TEXTS = {
    *("arch", "arch_arguments", "input_size", "mean", "std", "interpolation", "split", "device", "alpha", "layers"),
    *("skip_layers", "command", "weights", "candidates", "freeze", "pair", "group"),
}
# ... and what is named by them: only that the run gets as far as to open it.
NETWORK = ("--arch", "network.py:tiny", "--workers", "0", "--cache-dir", "cache")
USUAL: dict[str, tuple[str, ...]] = {
    "select": ("model.safetensors", "data", *NETWORK, "-n", "30"),
    "activations": ("model.safetensors", "data", *NETWORK, "-n", "30"),
    "project": ("model.safetensors", "data", *NETWORK, "-n", "30", "--alpha", "1000"),
    "polish": ("model.safetensors", "data", *NETWORK, "--epochs", "1"),
    "noise": ("data", "--kind", "symmetric", "--rate", "0.25", "-o", "labels.csv"),
    "inspect": ("model.safetensors", *NETWORK),
    "eval": ("model.safetensors", "data", *NETWORK),
    "verify": ("model.safetensors",),
    "suspects": ("model.safetensors", "data", *NETWORK),
    "report": ("r.json",),
    "demo": (),
    "env": (),
    "info": (),
    "clear": (),
    "config": (),
}
BESIDE = {("suspects", "apply_to"): ("--apply", "csv"), ("verify", "bases"): ("--input", "model.safetensors")}


@dataclass(frozen=True)
class Place:
    """A file that a command line names: by an option, or by an argument of some position."""

    command: tuple[str, ...]
    name: str
    option: str
    position: int

    @property
    def id(self) -> str:
        """What the test is called."""
        return " ".join([*self.command, self.option or self.name])

    def arguments(self, file: str) -> list[str]:
        """A command line with the file in this place, and a usual one in the others."""
        if not self.command:
            return [self.option, file, "config"]
        command = self.command[-1]
        usual = list(USUAL[command])
        if not self.option:
            usual[self.position : self.position + 1] = [file]
            return [*self.command, *usual]
        beside = BESIDE.get((command, self.name), ())
        return [*self.command, *usual, *beside, self.option, file]


def places(group: Any, path: tuple[str, ...] = ()) -> Iterator[Place]:
    """All that names a file, in the command tree."""
    yield from (Place(path, each.name, each.opts[-1], 0) for each in group.params if names_a_file(each))
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from places(command, (*path, name))
            continue
        position = -1
        for parameter in command.params:
            is_argument = parameter.param_type_name == "argument"
            position += is_argument
            if names_a_file(parameter):
                option = "" if is_argument else parameter.opts[-1]
                yield Place((*path, name), parameter.name, option, position if is_argument else 0)


def names_a_file(parameter: Any) -> bool:
    """Whether a parameter names a file."""
    descriptor = getattr(parameter, "type_descriptor", None)  # Typer's own parameters; older ones are Click's
    kind = repr(parameter.type if descriptor is None else descriptor.annotation)
    if "Path" in kind:
        return True
    if not re.search(r"\bstr\b|String", kind) or parameter.name in TEXTS:
        return False
    assert any(word in (parameter.metavar or "") for word in FILE_WORDS), f"is {parameter.name} a file or a text?"
    return True


PLACES = list(places(typer.main.get_command(app)))


def test_the_places_are_known() -> None:
    """What the tree holds, beside what is typed here: an option that is missed would go untested."""
    names = {place.id for place in PLACES}
    assert {"project --bases", "project --report", "eval --summary", "suspects --html", "verify --input"} <= names
    assert {
        "report result",
        "report --model-card",
        "polish --val",
        "noise --truth",
        "suspects --review",
        "select checkpoint",
        "project data",
        "cache info --cache-dir",
        "demo folder",
        "--config",
    } <= names


def processor_time(group: int) -> float:
    """Seconds of processor time of all processes of a group."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def wait_until_still(runs: list[Run]) -> None:
    """Wait until each run has ended or uses no processor time any more."""
    deadline, still_since = time.monotonic() + 120, time.monotonic()
    before: list[float] = []
    while time.monotonic() - still_since < 0.7:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        now = [processor_time(run.pid) if run.process.is_alive() else -1 for run in runs]
        if any(a != b for a, b in zip(before, now, strict=True)) if before else True:
            still_since = time.monotonic()
        before = now


def end_each(runs: list[tuple[str, Run]]) -> None:
    """Send a signal to one after the other, and see it end in time; those that have ended did so in good order."""
    for (name, run), number in zip(runs, itertools.cycle(STATUS), strict=False):
        was_alive = run.process.is_alive()
        sent = time.monotonic()
        if was_alive:
            os.kill(run.pid, number)
        status = run.wait(30)
        assert time.monotonic() - sent < SECONDS or not was_alive, name
        assert status in ((STATUS[number], 0, 1, 2) if was_alive else (0, 1, 2)), f"{name}: {status} {run.said()}"
        assert "Traceback" not in run.said(), name


@pytest.fixture
def folders(original: Project, tmp_path: Path) -> list[Path]:
    """Copies of the project."""
    made = []
    for number in range(AT_ONCE):
        folder = tmp_path / str(number)
        shutil.copytree(original.folder, folder)
        made.append(folder)
    return made


def batches(chosen: list[Place]) -> list[list[Place]]:
    return [chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE)]


SILENT = batches(PLACES)
# Where nobody is at the other end, one command for each option will do.
ALONE = batches(list({place.option or place.name: place for place in PLACES}.values()))


@pytest.mark.parametrize(
    ("chosen", "has_writer"), [*((each, True) for each in SILENT), *((each, False) for each in ALONE)]
)
def test_a_pipe_in_every_place(folders: list[Path], chosen: list[Place], has_writer: bool) -> None:
    """A pipe that somebody has open, who neither writes nor reads; and one that nobody has."""
    runs, held = [], []
    for place, folder in zip(chosen, folders, strict=False):
        # What a file is called decides what some options take it for.
        pipe = folder / {"report": "pipe.html", "result": "pipe.json"}.get(place.name, "pipe")
        os.mkfifo(pipe)
        if has_writer:
            held.append(os.open(pipe, os.O_RDWR))
        runs.append((place.id, start(folder, place.arguments(pipe.name))))
    wait_until_still([run for _, run in runs])
    end_each(runs)
    for descriptor in held:
        os.close(descriptor)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full"])
def test_a_device_in_every_place(project: Project, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Nothing is read from it: the run ends by itself."""
    monkeypatch.chdir(project.folder)
    for place in PLACES:
        if place.command == ("demo",):
            continue  # it makes its own project first
        name = device
        if place.name in ("report", "result"):
            name = f"device{'.html' if place.name == 'report' else '.json'}"
            Path(name).unlink(missing_ok=True)
            Path(name).symlink_to(device)
        outcome = run_here(*place.arguments(name))
        assert outcome.status in (0, 1, 2), f"{place.id}: {outcome.stderr}"
        assert "Traceback" not in outcome.stderr, place.id


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_in_place_of_images(project: Project, kind: str) -> None:
    """In a class folder, in a label file and in a list: named and left out, and waited for by nobody."""
    for folder in ("train", "val"):
        for name in ("blue/00.png", "red/01.png"):
            image = project.data / folder / name
            image.unlink()
            os.mkfifo(image) if kind == "pipe" else image.symlink_to("/dev/zero")
    (project.folder / "labels.csv").write_text("path,label\ntrain/blue/00.png,red\ntrain/blue/01.png,red\n")
    (project.folder / "list.txt").write_text("train/blue/00.png\ntrain/blue/01.png\ntrain/green/01.png\n")
    arguments = ["project", "model.safetensors", "data", *OPTIONS, "--labels", "labels.csv", "-o", "out.safetensors"]
    more = ["--trusted", "list.txt", "--report", "r.html"]
    runs = [start(project.folder, [*arguments, "--workers", "2"])]
    assert runs[0].wait(60) in (0, 1), runs[0].said()
    runs.append(start(project.folder, [*arguments, *more, "--force", "--workers", "0"]))
    assert runs[1].wait(60) in (0, 1), runs[1].said()
    assert not any("Traceback" in run.said() for run in runs)
