"""A working folder that came with the data: nothing that lies in it runs, or decides what is written elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import run_process
from support.small_project import Project, run_here

MODEL = ("model.safetensors", "data", "--workers", "0")
OWN = ("--arch", "network.py:tiny")
EVIL = "open('RAN', 'w').close()\nfrom network import tiny\n"


@pytest.mark.parametrize(
    "command", [("inspect", MODEL[0]), ("eval", *MODEL), ("project", *MODEL), ("suspects", *MODEL)]
)
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("sap.toml", 'arch = "evil.py:tiny"\n'),
        ("sap.toml", '[{command}]\narch = "evil:tiny"\n'),
        ("pyproject.toml", '[tool.sap]\narch = "./evil.py:tiny"\n'),
        ("pyproject.toml", '[tool.sap.{command}]\narch = "{folder}/evil.py:tiny"\n'),
    ],
)
def test_a_settings_file_has_no_code_run(project: Project, command: tuple[str, ...], file: str, content: str) -> None:
    (project.folder / "evil.py").write_text(EVIL)
    (project.folder / file).write_text(
        content.replace("{command}", command[0]).replace("{folder}", str(project.folder))
    )
    outcome = run_here(*command)
    assert outcome.status == 1
    assert "which only runs if you say so" in outcome.stderr
    assert "--arch" in outcome.stderr.splitlines()[1]
    assert not Path("RAN").exists()
    assert "evil" not in sys.modules


def test_code_that_the_user_names_runs(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / "mine.toml").write_text('arch = "network.py:tiny"\n')
    (project.folder / "sap.toml").write_text('arch = "evil.py:tiny"\n')
    for way in (("--config", "mine.toml", "eval", *MODEL), ("eval", *MODEL, *OWN)):
        outcome = run_here(*way)
        assert outcome.status == 0, outcome.stderr
    monkeypatch.setenv("SAP_ARCH", "network.py:tiny")
    assert run_here("eval", *MODEL).status == 0
    assert run_here("eval", *MODEL, "--config", "mine.toml").status == 2  # it belongs before the command


def test_what_a_settings_file_sets_is_said(project: Project) -> None:
    (project.folder / "sap.toml").write_text('batch-size = 16\noutput = "x"\n[eval]\nsummary = "y"\n')
    outcome = run_here("eval", *MODEL, *OWN)
    assert "settings: batch-size from sap.toml" in outcome.stderr
    assert "sap.toml sets summary, output, which only a file that you name may set" in outcome.stderr
    assert b"top1" in outcome.stdout
    assert not Path("x").exists()
    assert not Path("y").exists()
    outcome = run_here("--config", "sap.toml", "eval", *MODEL, *OWN)
    assert "which only a file" not in outcome.stderr
    assert Path("x").exists()
    assert Path("y").exists()


def test_the_files_of_a_user_stay(project: Project, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".bashrc").write_text("mine\n")
    (home / "id").write_text("key\n")
    (project.folder / "sap.toml").write_text(
        f'force = true\n[eval]\nsummary = "{home}/.bashrc"\noutput = "{home}/id"\n'
        f'[suspects]\nhtml = "{home}/id"\napply = "csv"\napply-to = "{home}/.bashrc"\n'
        f'[project]\nreport = ["{home}/x.html"]\ncache-dir = "{home}/cache"\nprogress-json = 1\n'
    )
    for command in (("eval", *MODEL), ("suspects", *MODEL), ("project", *MODEL, "-n", "30")):
        outcome = run_here(*command, *OWN)
        assert outcome.status == 0, outcome.stderr
    assert {path.name: path.read_text() for path in home.iterdir()} == {".bashrc": "mine\n", "id": "key\n"}
    assert not Path("corrected.csv").exists()


MODULES = (
    "torch",
    "typer",
    "rich",
    "typing",
    "__future__",
    "gc",
    "safetensors",
    "numpy",
    "multiprocessing",
    "timm",
    "json",
)


@pytest.fixture
def modules(project: Project) -> Project:
    """Files in the working folder that are called like modules."""
    for name in MODULES:
        (project.folder / f"{name}.py").write_text(f"open('RAN-{name}', 'w').close()\n")
    return project


@pytest.mark.parametrize("flags", [("-m",), ("-P", "-m"), ("-msapcli",)])
def test_no_module_of_the_working_folder_runs(modules: Project, flags: tuple[str, ...]) -> None:
    program = [sys.executable, *flags, *(() if flags == ("-msapcli",) else ("sapcli",))]
    arguments = ["inspect", "model.safetensors", *OWN]
    process = run_process([*program, *arguments], capture_output=True)
    assert process.returncode == 0, process.stderr
    assert not list(modules.folder.glob("RAN*"))


def test_no_process_of_ours_looks_there(modules: Project) -> None:
    program = """
import sys
from sapcli.machine.start import have_safe_path
have_safe_path()
import multiprocessing, subprocess
if __name__ == "__main__":
    subprocess.run([sys.executable, "-c", "import sys; sys.stdout.write(str(sys.path))"], check=True)
    for method in ("fork", "spawn", "forkserver"):
        process = multiprocessing.get_context(method).Process(target=eval, args=("1",))
        process.start()
        process.join()
        assert process.exitcode == 0, method
"""
    (modules.folder.parent / "program.py").write_text(program)
    process = subprocess.run(
        [sys.executable, "-P", str(modules.folder.parent / "program.py")], capture_output=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert str(modules.folder) not in process.stdout.decode()
    assert "''" not in process.stdout.decode()
    assert not list(modules.folder.glob("RAN*"))


def test_the_demos_commands_do_not_look_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from sapcli.commands import demo
    from sapcli.commands.line.console import Terminal

    started: list[list[str]] = []

    def run(command: list[str], **_more: object) -> subprocess.CompletedProcess[bytes]:
        started.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    demo._run(Terminal(quiet=True), "eval", "x", "y")
    assert started == [[sys.executable, "-P", "-m", "sapcli", "eval", "x", "y"]]


@pytest.mark.parametrize(
    "content",
    [b"text.usetex: True\n", b"text.color: \xff\n", b"path.effects: [1]\n", b"svg.fonttype: path\nfont.size: 99\n"],
)
def test_no_matplotlibrc_is_read(project: Project, tmp_path: Path, content: bytes) -> None:
    """In a process, since matplotlib reads it when it is imported; the page is that of a folder without one."""
    made = run_here("project", *MODEL, *OWN, "-n", "30", "--alpha", "1000", "-o", "new", "--report", "r.json")
    assert made.status == 0, made.stderr
    assert run_here("report", "r.json", "-o", tmp_path / "expected.html").status == 0
    places = [project.folder / "matplotlibrc", tmp_path / "home" / "matplotlibrc", tmp_path / "rc"]
    for place in places:
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "home"), "MATPLOTLIBRC": str(tmp_path / "rc")}
    command = [sys.executable, "-P", "-m", "sapcli", "report", "r.json", "-o", "page.html"]
    process = run_process(command, env=environment, capture_output=True)
    assert (process.returncode, process.stderr) == (0, b"")
    assert Path("page.html").read_bytes() == (tmp_path / "expected.html").read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "config.json", "network.py", "sap.toml", "pyproject.toml", "data", "data/train"),
        *("data/train/red", "data/train/red/00.png", "labels.csv", "map.csv", "list.txt", "out.safetensors"),
    ],
)
def test_a_link_that_leads_to_itself_is_an_error_of_two_lines(project: Project, name: str) -> None:
    place = project.folder / name
    if place.exists():
        place.rename(project.folder.parent / "away")
    place.symlink_to(place.name)
    given = {"labels.csv": "--labels", "map.csv": "--class-map", "list.txt": "--trusted", "out.safetensors": "-o"}
    more = (given[name], name) if name in given else ()
    outcome = run_here("project", *MODEL, *OWN, "-n", "30", "--force", *more)
    assert outcome.status in (0, 1, 2), outcome.stderr
    assert "went wrong that should not" not in outcome.stderr
    if outcome.status:
        assert [line.partition(":")[0] for line in outcome.stderr.splitlines()][-2:] == ["error", "hint"]
