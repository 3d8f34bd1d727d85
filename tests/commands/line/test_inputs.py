"""What commands start from: bases from stdin, and what they tell of a checkpoint and its data before they begin."""

from __future__ import annotations

import json
import shutil
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


OPTIONS = ("--arch", "network.py:tiny", "--workers", "0", "--quiet")


@pytest.fixture
def bases(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What `sap activations` writes of a copy of the project, which is the working folder."""
    shutil.copytree(project.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    made = run_here("activations", "model.safetensors", "data", *OPTIONS, "-n", "30", "-o", "-")
    assert made.status == 0, made.stderr
    Path("bases.safetensors").write_bytes(made.stdout)
    return made.stdout


def test_bases_from_stdin_are_those_of_the_file(bases: bytes) -> None:
    command = ("project", "model.safetensors", "data", *OPTIONS, "--alpha", "1000", "-o", "-")
    from_file = run_here(*command, "--bases", "bases.safetensors")
    piped = run_here(*command, "--bases", "-", stdin=bases)
    assert piped.status == 0, piped.stderr
    assert len(piped.stdout) > 1000
    assert piped.stdout == from_file.stdout


def test_a_repair_is_verified_with_bases_from_stdin(bases: bytes) -> None:
    command = ("project", "model.safetensors", "data", *OPTIONS, "--alpha", "1000", "--bases", "bases.safetensors")
    assert run_here(*command, "-o", "out.safetensors").status == 0
    verify = ("verify", "out.safetensors", "--input", "model.safetensors", "--bases", "-")
    verified = run_here(*verify, stdin=bases)
    assert verified.status == 0, verified.stderr
    assert "2 weights are the original's projected with alpha 1000" in verified.stdout.decode()


@pytest.mark.parametrize("content", [b"", b"no bases", bytes(100)], ids=["nothing", "text", "zeros"])
@pytest.mark.usefixtures("bases")
def test_what_comes_through_stdin_instead_of_bases_is_named(content: bytes) -> None:
    ended = run_here("project", "model.safetensors", "data", *OPTIONS, "--bases", "-", stdin=content)
    assert ended.status == 1
    assert ended.stdout == b""
    assert ended.stderr.startswith("error: stdin cannot be read as bases")
    assert len(ended.stderr.splitlines()) == 2
