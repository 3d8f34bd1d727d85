"""Tests of commands on networks of the user's own: what they print, raise, and do to the process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.processes import sap
from support.small_project import ARCHITECTURE, Project, make_project, run_here

NOISE = """
import ctypes, os, subprocess, sys
def noise():
    print("PRINTED")
    os.write(1, b"WRITTEN")
    sys.stdout.write("WITHOUT AN END")
    sys.__stdout__.write("TO THE FIRST")
    ctypes.CDLL(None).puts(b"BY C")
    subprocess.run(["echo", "BY ANOTHER PROGRAM"])
"""
FORWARD = """
class Network(nn.Sequential):
    def forward(self, x):
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("own") / "project")


@pytest.fixture
def copied(project: Project, tmp_path: Path) -> Project:
    shutil.copytree(project.folder, tmp_path / "project")
    return Project(tmp_path / "project")


def noisy(copied: Project) -> tuple[str, ...]:
    """The network with code that prints by every means when it is imported, built, filled and run."""
    text = NOISE + "noise()\n" + ARCHITECTURE
    text = text.replace("    return Network(", "    noise()\n    return Network(")
    text = text.replace(
        "class Network(nn.Sequential):",
        "class Network(nn.Sequential):\n"
        "    def _load_from_state_dict(self, *given):\n        noise()\n        super()._load_from_state_dict(*given)\n"
        "    def train(self, mode=True):\n        noise()\n        super().train(mode)\n"
        "    def forward(self, x):\n        noise()\n        return super().forward(x)\n",
    )
    (copied.folder / "network.py").write_text(text)
    return "--arch", "network.py:tiny", "--cache-dir", "cache"


def test_stdout_holds_the_result_alone_whatever_the_network_prints(copied: Project) -> None:
    options = noisy(copied)
    evaluated = sap("eval", "model.safetensors", "data", *options, "--format", "json", "-q", folder=copied.folder)
    assert evaluated.status == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["images"] == 60
    for said in ("PRINTED", "WRITTEN", "WITHOUT AN END", "TO THE FIRST", "BY ANOTHER PROGRAM"):
        assert said in evaluated.stderr
    selected = sap("select", "model.safetensors", "data", *options, "-n", "30", "-q", folder=copied.folder)
    assert [set(json.loads(line)) for line in selected.stdout.splitlines()] == [{"index", "path", "label", "loss"}] * 30
    arguments = (*options, "-n", "30", "--alpha", "1000", "-q")
    piped = sap("project", "model.safetensors", "data", *arguments, "-o", "-", folder=copied.folder)
    named = sap("project", "model.safetensors", "data", *arguments, "-o", "out.safetensors", folder=copied.folder)
    assert named.stdout == b"out.safetensors\n"
    assert piped.stdout == (copied.folder / "out.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
def test_names_of_stdout_mean_what_they_meant(copied: Project, name: str) -> None:
    options = noisy(copied)
    evaluated = sap(
        *("eval", "model.safetensors", "data", *options, "-q", "-o", "metrics.json", "--summary", name),
        folder=copied.folder,
    )
    assert evaluated.status == 0, evaluated.stderr
    assert evaluated.stdout.startswith(b"### sap eval: model.safetensors")
    assert b"PRINTED" not in evaluated.stdout


def test_progress_for_programs_may_go_to_stdout(copied: Project) -> None:
    ran = sap(
        *("eval", "model.safetensors", "data", *noisy(copied), "-q", "-o", "metrics.json", "--progress-json", "1"),
        folder=copied.folder,
    )
    assert ran.status == 0, ran.stderr
    assert {json.loads(line)["event"] for line in ran.stdout.splitlines()} >= {"stage", "done", "note"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("from torch import nn", "raise RuntimeError('of the import')", "RuntimeError: of the import"),
        ("    layers =", "    raise LookupError('of the factory')\n    layers =", "LookupError: of the factory"),
        ("    layers =", "    import sys; sys.exit('of an exit')\n    layers =", "SystemExit: of an exit"),
        ("class Network(nn.Sequential):", f"{FORWARD}        raise OSError('of forward')", "OSError: of forward"),
        ("class Network(nn.Sequential):", f"{FORWARD}        raise SystemExit('left')", "SystemExit: left"),
        ("class Network(nn.Sequential):", f"{FORWARD}        raise GeneratorExit('over')", "GeneratorExit: over"),
        (
            "class Network(nn.Sequential):",
            "class Network(nn.Sequential):\n    def eval(self):\n        raise TypeError('of eval')",
            "TypeError: of eval",
        ),
        (
            "class Network(nn.Sequential):",
            "class Network(nn.Sequential):\n    def _load_from_state_dict(self, *given):\n        raise KeyError('x')",
            "KeyError: 'x'",
        ),
        (
            "class Network(nn.Sequential):",
            "class Network(nn.Sequential):\n    @property\n    def default_cfg(self):\n        return 1 / 0",
            "ZeroDivisionError: division by zero",
        ),
    ],
)
def test_what_the_code_raises_is_told_in_two_lines(copied: Project, old: str, new: str, says: str) -> None:
    text = ARCHITECTURE.replace(old, new, 1)
    if "default_cfg" in new:
        text = text.replace("pretrained_cfg", "other_cfg")
    (copied.folder / "network.py").write_text(text)
    ran = run_here("eval", copied.checkpoint, copied.data, "--arch", f"{copied.folder / 'network.py'}:tiny")
    assert (ran.status, ran.stdout) == (1, b"")
    error, hint = [line for line in ran.stderr.splitlines() if line.startswith(("error: ", "hint:  "))]
    assert says in error
    assert "--debug" in hint
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("raising", ["RuntimeError('in backward')", "SystemExit('in backward')"])
def test_what_the_code_raises_in_a_gradient_is_told_in_two_lines(copied: Project, raising: str) -> None:
    code = f"""
import torch
class Identity(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()
    @staticmethod
    def backward(context, gradient):
        raise {raising}
"""
    forward = FORWARD + "        return super().forward(Identity.apply(x))"
    text = code + ARCHITECTURE.replace("class Network(nn.Sequential):", forward, 1)
    (copied.folder / "network.py").write_text(text)
    ran = run_here(
        *("select", copied.checkpoint, copied.data, "--arch", f"{copied.folder / 'network.py'}:tiny", "-n", "30"),
        *("--strategy", "curvature"),
    )
    assert (ran.status, ran.stdout) == (1, b""), ran.stderr
    assert "in backward" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("with torch.no_grad():\n            return super().forward(x)", "have no gradient, and this needs one"),
        ("return super().forward(torch.from_numpy(x.detach().numpy()))", "cannot be differentiated"),
    ],
)
@pytest.mark.parametrize("command", [("select", "--strategy", "curvature", "-n", "30"), ("polish", "--epochs", "1")])
def test_a_network_that_takes_gradients_away_is_told_of(
    copied: Project, body: str, says: str, command: tuple[str, ...]
) -> None:
    text = "import torch\n" + ARCHITECTURE.replace("class Network(nn.Sequential):", f"{FORWARD}        {body}", 1)
    (copied.folder / "network.py").write_text(text)
    output = ("-o", copied.folder / "out.safetensors") if command[0] == "polish" else ()
    name, *options = command
    arch = ("--arch", f"{copied.folder / 'network.py'}:tiny")
    ran = run_here(name, copied.checkpoint, copied.data, *arch, *options, *output)
    if name == "polish" and "differentiated" in says:
        assert ran.status == 0, ran.stderr  # its weights have gradients
        return
    assert (ran.status, ran.stdout) == (1, b""), ran.stderr
    error, hint = [line for line in ran.stderr.splitlines() if line.startswith(("error: ", "hint:  "))]
    assert says in error
    assert "out of its forward pass" in hint


def test_relative_paths_mean_what_they_meant_when_they_were_typed(copied: Project) -> None:
    elsewhere = copied.folder / "model"
    elsewhere.mkdir()
    text = "import os\nos.chdir(os.path.dirname(os.path.abspath(__file__)))\n" + ARCHITECTURE
    (elsewhere / "network.py").write_text(text)
    arguments = ("--arch", "model/network.py:tiny", "--cache-dir", "cache", "-q")
    evaluated = sap("eval", "model.safetensors", "data", *arguments, "-o", "metrics.json", folder=copied.folder)
    assert evaluated.status == 0, evaluated.stderr
    assert json.loads((copied.folder / "metrics.json").read_text())["images"] == 60
    assert sorted(path.name for path in elsewhere.iterdir() if path.is_file()) == ["network.py"]


def test_inspect_says_why_a_merged_weight_is_left_as_it_is(copied: Project) -> None:
    merging = (
        "class Network(nn.Sequential):\n"
        "    def eval(self):\n        self[0].weight.data.mul_(2.0)\n        return super().eval()\n"
    )
    text = ARCHITECTURE.replace("class Network(nn.Sequential):", merging, 1)
    (copied.folder / "network.py").write_text(text)
    ran = run_here("inspect", copied.checkpoint, "--arch", f"{copied.folder / 'network.py'}:tiny", "--format", "json")
    reasons = {weight["name"]: weight["reason"] for weight in json.loads(ran.stdout)["weights"]}
    assert reasons == {"0.weight": "changed by the network's own code after it was loaded", "4.weight": None}
