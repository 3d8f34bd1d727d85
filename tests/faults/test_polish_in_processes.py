"""Several processes that polish one model together, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.small_project import Project

ARGUMENTS = ("polish", "model.safetensors", "data", "--epochs", "2", "--cache-dir", "cache")
# No mixup between images of other processes, no BatchNorm of their own: then the gradients add up to the same.
PLAIN = """

def plain(num_classes=3):
    return Network(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, num_classes))
"""


PLAINLY = (*("--arch", "network.py:plain", "--no-repair", "--labels-as-given", "--augment", "none", "--no-flip"),)


def run(project: Project, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", *command],
        cwd=project.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def polish(project: Project, count: int, output: str, *options: str) -> subprocess.CompletedProcess[str]:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m") if count > 1 else ()
    return run(project, *torchrun, "sapcli", *ARGUMENTS, "-o", output, *options)


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
    one = polish(plain_project, 1, "one.safetensors", *PLAINLY)
    assert one.returncode == 0, one.stderr
    two = polish(plain_project, 2, "two.safetensors", *PLAINLY)
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


def test_they_share_the_repair_and_the_labels_too(project: Project) -> None:
    said, tensors = [], []
    for count in (1, 2):
        options = ("--arch", "network.py:tiny", "--cache-dir", f"cache{count}", "--report", f"{count}.json")
        done = polish(project, count, f"{count}.safetensors", *options)
        assert done.returncode == 0, done.stderr
        said.append({line for line in done.stderr.splitlines() if line.startswith(("repair: ", "flips: ", "  before"))})
        (start,) = (project.folder / f"cache{count}").glob("start-????????????????????????????????")
        tensors.append(load_file(start))
        assert (project.folder / f"{count}.json").exists()
    # What both begin with: the repaired weights, the labels blended with its answers, and what is trained on.
    assert said[0] == said[1]
    assert len(said[0]) == 3
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], tensor, rtol=1e-4, atol=1e-5)


def test_one_that_is_killed_ends_all(project: Project) -> None:
    source = project.folder / "network.py"
    # The second process is killed in its first step of training.
    source.write_text(
        source.read_text().replace(
            "class Network(nn.Sequential):",
            "import os\n\n\nclass Network(nn.Sequential):\n    def forward(self, x):\n"
            "        if self.training and os.environ.get('RANK') == '1':\n            os.kill(os.getpid(), 9)\n"
            "        return super().forward(x)\n",
        )
    )
    began = time.monotonic()
    own = ("--arch", "network.py:tiny", "-o", "out.safetensors")
    done = run(project, "sapcli", "--devices", "2", *ARGUMENTS, *own)
    assert time.monotonic() - began < 120
    assert done.returncode == 1
    assert "error: rank 1 of 2 has died" in done.stderr
    assert not (project.folder / "out.safetensors").exists()
