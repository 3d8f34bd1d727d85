"""What opening a checkpoint with its data tells of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_project import Project, make_project, run_here

FACTORY = """
from torch import nn


class Pooling(nn.Sequential):
    pretrained_cfg = {"input_size": (3, 24, 24), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def pooling(num_classes=3):
    return Pooling(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Images of 8 pixels and a network for them."""
    return make_project(tmp_path_factory.mktemp("original") / "project")


@pytest.mark.parametrize(
    ("options", "is_said"),
    [((), True), (("--input-size", "24"), False), (("--input-size", "8"), False)],
)
def test_images_that_are_much_enlarged_are_told_of(
    project: Project, tmp_path: Path, options: tuple[str, ...], is_said: bool
) -> None:
    (tmp_path / "pooling.py").write_text(FACTORY)
    names: dict[str, object] = {}
    exec(FACTORY, names)
    torch.manual_seed(0)
    save_file(names["pooling"]().state_dict(), tmp_path / "model.safetensors")  # type: ignore[operator]
    arguments = (tmp_path / "model.safetensors", project.data, "--arch", f"{tmp_path}/pooling.py:pooling")
    outcome = run_here("eval", *arguments, *options)
    assert outcome.status == 0, outcome.stderr
    assert ("images of 8 pixels are enlarged to 24x24" in outcome.stderr) == is_said
    assert outcome.stderr.count("enlarged") <= 1


def test_images_of_the_network_s_size_are_not(project: Project) -> None:
    outcome = run_here("eval", project.checkpoint, project.data, "--arch", f"{project.folder}/network.py:tiny")
    assert outcome.status == 0
    assert "enlarged" not in outcome.stderr
