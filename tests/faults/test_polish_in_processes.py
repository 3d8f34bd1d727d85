"""Several processes that polish one model together, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.small_project import Project

ARGUMENTS = ("polish", "model.safetensors", "data", "--arch", "network.py:plain", "--no-repair", "--labels-as-given")
# No mixup between images of other processes, no BatchNorm of their own: then the gradients add up to the same.
PLAIN = """

def plain(num_classes=3):
    return Network(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, num_classes))
"""


def polish(project: Project, count: int, output: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m"]
    if count > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
    options = ("--epochs", "2", "--augment", "none", "--no-flip", "--cache-dir", "cache", "-o", output)
    return subprocess.run(
        [*command, "sapcli", *ARGUMENTS, *options],
        cwd=project.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def plain_project(project: Project) -> Project:
    """The small project with a network without BatchNorm."""
    source = project.folder / "network.py"
    source.write_text(source.read_text() + PLAIN)
    names: dict[str, object] = {}
    exec(source.read_text(), names)
    torch.manual_seed(0)
    module = names["plain"]()  # type: ignore[operator]
    from safetensors.torch import save_file

    save_file(module.state_dict(), project.checkpoint)
    return project


def test_two_processes_polish_one_model(plain_project: Project) -> None:
    one = polish(plain_project, 1, "one.safetensors")
    assert one.returncode == 0, one.stderr
    two = polish(plain_project, 2, "two.safetensors")
    assert two.returncode == 0, two.stderr
    # The first one alone speaks and writes.
    assert two.stdout == "two.safetensors\n"
    assert two.stderr.count("epoch 2 of 2") == one.stderr.count("epoch 2 of 2")
    metadata = []
    for name in ("one", "two"):
        with safe_open(plain_project.folder / f"{name}.safetensors", "pt") as opened:
            metadata.append(opened.metadata())
    assert metadata[0]["sap.polish.steps"] == metadata[1]["sap.polish.steps"]
    assert metadata[1]["sap.polish.result"] == "polished"
    first, second = (load_file(plain_project.folder / f"{name}.safetensors") for name in ("one", "two"))
    start = load_file(plain_project.checkpoint)
    for name, tensor in first.items():
        # Mixup pairs other images, so they are alike and not the same.
        assert torch.dist(second[name], tensor) < 0.5 * torch.dist(start[name], tensor)
