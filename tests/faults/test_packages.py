"""What is installed: the sdist and the wheel, the steps of the GitHub Action, and those of the image.

All of it runs in environments of its own, which see the libraries of this one and nothing else of it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from support import untouched
from support.schemas import validated
from support.small_project import Project, make_project

from sapcli import __version__

pytest.importorskip("hatchling", reason="what builds the package is an extra for development")

ROOT = Path(__file__).parents[2]
SECONDS = 300


def run(
    arguments: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a program with this environment and no other variables; it has to end well."""
    ended = subprocess.run(
        list(map(str, arguments)), cwd=folder, env=dict(environment), capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, f"{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    return ended


def variables(place: Path, **more: str) -> dict[str, str]:
    """The variables of a process in the environment at `place`; pip installs nothing but what it is given."""
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "HOME", "TMPDIR", "SYSTEMROOT")}
    return {
        **kept,
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(place),
        "OMP_NUM_THREADS": "1",
        "SAP_CACHE": str(place / "cache"),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # as pip has it: 0 is "no isolation"
        "PIP_IGNORE_INSTALLED": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **more,
    }


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A new environment that sees the libraries of this one."""
    place = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=SECONDS)
    (packages,) = place.glob("lib/python*/site-packages")
    seen = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "libraries.pth").write_text("\n".join(dict.fromkeys([*seen, sysconfig.get_path("purelib")])) + "\n")
    return place


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files as a checkout has them."""
    folder = tmp_path_factory.mktemp("checkout") / "sap"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built of what the sdist holds."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "hatchling", "build"]
    subprocess.run([*build, "-t", "sdist", "-d", folder], cwd=source, check=True, timeout=SECONDS, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    subprocess.run(
        [*build, "-t", "wheel", "-d", folder], cwd=unpacked, check=True, timeout=SECONDS, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The small project."""
    return make_project(tmp_path / "project")


REPAIR = ("model.safetensors", "data", "--arch", "network.py:tiny", "-n", "30")


def test_the_wheel_runs_where_nothing_else_of_it_is(built: tuple[Path, Path], empty: Path, project: Project) -> None:
    _, wheel = built
    environment = variables(empty)
    run([empty / "bin" / "python", "-m", "pip", "install", wheel], empty, environment)
    sap = empty / "bin" / "sap"
    assert run([sap, "--version"], project.folder, environment).stdout == f"sap {__version__}\n"
    where = "import sapcli; print(sapcli.__file__)"
    assert str(empty) in run([empty / "bin" / "python", "-c", where], project.folder, environment).stdout
    ended = run([sap, "project", *REPAIR, "--report", "repair.html", "--format", "json"], project.folder, environment)
    document = validated("project", ended.stdout)
    assert (project.folder / document["output"]).is_file()
    assert "<svg" in (project.folder / "repair.html").read_text()
    run([sap, "inspect", "model.safetensors", "--format", "json"], project.folder, environment)
    page = empty / "share" / "man" / "man1" / "sap.1"
    assert page.read_text() == (ROOT / "docs" / "sap.1").read_text()


def test_the_wheel_says_what_it_is(built: tuple[Path, Path]) -> None:
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(metadata_name).decode())
    assert metadata["Version"] == __version__
    assert {name.partition("/")[0] for name in names} == {
        "sapcli", f"sapcli-{__version__}.dist-info", f"sapcli-{__version__}.data",
    }  # fmt: skip
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sapcli").rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= set(names)


def steps() -> dict[str, dict[str, object]]:
    """The steps of the action, by their names."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    return {step["name"]: step for step in action["runs"]["steps"]}


def filled(text: str, given: Mapping[str, str]) -> str:
    """A text of the action with its expressions in place."""
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    values = {f"inputs.{name}": str(given.get(name, declared.get("default", ""))) for name, declared in inputs.items()}
    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: values[found[1]], text)


def run_step(name: str, given: Mapping[str, str], folder: Path, place: Path, status: int = 0) -> str:
    """Run a step of the action as a runner does, and return what it says."""
    step = steps()[name]
    assert step["shell"] == "bash"
    declared = step["env"]
    assert isinstance(declared, dict)
    runner = {"GITHUB_OUTPUT": str(folder.parent / "outputs"), "GITHUB_STEP_SUMMARY": str(folder.parent / "summary.md")}
    runner |= {"CI": "true", "GITHUB_ACTIONS": "true"}
    own = {key: filled(str(value), given) for key, value in declared.items()}
    ended = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", filled(str(step["run"]), given)],
        cwd=folder, env=variables(place, **runner, **own), capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == status, f"{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    # The action writes its report with --force, from variables that tell nobody what is read and what is written.
    untouched.let_go()
    return ended.stdout + ended.stderr


def test_the_steps_of_the_action(built: tuple[Path, Path], empty: Path, project: Project) -> None:
    given = {
        "checkpoint": "model.safetensors",
        "data": "data",
        "output": "it's fixed.safetensors",
        "options": "--arch 'network.py:tiny' -n 30 --alpha auto",
        "package": str(built[1]),
    }
    run_step("Install sap", given, project.folder, empty)
    run_step("Repair", given, project.folder, empty)
    run_step("Judge", given, project.folder, empty)
    outputs = dict(line.split("=", 1) for line in (project.folder.parent / "outputs").read_text().splitlines())
    repair = validated("project", (project.folder / outputs["result"]).read_text())
    metrics = validated("eval", (project.folder / outputs["metrics"]).read_text())
    assert repair["output"] == outputs["checkpoint"] == given["output"]
    assert metrics["top1"] == repair["after"]["top1"]
    summary = (project.folder.parent / "summary.md").read_text()
    assert "### sap project" in summary
    assert "### sap eval" in summary
    assert (project.folder / "sap-report.html").read_text().startswith("<!doctype html>")
    kept = steps()["Keep the report"]
    assert kept["if"] == "always()"
    files = filled(str(kept["with"]["path"]), given).split()  # type: ignore[index]
    assert all((project.folder / name).is_file() for name in files)

    # The gates fail their step, and leave the results to be kept.
    (project.folder / given["output"]).unlink()
    said = run_step("Repair", {**given, "require-gain": "99"}, project.folder, empty, status=3)
    assert "::error title=sap::" in said
    assert not (project.folder / given["output"]).exists()
    assert not json.loads((project.folder / "sap-result.json").read_text())["gate"]["met"]
    run_step("Repair", given, project.folder, empty)
    assert "--min-accuracy" in run_step("Judge", {**given, "min-accuracy": "101"}, project.folder, empty, status=3)


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each with what follows it."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_steps_of_the_image(source: Path, empty: Path, project: Project, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "src")
    # What .dockerignore leaves out is not there.
    named = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for path in sorted((tmp_path / "src").rglob("*"), reverse=True):
        relative = path.relative_to(tmp_path / "src").as_posix()
        if path.is_file() and not any(relative == name or relative.startswith(f"{name}/") for name in named):
            path.unlink()
    environment = variables(empty)
    # The libraries are there: pip has nothing to fetch.
    del environment["PIP_IGNORE_INSTALLED"]
    arguments: dict[str, str] = {}
    ran = 0
    for word, rest in instructions():
        if word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif word == "ENV":
            environment |= dict(each.split("=", 1) for each in shlex.split(rest))
        elif word == "RUN":
            script = rest.replace("/src", str(tmp_path / "src"))
            run(["bash", "-eo", "pipefail", "-c", script], empty, {**arguments, **environment})
            ran += 1
    assert ran == 3
    assert arguments["TORCH_INDEX"].endswith("/cpu")
    (entry,) = (json.loads(rest) for word, rest in instructions() if word == "ENTRYPOINT")
    (command,) = (json.loads(rest) for word, rest in instructions() if word == "CMD")
    assert "sap project" in run([*entry, *command], project.folder, environment).stdout
    environment["SAP_CACHE"] = str(tmp_path / "cache")
    ended = run([*entry, "project", *REPAIR], project.folder, environment)
    assert (project.folder / ended.stdout.strip()).is_file()
