"""The checkpoint comes first: what becomes of reports, summaries and stderr never costs the repair."""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import run_process
from support.processes import project_arguments, start
from support.small_project import Project, run_here

from sapcli.reports import pages, repair_report

PROJECT = ("project", "model.safetensors", "data", "--arch", "network.py:tiny", "--workers", "0", "-n", "30")


def fail(*_arguments: object, error: type[Exception] = RuntimeError, **_more: object) -> bytes:
    raise error("it broke")


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, RecursionError, UnicodeEncodeError, AttributeError])
@pytest.mark.parametrize("place", ["measuring", "rendering"])
def test_a_report_that_fails_costs_the_report(
    project: Project, monkeypatch: pytest.MonkeyPatch, place: str, error: type[Exception]
) -> None:
    if error is UnicodeEncodeError:
        error = functools.partial(UnicodeEncodeError, "utf-8", "x", 0, 1)  # type: ignore[assignment]
    module, name = (repair_report, "report_repair") if place == "measuring" else (pages, "render_report")
    monkeypatch.setattr(module, name, functools.partial(fail, error=error))
    outcome = run_here(*PROJECT, "-o", "out.safetensors", "--report", "r.html", "--summary", "s.md", "--quiet")
    assert outcome.status == 1
    assert outcome.stdout == b"out.safetensors\n"
    first, second = outcome.stderr.splitlines()
    assert first.startswith("error: the report")
    assert first.endswith("the corrected checkpoint is in out.safetensors")
    assert second.startswith("hint:  ")
    assert run_here("verify", "out.safetensors").status == 0
    assert not Path("r.html").exists()
    assert Path("s.md").read_text().startswith("### sap project")


def test_a_summary_that_fails_costs_the_summary(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapcli.commands.project.append_summary", fail)
    outcome = run_here(*PROJECT, "-o", "out.safetensors", "--report", "r.json", "--summary", "s.md", "--quiet")
    assert outcome.status == 1
    assert "the summary s.md could not be made: RuntimeError: it broke" in outcome.stderr
    assert "the corrected checkpoint is in out.safetensors" in outcome.stderr
    assert run_here("verify", "out.safetensors").status == 0
    assert run_here("report", "r.json").status == 0


@pytest.mark.parametrize("place", ["gone/r.html", "/dev/full"])
def test_a_place_that_fails_costs_what_was_to_be_there(
    project: Project, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    Path("gone").mkdir()
    from sapcli.commands import project as module

    run_repair = module.run_repair

    def lose(*arguments: object) -> object:
        Path("gone").rmdir()
        return run_repair(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "run_repair", lose)
    option = ("--report", place) if place.endswith("html") else ("--summary", place)
    outcome = run_here(*PROJECT, "-o", "out.safetensors", *option, "--report", "r.md", "--quiet")
    assert outcome.status == 1
    assert "the corrected checkpoint is in out.safetensors" in outcome.stderr
    assert run_here("verify", "out.safetensors").status == 0
    assert Path("r.md").exists()


def test_a_checkpoint_on_stdout_comes_before_the_report(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_here(*PROJECT, "-o", "-", "--quiet")
    monkeypatch.setattr(pages, "render_report", fail)
    outcome = run_here(*PROJECT, "-o", "-", "--report", "r.html", "--quiet")
    assert outcome.status == 1
    assert outcome.stdout == whole.stdout
    assert "the corrected checkpoint was written to stdout" in outcome.stderr


def test_a_gate_that_is_not_met_writes_no_checkpoint(project: Project) -> None:
    outcome = run_here(*PROJECT, "-o", "out.safetensors", "--report", "r.json", "--require-gain", "99", "--quiet")
    assert outcome.status == 3
    assert not Path("out.safetensors").exists()
    assert Path("r.json").exists()


@pytest.mark.parametrize("name", [b"r\xffd", b"r\xed\xa0\x80d", "r\u202ed".encode(), b"r\x1b[31md", "r\x9bd".encode()])
def test_names_that_are_no_utf8_are_in_every_report(project: Project, name: bytes) -> None:
    for split in ("train", "val"):
        (project.data / split / "red").rename(project.data / split / os.fsdecode(name))
    reports = ("--report", "r.json", "--report", "r.html", "--report", "r.md", "--summary", "s.md")
    outcome = run_here(*PROJECT, "-o", "out.safetensors", *reports)
    assert outcome.status == 0, outcome.stderr
    assert json.loads(Path("r.json").read_bytes())
    for form in ("md", "html", "json"):
        assert run_here("report", "r.json", "--format", form).status == 0
    # What was written is read again, by the order of the folders where the names are none that a file may hold.
    again = run_here("eval", "out.safetensors", *PROJECT[2:5], "--workers", "0", "--format", "json")
    assert again.status == 0, again.stderr
    assert json.loads(again.stdout)["top1"] > 0.5
    assert ("are not written" in outcome.stderr) == (name != "r\u202ed".encode())


def lose_stderr(how: str) -> None:
    """Have stderr lead to a full disk, or to a pipe that nobody reads."""
    if how == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    else:
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(reading)


@pytest.mark.parametrize("how", ["full", "broken pipe"])
@pytest.mark.parametrize("status", [0, 1])
def test_a_lost_stderr_does_not_end_the_work(project: Project, how: str, status: int) -> None:
    more = [] if status == 0 else ["--report", "gone/r.html"]
    (project.folder / "loud.py").write_text(
        "import sys, warnings\nfrom network import tiny as quiet\n"
        "def tiny(num_classes=3):\n    print('x' * 100_000)\n    warnings.warn('x')\n"
        "    print('y' * 100_000, file=sys.stderr, flush=True)\n    return quiet(num_classes)\n"
    )
    arguments = project_arguments("out.safetensors", "--arch", "loud.py:tiny", *more)
    assert start(project.folder, arguments, functools.partial(lose_stderr, how)).wait() == status
    assert (project.folder / "out.safetensors").exists() == (status == 0)


def test_a_closed_stderr_does_not_end_the_work(project: Project) -> None:
    command = shlex.join([sys.executable, "-P", "-m", "sapcli", *PROJECT, "-o", "out.safetensors"])
    assert run_process(["bash", "-c", f"{command} 2>&-"], stdout=subprocess.DEVNULL).returncode == 0
    assert Path("out.safetensors").exists()
