"""A checkpoint that is large beside the rest of the program: the peak of memory stays below twice its size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from support.command_line import run_process
from support.small_project import Project

ARCHITECTURE = """
from torch import nn


class Network(nn.Sequential):
    pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25),
                      "interpolation": "bilinear", "crop_pct": 1.0}


def deep(num_classes=3, width=1536, depth=24):
    layers = [nn.Flatten(), nn.Linear(192, width)]
    for _ in range(depth):
        layers += [nn.ReLU(), nn.Linear(width, width)]
    return Network(*layers, nn.Linear(width, num_classes))
"""
MEASURED = """
import resource, sys
from sapcli.commands.entry import start
sys.argv[0] = "sap"
status = start()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(status)
"""


def peak_of_repair(project: Project, width: int, depth: int) -> tuple[int, int]:
    """The size of the checkpoint and the most memory that repairing it took, in bytes."""
    (project.folder / "network.py").write_text(ARCHITECTURE)
    sizes = [(width, 192), *[(width, width)] * depth, (3, width)]
    tensors = {}
    for number, (outputs, inputs) in enumerate(sizes):
        name = 1 + 2 * number if number <= depth else 2 * depth + 2
        tensors[f"{name}.weight"] = torch.randn(outputs, inputs) * (2 / inputs) ** 0.5
        tensors[f"{name}.bias"] = torch.zeros(outputs)
    save_file(tensors, project.checkpoint)
    # What random weights answer is no order of the classes.
    names = sorted(path.name for path in (project.folder / "data" / "train").iterdir())
    (project.folder / "classes.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    command = [sys.executable, "-c", MEASURED, "project", "model.safetensors", "data", "--arch", "network.py:deep"]
    options = ["--arch-arg", f"width={width}", "--arch-arg", f"depth={depth}", "-n", "30", "--alpha", "1000"]
    options += ["--class-map", "classes.json"]
    rest = ["--workers", "0", "--quiet", "--cache-dir", f"cache-{width}", "-o", f"out-{width}.safetensors"]
    process = run_process([*command, *options, *rest], cwd=project.folder, capture_output=True)
    assert process.returncode == 0, process.stderr
    return project.checkpoint.stat().st_size, int(process.stdout.split()[-1])


def test_memory_grows_by_less_than_twice_the_checkpoint(project: Project) -> None:
    small, little = peak_of_repair(project, 16, 24)
    large, much = peak_of_repair(project, 1536, 24)
    bases = sum(path.stat().st_size for path in Path(project.folder / "cache-1536").glob("bases-*"))
    assert large > 200 << 20
    assert much - little < 2 * (large - small) + bases
