"""Tests of what commands do about a network that is no function from an image to its logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.small_project import Outcome, Project, make_project, run_here
from torch import Tensor, nn

KINDS = """
import torch
from torch import nn
from torch.nn import functional as F

from network import tiny


class Around(nn.Module):
    pretrained_cfg = tiny().pretrained_cfg

    def __init__(self, before=None, after=None, bare=False):
        super().__init__()
        self.network, self.before, self.after = tiny(), before, after
        if bare:
            self.network[1] = nn.BatchNorm2d(8, track_running_stats=False)

    def forward(self, images):
        output = self.network(images if self.before is None else self.before(images))
        return output if self.after is None else self.after(output)


def plain(): return Around()
def other_images(): return Around(before=lambda x: x - x.mean(0))
def random(): return Around(before=F.dropout)
def bare(): return Around(bare=True)
def writes(): return Around(before=lambda x: x.mul_(1.5))
def probabilities(): return Around(after=lambda z: z.softmax(1))


class Single(nn.Module):
    pretrained_cfg = tiny().pretrained_cfg

    def __init__(self, wrapped=False):
        super().__init__()
        self.wrapped, self.flatten, self.head = wrapped, nn.Flatten(), nn.Linear(192, 1)

    def forward(self, images):
        z = self.head(self.flatten(images))
        return torch.cat([torch.zeros_like(z), z], dim=1) if self.wrapped else z


def single(): return Single()
def wrapped(num_classes=2): return Single(wrapped=True)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project; its checkpoint also as that of a network around it, and of one without statistics."""
    project = make_project(tmp_path_factory.mktemp("project"))
    (project.folder / "kinds.py").write_text(KINDS)
    tensors = {f"network.{name}": tensor for name, tensor in load_file(project.checkpoint).items()}
    save_file(tensors, project.folder / "around.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "running" not in name and "batches" not in name},
        project.folder / "bare.safetensors",
    )
    return project


def ran(project: Project, folder: Path, command: str, kind: str, *options: str) -> Outcome:
    checkpoint = project.folder / ("bare.safetensors" if kind == "bare" else "around.safetensors")
    return run_here(
        *(command, checkpoint, project.data, "--arch", f"{project.folder / 'kinds.py'}:{kind}"),
        *("--cache-dir", folder / "cache", *options),
    )


@pytest.mark.parametrize("kind", ["other_images", "random", "bare"])
@pytest.mark.parametrize("command", ["project", "select", "activations"])
def test_a_repair_of_it_stops(project: Project, tmp_path: Path, kind: str, command: str) -> None:
    output = tmp_path / "output"
    for _ in range(2):  # what is remembered stops it too
        ended = ran(project, tmp_path, command, kind, "-n", "30", "-o", str(output))
        assert ended.status == 1
        assert not output.exists()
        error = [line for line in ended.stderr.splitlines() if line.startswith("error")]
        assert len(error) == 1
        assert "every number that follows" not in " ".join(ended.stderr.split())
        expected = "the same images twice" if kind == "random" else "depend on the images beside it"
        assert expected in " ".join(ended.stderr.split())
        assert ("network.1" in ended.stderr) is (kind == "bare")


@pytest.mark.parametrize("kind", ["other_images", "random", "bare"])
@pytest.mark.parametrize("command", ["eval", "suspects"])
def test_what_only_measures_it_warns(project: Project, tmp_path: Path, kind: str, command: str) -> None:
    for _ in range(2):
        ended = ran(project, tmp_path, command, kind)
        assert ended.status == 0, ended.stderr
        assert " ".join(ended.stderr.split()).count("every number that follows depends on that") == 1


def test_given_bases_do_not_keep_it_from_stopping(project: Project, tmp_path: Path) -> None:
    bases = tmp_path / "bases.safetensors"
    assert ran(project, tmp_path, "activations", "plain", "-n", "30", "-o", str(bases)).status == 0
    ended = ran(project, tmp_path, "project", "random", "--bases", str(bases), "--alpha", "30", "--dry-run")
    assert ended.status == 0
    ended = ran(project, tmp_path, "project", "random", "--bases", str(bases), "--alpha", "30")
    assert ended.status == 1
    assert "the same images twice" in " ".join(ended.stderr.split())


@pytest.mark.parametrize("strategy", ["loss", "curvature"])
def test_a_network_that_writes_is_repaired_as_its_twin_that_does_not(
    project: Project, tmp_path: Path, strategy: str
) -> None:
    twin = KINDS.replace("x.mul_(1.5)", "x * 1.5")
    (project.folder / "twin.py").write_text(twin)
    outputs = []
    for file in ("kinds", "twin"):
        output = tmp_path / f"{file}.safetensors"
        ended = run_here(
            *("project", project.folder / "around.safetensors", project.data, "-n", "30", "--alpha", "30"),
            *("--arch", f"{project.folder / file}.py:writes", "--cache-dir", tmp_path / file, "-o", output),
            *("--strategy", strategy),
        )
        assert ended.status == 0, ended.stderr
        assert ended.stderr.count("writes into its images") == (file == "kinds")
        outputs.append(load_file(output))
    for name, tensor in outputs[0].items():
        assert torch.equal(tensor, outputs[1][name]), name


@pytest.mark.parametrize("command", ["eval", "suspects", "project", "select"])
def test_probabilities_are_warned_of(project: Project, tmp_path: Path, command: str) -> None:
    options = () if command in ("eval", "suspects") else ("-n", "30", "-o", str(tmp_path / "output"))
    ended = ran(project, tmp_path, command, "probabilities", *options)
    assert ended.status == 0, ended.stderr
    assert " ".join(ended.stderr.split()).count("these are probabilities, not logits") == 1
    assert "probabilities" not in ran(project, tmp_path, "eval", "plain").stderr


def test_one_output_for_two_classes(project: Project, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(project.data, data)
    for split in ("train", "val"):
        shutil.rmtree(data / split / "green")
    torch.manual_seed(0)
    head = nn.Linear(192, 1)
    checkpoint = tmp_path / "single.safetensors"
    save_file({f"head.{name}": tensor for name, tensor in head.state_dict().items()}, checkpoint)
    for kind in ("single", "wrapped"):
        arch = ("--arch", f"{project.folder / 'kinds.py'}:{kind}", "--cache-dir", tmp_path / "cache")
        ended = run_here("eval", checkpoint, data / "val", *arch)
        if kind == "single":
            assert ended.status == 1
            assert "torch.cat([torch.zeros_like(z), z], dim=1)" in " ".join(ended.stderr.split())
            continue
        assert ended.status == 0, ended.stderr
        # What is suggested gives the sigmoid's own numbers.
        labels, logits = [], []
        for label, name in enumerate(("blue", "red")):
            for path in sorted((data / "val" / name).glob("*.png")):
                pixels = torch.tensor(np.asarray(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255
                logits.append(head(((pixels - 0.5) / 0.25).flatten()).detach())
                labels.append(float(label))
        expected: Tensor = nn.functional.binary_cross_entropy_with_logits(torch.cat(logits), torch.tensor(labels))
        assert json.loads(ended.stdout)["loss"] == pytest.approx(float(expected), abs=1e-5)
