"""Tests of whole commands against plain PyTorch: code that was edited, that changes the folder, SyncBatchNorm, ties."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.small_project import ARCHITECTURE, CLASSES, Project, run_here
from torch import Tensor, nn
from torch.nn import functional

from sapcli import repair

Activation = Callable[[Tensor], Tensor]


def pixels_of(split: Path, classes: tuple[str, ...] = CLASSES) -> tuple[Tensor, Tensor]:
    """All images of a split as the small project's network takes them, and their labels, read by Pillow."""
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((split / name).glob("*.png"))]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
    images = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    return images, torch.tensor([label for _, label in files])


def plain_losses(checkpoint: Path, split: Path, act: Activation = functional.relu) -> Tensor:
    """The cross-entropy of each image of a split, written out for the small project's network."""
    weights = load_file(checkpoint)
    images, labels = pixels_of(split)
    hidden = functional.conv2d(images, weights["0.weight"], weights["0.bias"], padding=1)
    statistics = weights["1.running_mean"], weights["1.running_var"]
    hidden = functional.batch_norm(hidden, *statistics, weights["1.weight"], weights["1.bias"])
    logits = functional.linear(act(hidden).flatten(1), weights["4.weight"], weights["4.bias"])
    return functional.cross_entropy(logits.double(), labels, reduction="none")


# Code that is edited between two runs

ACTIVATIONS: dict[str, Activation] = {
    "torch.relu(x)": functional.relu,
    "torch.nn.functional.leaky_relu(x, 0.1)": lambda x: functional.leaky_relu(x, 0.1),
    "torch.nn.functional.softplus(x)": functional.softplus,
}
FORWARD = """
class Network(nn.Sequential):
    def forward(self, x):
        {late}
        return self[4](self[3](act(self[1](self[0](x)))))
"""


def write_code(folder: Path, place: str, formula: str) -> None:
    """Write `network.py` whose activation stands in some place."""
    act = f"import torch\ndef act(x):\n    return {formula}\n"
    early, late = "", "pass"
    if place == "in a neighbour":
        (folder / "neighbour_of_net.py").write_text(act)
        early = "from neighbour_of_net import act\n"
    elif place == "in a package that forward imports":
        (folder / "package_of_net" / "parts").mkdir(parents=True, exist_ok=True)
        (folder / "package_of_net" / "__init__.py").touch()
        (folder / "package_of_net" / "parts" / "__init__.py").write_text("from .acts import act\n")
        (folder / "package_of_net" / "parts" / "acts.py").write_text(act)
        late = "from package_of_net.parts import act"
    else:
        early = act
    text = early + ARCHITECTURE.replace("class Network(nn.Sequential):\n", FORWARD.format(late=late), 1)
    (folder / "network.py").write_text(text)


def selected_losses(project: Project) -> dict[int, float]:
    """The losses that `sap select` writes, with a cache that all runs share."""
    ended = run_here(
        *("select", project.checkpoint, project.data, "--arch", f"{project.folder / 'network.py'}:tiny", "-n", "60"),
        *("--cache-dir", project.folder / "cache"),
    )
    assert ended.status == 0, ended.stderr
    return {row["index"]: row["loss"] for row in map(json.loads, ended.stdout.splitlines())}


def assert_of(project: Project, found: dict[int, float], act: Activation) -> None:
    """Assert that losses are those of the 20 best images of each class, by the network with an activation."""
    losses = plain_losses(project.checkpoint, project.data / "train", act)
    expected = {
        40 * label + int(at) for label in range(3) for at in losses[40 * label : 40 * label + 40].argsort()[:20]
    }
    assert set(found) == expected
    assert [found[index] for index in sorted(found)] == pytest.approx(losses[sorted(found)].tolist(), rel=1e-4)


@pytest.mark.parametrize("place", ["in a neighbour", "in a package that forward imports", "in the file itself"])
def test_the_cache_holds_nothing_of_code_that_has_changed(project: Project, place: str) -> None:
    for formula, act in [*ACTIVATIONS.items(), *ACTIVATIONS.items()]:
        write_code(project.folder, place, formula)
        assert_of(project, selected_losses(project), act)


@pytest.mark.parametrize("place", ["in a neighbour", "in a package that forward imports", "in the file itself"])
def test_code_that_changes_between_two_repairs_of_one_process(project: Project, place: str) -> None:
    for formula, act in ACTIVATIONS.items():
        write_code(project.folder, place, formula)
        repaired = repair(
            *(project.checkpoint, project.data),
            arch=f"{project.folder / 'network.py'}:tiny",
            trusted_count=60,
            alpha=1000,
            cache_dir=project.folder / "cache",
        )
        written = repaired.save(project.folder / "repaired.safetensors")
        # What was repaired is a network with that activation: its losses, by its own statistics of BatchNorm.
        losses = plain_losses(written, project.data / "val", act)
        after = repaired.outcome.after
        assert after is not None
        assert after.loss == pytest.approx(float(losses.mean()), rel=1e-4)
        assert_of(project, selected_losses(project), act)


# Code that changes the working folder


@pytest.mark.parametrize("when", ["at the import", "in the factory", "in every forward pass"])
def test_paths_are_those_of_the_folder_in_which_the_command_was_typed(project: Project, when: str) -> None:
    elsewhere = project.folder / "code"
    # Other images lie under the same names where the code goes: each class has those of the next.
    for split in ("train", "val"):
        for label, name in enumerate(CLASSES):
            shutil.copytree(project.data / split / name, elsewhere / "data" / split / CLASSES[(label + 1) % 3])
    go = "os.chdir(os.path.dirname(os.path.abspath(__file__)))"
    text = f"import os\n{go if when == 'at the import' else ''}\n" + ARCHITECTURE
    if when == "in the factory":
        text = text.replace("    layers =", f"    {go}\n    layers =", 1)
    elif when == "in every forward pass":
        forward = f"    def forward(self, x):\n        {go}\n        return super().forward(x)\n"
        text = text.replace("class Network(nn.Sequential):\n", f"class Network(nn.Sequential):\n{forward}", 1)
    (elsewhere / "network.py").write_text(text)
    arguments = ("--arch", "code/network.py:tiny", "--cache-dir", "cache", "-q")
    ended = run_here("eval", "model.safetensors", "data", *arguments, "--format", "json")
    assert ended.status == 0, ended.stderr
    expected = float(plain_losses(project.checkpoint, project.data / "val").mean())
    assert json.loads(ended.stdout)["loss"] == pytest.approx(expected, rel=1e-4)
    ended = run_here("project", "model.safetensors", "data", *arguments, "-n", "30", "--alpha", "9", "-o", "out.st")
    assert (ended.status, ended.stdout) == (0, b"out.st\n"), ended.stderr
    assert (project.folder / "out.st").exists()
    assert {path.name for path in elsewhere.iterdir()} - {"__pycache__"} == {"data", "network.py"}


# SyncBatchNorm

SYNCHRONISED = {
    "as it is": "nn.SyncBatchNorm(8)",
    "with a cumulative average": "nn.SyncBatchNorm(8, momentum=None)",
    "converted": "nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(8, eps=1e-3))",
}


@pytest.mark.parametrize("kind", SYNCHRONISED)
def test_statistics_of_synchronised_batchnorm(project: Project, kind: str) -> None:
    text = ARCHITECTURE.replace("nn.BatchNorm2d(8)", SYNCHRONISED[kind])
    (project.folder / "network.py").write_text(text)
    output = project.folder / "out.safetensors"
    ended = run_here(
        *("project", project.checkpoint, project.data, "--arch", f"{project.folder / 'network.py'}:tiny"),
        *("-n", "30", "--alpha", "100", "-o", output),
    )
    assert ended.status == 0, ended.stderr
    before, after = load_file(project.checkpoint), load_file(output)
    # All 120 images are one batch: the statistics are its own, behind the convolution with its new weights.
    hidden = functional.conv2d(pixels_of(project.data / "train")[0], after["0.weight"], after["0.bias"], padding=1)
    values = hidden.movedim(1, -1).reshape(-1, 8)
    torch.testing.assert_close(after["1.running_mean"], values.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after["1.running_var"], values.var(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before["1.running_var"], after["1.running_var"], rtol=1e-2)


# Equal logits

TIES = {
    "all equal": [0.0] * 10,
    "a place for one of six": [2.0] * 4 + [1.0] * 6,
    "two places for three": [3.0, 3.0, 2.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0],
    "the last ones equal": [9.0, 8.0, 7.0, 6.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("kind", TIES)
def test_top5_of_equal_logits(tmp_path: Path, kind: str) -> None:
    names = tuple("abcdefghij")
    for label, name in enumerate(names):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(1 + label % 3):
            Image.new("RGB", (8, 8), (20 * label, 10, 9 * number)).save(tmp_path / "data" / name / f"{number}.png")
    (tmp_path / "network.py").write_text(ARCHITECTURE.replace("num_classes=3", "num_classes=10"))
    names_of_entries: dict[str, object] = {}
    exec(ARCHITECTURE, names_of_entries)
    module = names_of_entries["tiny"](10)  # type: ignore[operator]
    assert isinstance(module, nn.Module)
    state = module.state_dict()
    state["4.weight"].zero_()
    state["4.bias"].copy_(torch.tensor(TIES[kind]))
    save_file(state, tmp_path / "model.safetensors")
    ended = run_here("eval", tmp_path / "model.safetensors", tmp_path / "data", "--arch", f"{tmp_path}/network.py:tiny")
    assert ended.status == 0, ended.stderr
    # Equals are put in an order by lot, many times.
    _, labels = pixels_of(tmp_path / "data", names)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor(TIES[kind]) + 1e-3 * torch.rand(20_000, 10, generator=generator)
    share = torch.zeros(10).scatter_add_(0, drawn.topk(5).indices.flatten(), torch.ones(100_000)) / 20_000
    assert json.loads(ended.stdout)["top5"] == pytest.approx(100 * float(share[labels].mean()), abs=0.5)
