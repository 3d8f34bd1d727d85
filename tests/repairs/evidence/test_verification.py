"""A corrected checkpoint against its metadata: what holds, and what is noticed when it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.small_project import Project, make_project, run_here

COMMON = ("--arch", "network.py:tiny", "--workers", "0", "--quiet")
EVERYTHING = ("verify", "out.safetensors", "--input", "model.safetensors", "--bases", "bases.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project with its repair, its bases, and those of a forget set."""
    project = make_project(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        run_well("select", "model.safetensors", "data", *COMMON, "-n", "30", "-o", "trusted.jsonl")
        (project.folder / "forget.txt").write_text("0\n1\n2\n40\n41\n80\n")
        for samples, bases in (("trusted.jsonl", "bases.safetensors"), ("forget.txt", "forget.safetensors")):
            run_well("activations", "model.safetensors", "data", *COMMON, "--trusted", samples, "-o", bases)
        project_with = ("project", "model.safetensors", "data", *COMMON, "--trusted", "trusted.jsonl")
        run_well(*project_with, "-o", "out.safetensors")
        run_well(*project_with, "--forget", "forget.txt", "--alpha", "300", "-o", "forgotten.safetensors")
        run_well(*project_with, "--importance", "gpm", "--alpha", "0.9", "-o", "gpm.safetensors")
    return project


@pytest.fixture
def project(made: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy to spoil, as the working folder."""
    shutil.copytree(made.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")


def run_well(*arguments: str) -> str:
    outcome = run_here(*arguments)
    assert outcome.status == 0, outcome.stderr
    return outcome.stdout.decode()


def change(file: str, of_tensors: Callable[[dict[str, torch.Tensor]], object], **metadata: str) -> None:
    """Change tensors of a checkpoint and keep its metadata but for what is given."""
    with safe_open(file, framework="pt") as opened:
        kept = opened.metadata()
    tensors = load_file(file)
    of_tensors(tensors)
    save_file(tensors, file, (kept or {}) | {f"sap.{key}": value for key, value in metadata.items()})


@pytest.mark.usefixtures("project")
def test_a_repair_is_what_it_says() -> None:
    said = run_well(*EVERYTHING).splitlines()
    assert len(said) == 5
    assert all(line.startswith("yes  ") for line in said)
    assert "2 weights are the original's projected" in said[-1]
    assert len(run_well("verify", "out.safetensors").splitlines()) == 1
    assert run_well(*EVERYTHING, "--quiet") == ""


@pytest.mark.usefixtures("project")
def test_other_ways_of_projecting() -> None:
    run_well("verify", "gpm.safetensors", *EVERYTHING[2:])
    run_well("verify", "forgotten.safetensors", *EVERYTHING[2:], "--bases", "forget.safetensors")


@pytest.mark.usefixtures("project")
def test_bases_of_a_forget_set_have_to_be_there() -> None:
    outcome = run_here("verify", "forgotten.safetensors", *EVERYTHING[2:])
    assert outcome.status == 1
    assert "forget set" in outcome.stderr


def test_an_unchanged_model_is_what_it_says(project: Project) -> None:
    model = ("project", "model.safetensors", "data", *COMMON, "--trusted", "trusted.jsonl")
    (project.folder / "data" / "val").rename(project.folder / "validation")
    # Validation images on which the model is right already: nothing beats it.
    shutil.copytree(project.folder / "data" / "train", project.folder / "data" / "val")
    run_well(*model, "-o", "unchanged.safetensors")
    with safe_open("unchanged.safetensors", framework="pt") as file:
        assert file.metadata()["sap.repaired"] == "false"
    assert "nothing was projected" in run_well("verify", "unchanged.safetensors", *EVERYTHING[2:])


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(
            lambda: change("out.safetensors", lambda tensors: tensors["4.bias"].add_(1)),
            "the weights have the hash",
            id="weights",
        ),
        pytest.param(
            lambda: change("model.safetensors", lambda tensors: tensors["4.bias"].add_(1)),
            "model.safetensors is what was repaired",
            id="another original",
        ),
        pytest.param(
            lambda: change("out.safetensors", lambda tensors: tensors["4.bias"].add_(1)),
            "bit for bit the original's, but for 1: 4.bias",
            id="a bias",
        ),
        pytest.param(
            lambda: change("out.safetensors", lambda tensors: tensors["4.weight"].mul_(1.001)),
            "projected with alpha",
            id="a projected weight",
        ),
        pytest.param(
            lambda: change("out.safetensors", dict, alpha="12345"), "projected with alpha 12345", id="another alpha"
        ),
        pytest.param(
            lambda: change("out.safetensors", dict, importance="sgp"), "projected with alpha", id="another formula"
        ),
        pytest.param(
            lambda: change("out.safetensors", dict, projected=json.dumps({"4.weight": "4.weight"})),
            "bit for bit the original's, but for 1: 0.weight",
            id="a weight unclaimed",
        ),
        pytest.param(
            lambda: change("out.safetensors", dict, projected=json.dumps({"4.weight": "0.weight"})),
            "but for 1: 4.weight",
            id="bases of another layer",
        ),
        pytest.param(
            lambda: change("out.safetensors", dict, projected=json.dumps({"gone": "4.weight"})),
            "but for 1: gone",
            id="a weight that is not there",
        ),
        pytest.param(
            lambda: change("out.safetensors", lambda tensors: tensors.pop("4.bias")),
            "names, order, types and shapes",
            id="a tensor missing",
        ),
        pytest.param(lambda: change("out.safetensors", dict, trusted="0"), "trusted samples", id="other samples"),
    ],
)
def test_what_does_not_hold_is_named(spoil: Callable[[], object], says: str) -> None:
    spoil()
    outcome = run_here(*EVERYTHING)
    assert outcome.status == 1
    assert says in outcome.stderr
    assert any(line.startswith("NO ") and says in line for line in outcome.stdout.decode().splitlines())


@pytest.mark.usefixtures("project")
def test_a_later_change_of_the_metadata_alone_is_allowed() -> None:
    change("out.safetensors", dict, note="looked at by two people")
    run_well(*EVERYTHING)
