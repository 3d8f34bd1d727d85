"""Names and texts from files that are made to steer what shows them: a terminal, the log of a job, a list of lines."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.small_project import Outcome, Project, make_project, run_here
from support.untouched import inputs_untouched

OPTIONS = ("--arch", "network.py:tiny", "--workers", "0")
NAMES = [
    "a\n/home/user/precious.png",
    "b\x1b]0;owned\x07\x1b[31m.png",
    "c\u202egnp.png",
    "d\u2028\u200b.png",
    "e\x85\x9b1m.png",
]
COMMAND = "##[set-output name=accuracy;]99.png"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project, with images in the wrong folder that have such names."""
    project = make_project(tmp_path_factory.mktemp("original") / "project")
    train = project.data / "train"
    for name in [*NAMES, COMMAND, "::set-output name=accuracy::99.png"]:
        place = train / "red" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(train / "blue" / "01.png", place)
    return project


@pytest.fixture
def project(original: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy, as the working folder."""
    shutil.copytree(original.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")


def suspects(*more: str) -> Outcome:
    """`sap suspects` of the project; it succeeds."""
    outcome = run_here("suspects", "model.safetensors", "data", *OPTIONS, *more)
    assert outcome.status == 0, outcome.stderr
    return outcome


def obeyed(text: bytes) -> list[bytes]:
    """The lines that GitHub's runner takes for commands (actions/runner, ActionCommand.cs)."""
    lines = text.splitlines()
    return [
        line
        for line in lines
        if (line.lstrip().startswith(b"::") and b"title=sap::" not in line) or b"##[" in line or b"::" in line[30:]
    ]


def test_a_list_of_paths_has_one_line_a_path(project: Project) -> None:
    listed = suspects("--format", "paths").stdout.decode()
    paths = [json.loads(line)["path"] for line in suspects().stdout.splitlines()]
    lines = listed.removesuffix("\n").split("\n")
    assert len(lines) == len(paths)
    assert all(line.startswith("train/") and line.isprintable() for line in lines)
    assert "train/red/a\\n/home/user/precious.png" in lines
    suspects("--format", "paths", "-o", "list.txt")
    assert Path("list.txt").read_text() == listed


def test_null_bytes_part_exact_paths(project: Project) -> None:
    exact = suspects("-0").stdout
    paths = [json.loads(line)["path"] for line in suspects().stdout.splitlines()]
    assert exact == "".join(f"{path}\0" for path in paths).encode()
    assert all((project.data / path).is_file() for path in exact.decode().split("\0")[:-1])
    outcome = run_here(
        *("project", "model.safetensors", "data", *OPTIONS, "-n", "30", "--forget", "-", "-o", "out"), stdin=exact
    )
    assert outcome.status == 0, outcome.stderr
    suspects("--null", "-o", "list")
    assert Path("list").read_bytes() == exact


def test_csv_for_programs_is_exact(project: Project) -> None:
    rows = list(csv.DictReader(io.StringIO(suspects("--format", "csv").stdout.decode(), newline="")))
    assert {f"train/red/{name}" for name in NAMES} <= {row["path"] for row in rows}


@pytest.mark.parametrize("form", ["jsonl", "csv", "paths"])
def test_a_terminal_obeys_nothing(project: Project, form: str) -> None:
    main, terminal = pty.openpty()
    arguments = ["suspects", "model.safetensors", "data", *OPTIONS, "--format", form]
    program = [sys.executable, "-P", "-m", "sapcli", *arguments]
    environment = os.environ | {"TERM": "xterm"}
    with (
        inputs_untouched(Path(), arguments),
        subprocess.Popen(program, stdout=terminal, stderr=subprocess.DEVNULL, env=environment) as process,
    ):
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(main, 1 << 16):
                shown += piece
        except OSError:  # its end, on Linux
            pass
    assert process.returncode == 0
    lines = shown.decode().replace("\r\n", "\n").split("\n")
    assert all(line.isprintable() for line in lines), lines
    assert any("train/red/a\\n/home/user/precious.png" in line for line in lines)


@pytest.mark.parametrize("form", ["jsonl", "csv", "paths"])
def test_the_log_of_a_job_obeys_nothing(project: Project, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    plain = suspects("--format", form)
    assert COMMAND.encode() in plain.stdout
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    shown = suspects("--format", form)
    assert not obeyed(shown.stdout)
    assert not obeyed(shown.stderr.encode())
    if form == "jsonl":
        assert list(map(json.loads, shown.stdout.splitlines())) == list(map(json.loads, plain.stdout.splitlines()))


def test_a_file_is_exact_in_a_job_too(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    suspects("--format", "csv", "-o", "plain.csv")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    suspects("--format", "csv", "-o", "job.csv")
    assert Path("job.csv").read_bytes() == Path("plain.csv").read_bytes()


def test_neither_stream_of_any_command_steers_a_job(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    model = "m##[set-output name=a;]1 ::error::x.safetensors"
    save_file(load_file("model.safetensors"), model, {"note": "x ##[error]y", "::add-mask::x": "1"})
    Path("config.json").write_text(json.dumps({"architecture": "x:##[set-output name=accuracy;]99.9 ::error::z"}))
    commands: list[tuple[str, ...]] = [
        ("inspect", model),
        ("eval", model, "data"),
        ("eval", model, "data", *OPTIONS),
        ("select", model, "data", *OPTIONS, "-n", "30"),
        ("activations", model, "data", *OPTIONS, "-n", "30", "-o", "::warning::b##[x]"),
        ("project", model, "data", *OPTIONS, "-n", "30", "--report", "##[r]::x::.md", "--summary", "##[s]::x::"),
        ("project", model, "data", *OPTIONS, "-n", "30", "--layers", "::error::##[x]"),
        ("verify", model.replace(".safetensors", ".sap.safetensors"), "--input", model),
        ("config", "::error::##[x]"),
        ("eval", "::error file=x::##[x]", "data"),
        ("##[error]x",),
    ]
    for command in commands:
        outcome = run_here(*command)
        assert not obeyed(outcome.stdout), command
        assert not obeyed(outcome.stderr.encode()), command


def test_a_report_on_stdout_keeps_its_meaning_in_a_job(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_here("project", "model.safetensors", "data", *OPTIONS, "-n", "30", "-o", "out", "--report", "r.json")
    assert made.status == 0, made.stderr
    plain = run_here("report", "r.json", "--format", "json")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    shown = run_here("report", "r.json", "--format", "json")
    assert b"##[" in plain.stdout
    assert not obeyed(shown.stdout)
    assert json.loads(shown.stdout) == json.loads(plain.stdout)
