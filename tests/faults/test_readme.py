"""Every command that the README shows, run as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from safetensors.torch import save_file
from support.command_line import run_process
from support.digits import Trained
from torch import nn

README = (Path(__file__).parents[2] / "README.md").read_text()
FIRST = "sap project model.safetensors data/\n"
NETWORK = """
from torch import nn

def small(num_classes=10, width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )
"""


def blocks(language: str) -> list[str]:
    """The README's code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def is_set_up(block: str) -> bool:
    """Whether a block sets up the environment that the tests run in, or makes the demo, which has tests of its own."""
    return "pip install" in block or block.startswith("make ")


@pytest.fixture(scope="module")
def folder(noisy: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the files that the README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(noisy.data, folder / "data")
    shutil.copy(noisy.checkpoint, folder / "model.safetensors")
    shutil.copy(noisy.checkpoint.with_name("config.json"), folder)
    shutil.copy(noisy.checkpoint, folder / "night.safetensors")
    torch.manual_seed(0)
    save_file(torchvision.models.resnet18(num_classes=10).state_dict(), folder / "resnet18.safetensors")
    (folder / "network.py").write_text(NETWORK)
    small = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    save_file(small.state_dict(), folder / "small.safetensors")
    return folder


def run_in(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that finds `sap`; the number of trusted samples fits the small data."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "SAP_TRUSTED_COUNT": "60", "GITHUB_STEP_SUMMARY": "summary.md"}
    return run_process(
        ["bash", "-e", "-o", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def first_run(folder: Path) -> None:
    """What the later blocks build on: the first command of the worked example."""
    (block,) = (block for block in blocks("sh") if block.startswith(FIRST))
    ended = run_in(folder, block)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.usefixtures("first_run")
@pytest.mark.parametrize(
    "block", [block for block in blocks("sh") if not is_set_up(block) and not block.startswith(FIRST)]
)
def test_a_shell_command_runs(folder: Path, block: str) -> None:
    ended = run_in(folder, block)
    assert ended.returncode == 0, ended.stderr


def test_python_runs(folder: Path) -> None:
    from_files, in_memory = blocks("python")
    module = (
        "import timm\nfrom PIL import Image\nfrom torchvision.datasets import ImageFolder\n"
        "net = timm.create_model('test_resnet', num_classes=10)\n"
        "net.pretrained_cfg = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3}\n"
        "print(repaired_in_memory(net, ImageFolder('data/train')).module is net)\n"
    )
    for block in (from_files, in_memory + module):
        ended = run_process([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr


def test_settings_are_accepted(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    (tmp_path / "sap.toml").write_text(block)
    ended = run_in(tmp_path, "sap config")
    assert 'alpha = "3000"  # sap.toml' in ended.stdout


def test_the_ci_jobs_end_as_their_gates_say(folder: Path) -> None:
    github, gitlab = (yaml.safe_load(block) for block in blocks("yaml") if "uses:" not in block)
    scripts = [github[0]["run"], "\n".join(gitlab["repair"]["script"])]
    for script in scripts:
        ended = run_in(folder, script)
        # The tests' small network may not reach the gain: then the gate says so, and nothing else is wrong.
        assert ended.returncode in (0, 3), ended.stderr
    assert "### sap project" in (folder / "summary.md").read_text()
    assert (folder / "night.html").read_text().startswith("<!doctype html>")


def test_the_action_has_the_inputs_that_are_shown() -> None:
    (block,) = (block for block in blocks("yaml") if "uses:" in block)
    (step,) = yaml.safe_load(block)
    action = yaml.safe_load((Path(__file__).parents[2] / "action.yml").read_text())
    assert step["with"].keys() <= action["inputs"].keys()


@pytest.mark.usefixtures("first_run")
def test_progress_is_json_lines(folder: Path) -> None:
    (block,) = (block for block in blocks("sh") if "--progress-json" in block)
    (folder / "progress.ndjson").unlink(missing_ok=True)  # of the other commands of the page
    assert run_in(folder, block).returncode == 0
    assert all(json.loads(line)["event"] for line in (folder / "progress.ndjson").read_text().splitlines())
