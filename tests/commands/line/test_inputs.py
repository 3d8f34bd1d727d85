"""What commands tell of a checkpoint and its data before they begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.small_project import Project, make_project, run_here


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Images of 8 pixels and a network for them."""
    return make_project(tmp_path_factory.mktemp("original") / "project")


@pytest.mark.parametrize(
    ("name", "config", "options", "is_said"),
    [
        ("test_resnet", {}, (), True),
        ("test_resnet", {}, ("--input-size", "64"), False),
        ("test_resnet", {"input_size": [3, 64, 64]}, (), False),
        ("test_vit", {}, (), False),  # its tensors tell the size
    ],
)
def test_images_that_are_much_enlarged_are_told_of(
    project: Project, tmp_path: Path, name: str, config: dict[str, object], options: tuple[str, ...], is_said: bool
) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model(name, num_classes=3).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": config}))
    outcome = run_here("project", tmp_path / "model.safetensors", project.data, "--dry-run", *options)
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr.count("images of 8 pixels are enlarged to 160x160") == is_said


def test_a_network_that_names_its_size_takes_images_as_it_says(project: Project) -> None:
    (project.folder / "larger.py").write_text((project.folder / "network.py").read_text().replace("8, 8)", "32, 32)"))
    arguments = ("--arch", f"{project.folder}/larger.py:tiny")
    outcome = run_here("eval", project.checkpoint, project.data, *arguments)
    assert "cannot run on images of 3x32x32" in outcome.stderr
    assert "enlarged" not in outcome.stderr
