"""What nothing was prepared for is two lines too: odd reports, a lost working folder, an unknown exception."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command_line import run_process
from support.small_project import Project, make_project, run_here

Document = dict[str, Any]
OPTIONS = ("--arch", "network.py:tiny", "--workers", "0", "--quiet")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project and the report of its repair."""
    project = make_project(tmp_path_factory.mktemp("original") / "project")
    arch = ("--arch", f"{project.folder}/network.py:tiny")
    made = run_here(
        *("project", project.checkpoint, project.data, *arch, *OPTIONS[2:], "-n", "30", "--alpha", "1000"),
        *("-o", project.folder / "out.safetensors", "--report", project.folder / "r.json"),
    )
    assert made.status == 0, made.stderr
    return project


@pytest.fixture
def project(original: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy, as the working folder."""
    shutil.copytree(original.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")


def check(status: int, error: str) -> None:
    assert "Traceback" not in error
    assert [line[:7] for line in error.splitlines()] == ([] if status == 0 else ["error: ", "hint:  "]), error
    assert status in (0, 1)


NAN, INFINITY, HUGE = float("nan"), float("inf"), 10**400
ATTEMPT = {"alpha": -1, "score": {"value": NAN, "low": 1e308, "high": -1e308}, "samples": 0}
CHANGES: dict[str, Callable[[Document], object]] = {
    "alpha is nan": lambda report: report["search"].update(alpha=NAN),
    "no edges": lambda report: report["losses"].update(edges=[]),
    "one edge": lambda report: report["losses"].update(edges=[1.0]),
    "edges are nan": lambda report: report["losses"].update(edges=[NAN] * len(report["losses"]["edges"])),
    "huge counts": lambda report: report["losses"].update(before=[HUGE] * len(report["losses"]["before"])),
    "huge number": lambda report: report.update(trusted=HUGE),
    "huge rows": lambda report: [layer.update(rows=HUGE, outputs=-HUGE) for layer in report["layers"]],
    "infinite layers": lambda report: [layer.update(removed=INFINITY, spectrum=[NAN]) for layer in report["layers"]],
    "senseless attempt": lambda report: report["search"].update(attempts=[ATTEMPT], alpha=-1),
    "no attempts": lambda report: report["search"].update(attempts=[], unchanged=None),
    "ragged confusion": lambda report: report["measurement"]["confusion"].update(labels=["a"], before=[[1], [2, 3]]),
    "no classes": lambda report: report["measurement"].update(classes=[]),
    "huge accuracy": lambda report: report["measurement"]["classes"][0].update(before=1e308, after=-1e308),
    "long name": lambda report: report["measurement"]["classes"][0].update(name="n" * 1_000_000),
    "control characters": lambda report: report.update(title="\0\x1b[31m\u202e\n"),
}


@pytest.mark.parametrize("form", ["md", "html", "json"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_report_of_any_content(project: Project, change: str, form: str) -> None:
    report = json.loads(Path("r.json").read_text())
    CHANGES[change](report)
    Path("c.json").write_text(json.dumps(report))
    outcome = run_here("report", "c.json", "--format", form)
    check(outcome.status, outcome.stderr)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b'{"a": "\\ud800"}', b"9" * 5000, b"null"])
def test_what_is_no_report(project: Project, content: bytes) -> None:
    Path("c.json").write_bytes(content)
    outcome = run_here("report", "c.json")
    assert outcome.status == 1
    check(outcome.status, outcome.stderr)


@pytest.mark.parametrize(
    "command",
    [
        ("cache", "info"),
        ("eval", "model.safetensors", "data", *OPTIONS),
        ("eval", "{}/model.safetensors", "{}/data", "--arch", "network:tiny", "--quiet"),
        ("eval", "{}/model.safetensors", "{}/data", "--arch", "network.py:tiny", "--quiet"),
        (
            "project",
            "{}/model.safetensors",
            "{}/data",
            "--arch",
            "{}/network.py:tiny",
            "--quiet",
            "-n",
            "30",
            "-o",
            "x",
        ),
        ("report", "{}/r.json", "--format", "html"),
        ("report", "{}/r.json", "-o", "x.html"),
        ("inspect", "{}/model.safetensors", "--arch", "{}/network.py:tiny"),
    ],
)
def test_in_a_folder_that_was_removed(project: Project, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    outcome = run_here(*(part.replace("{}", str(project.folder)) for part in command))
    check(outcome.status, outcome.stderr)


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), ZeroDivisionError(), AssertionError(), KeyError("x")])
def test_an_exception_that_nobody_expected(project: Project, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr("sapcli.commands.report.report_forms", fail)
    monkeypatch.setenv("SAPDEBUG", "")
    outcome = run_here("report", "r.json", "-o", "x.md")
    assert outcome.status == 1
    check(outcome.status, outcome.stderr)
    assert type(error).__name__ in outcome.stderr
    assert "--debug" in outcome.stderr
    assert "Traceback" in run_here("--debug", "report", "r.json", "-o", "x.md").stderr


@pytest.mark.parametrize("mebibytes", [20, 60, 150, 600, 1200])
def test_under_a_limit_on_addresses(project: Project, mebibytes: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))

    command = [sys.executable, "-P", "-m", "sapcli", "eval", "model.safetensors", "data", *OPTIONS]
    process = run_process(command, preexec_fn=limit, capture_output=True)
    check(process.returncode, process.stderr.decode())
    assert process.returncode == 1


@pytest.mark.parametrize("word", ["x", "", "9" * 5000])
def test_a_question_for_completions_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    for name, value in {"_SAP_COMPLETE": "complete_bash", "COMP_WORDS": "sap", "COMP_CWORD": word}.items():
        monkeypatch.setenv(name, value)
    outcome = run_here()
    assert outcome.status == 2
    assert "went wrong" not in outcome.stderr
