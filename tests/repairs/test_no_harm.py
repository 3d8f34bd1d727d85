"""What a repair must never do: judge itself on what it chose by, get worse, or depend on how fast it was made."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.small_project import CLASSES, Outcome, Project, make_project, run_here

COMMON = ("--arch", "network.py:tiny", "--workers", "0")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("original"))


@pytest.fixture
def project(original: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    shutil.copytree(original.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")


def repair(*more: str, checkpoint: str = "model.safetensors", output: str = "out.safetensors") -> Outcome:
    outcome = run_here("project", checkpoint, "data", *COMMON, "-n", "30", "-o", output, "--force", *more)
    assert outcome.status == 0, outcome.stderr
    return outcome


def metadata_of(file: str) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        found: dict[str, str] = opened.metadata()
    return found


def accuracy(checkpoint: str) -> float:
    outcome = run_here("eval", checkpoint, "data", *COMMON, "--split", "val", "--quiet")
    assert outcome.status == 0, outcome.stderr
    found: float = json.loads(outcome.stdout)["top1"]
    return found


def trusted_paths() -> list[str]:
    outcome = run_here("select", "model.safetensors", "data", *COMMON, "-n", "30", "--quiet")
    return [json.loads(line)["path"] for line in outcome.stdout.splitlines()]


def test_copies_of_validation_images_are_not_trusted(project: Project) -> None:
    copied = trusted_paths()[::3]
    for number, path in enumerate(copied):
        shutil.copy(project.data / path, project.data / "val" / path.split("/")[1] / f"copy{number}.png")
    outcome = run_here("select", "model.safetensors", "data", *COMMON, "-n", "30")
    selected = [json.loads(line)["path"] for line in outcome.stdout.splitlines()]
    assert len(selected) == 30
    assert not set(selected) & set(copied)
    assert f"{len(copied)} training images are copies of validation images and are not trusted" in outcome.stderr


@pytest.mark.parametrize("as_folder", [False, True])
def test_given_trusted_samples_do_not_judge(project: Project, as_folder: bool) -> None:
    for number, name in enumerate(CLASSES):
        shutil.copy(project.data / f"train/{name}/01.png", project.data / "val" / name / f"copy{number}.png")
    trusted = [f"train/{name}/{number:02}.png" for name in CLASSES for number in (1, 2, 3, 5, 6, 7)]
    (project.folder / "trusted.txt").write_text("\n".join(trusted))
    for path in trusted:
        (project.folder / "trusted" / path.split("/")[1]).mkdir(parents=True, exist_ok=True)
        shutil.copy(project.data / path, project.folder / "trusted" / path.split("/", 1)[1])
    outcome = repair("--trusted", "trusted" if as_folder else "trusted.txt")
    assert "3 validation images are trusted samples too and do not judge" in outcome.stderr
    assert metadata_of("out.safetensors")["sap.validation_images"] == "60"


def test_validation_images_that_are_all_trusted_leave_the_knee(project: Project) -> None:
    shutil.rmtree(project.data / "val")
    for name in CLASSES:
        for number in (1, 2, 3):
            (project.data / "val" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(project.data / f"train/{name}/{number:02}.png", project.data / "val" / name)
    trusted = [f"train/{name}/{number:02}.png" for name in CLASSES for number in range(10)]
    (project.folder / "trusted.txt").write_text("\n".join(trusted))
    outcome = repair("--trusted", "trusted.txt")
    assert "there are no validation images: alpha is chosen on the trusted samples alone" in outcome.stderr
    assert metadata_of("out.safetensors")["sap.evidence"] == "trusted knee"


def test_thin_evidence_is_named(project: Project) -> None:
    said = repair().stderr
    assert "warning: there are only 60 validation images" in said
    assert "warning: 3 classes have less than 30 trusted samples: blue (10), green (10), red (10)" in said
    assert "contradicts" not in said
    swapped = [{"path": f"train/{name}/{number:02}.png"} for name in CLASSES for number in range(40)]
    (project.folder / "trusted.jsonl").write_text("\n".join(map(json.dumps, swapped)))
    rotated = "\n".join(f"train/{CLASSES[k]}/{n:02}.png,{CLASSES[(k + 1) % 3]}" for k in range(3) for n in range(40))
    (project.folder / "labels.csv").write_text(f"path,label\n{rotated}\n")
    said = repair("--trusted", "trusted.jsonl", "--labels", "labels.csv", "--alpha", "1000").stderr
    assert "the model itself contradicts the labels of 120 of 120 trusted samples" in said


def test_without_validation_images_it_says_what_chose(project: Project) -> None:
    shutil.rmtree(project.data / "val")
    assert "there are no validation images: alpha is chosen on the trusted samples alone" in repair().stderr


def test_evaluating_on_trusted_images_is_pointed_out(project: Project) -> None:
    repair()
    paths = trusted_paths()[:4]
    for path in paths:
        (project.folder / "judge" / path.split("/")[1]).mkdir(parents=True, exist_ok=True)
        shutil.copy(project.data / path, project.folder / "judge" / path.split("/")[1] / "under another name.png")
    for name in CLASSES:
        shutil.copytree(project.data / "val" / name, project.folder / "judge" / name, dirs_exist_ok=True)
    shared = len(list((project.folder / "judge").rglob("under another name.png")))
    said = run_here("eval", "out.safetensors", "judge", *COMMON).stderr
    assert f"{shared} of the {60 + shared} images" in said
    assert "trusted samples" in said
    assert "trusted samples" not in run_here("eval", "model.safetensors", "judge", *COMMON).stderr
    assert "trusted samples" not in run_here("eval", "out.safetensors", "data", *COMMON).stderr
    # A second repair does not make the first one's samples strangers.
    repair("--trusted", other_samples(project), checkpoint="out.safetensors", output="twice.safetensors")
    assert f"{shared} of the" in run_here("eval", "twice.safetensors", "judge", *COMMON).stderr


def other_samples(project: Project) -> str:
    rest = sorted({f"train/{name}/{number:02}.png" for name in CLASSES for number in range(40)} - set(trusted_paths()))
    (project.folder / "rest.txt").write_text("\n".join(rest))
    return "rest.txt"


@pytest.mark.usefixtures("project")
def test_a_second_repair_says_so_and_does_no_harm() -> None:
    assert "was repaired before" not in repair().stderr
    outcome = repair(checkpoint="out.safetensors", output="twice.safetensors")
    lines = outcome.stderr.splitlines()
    said = next(number for number, line in enumerate(lines) if "out.safetensors was repaired before" in line)
    assert said < next(number for number, line in enumerate(lines) if "choosing alpha" in line)
    before, once, twice = map(accuracy, ("model.safetensors", "out.safetensors", "twice.safetensors"))
    assert before <= once <= twice


@pytest.mark.parametrize("more", [(), ("--strategy", "curvature"), ("--strategy", "random", "--seed", "3")])
def test_the_same_bytes_whatever_the_number_of_workers(project: Project, more: tuple[str, ...]) -> None:
    written = []
    for workers in ("0", "1", "3"):
        repair("--workers", workers, "--cache-dir", f"cache{workers}", *more)
        written.append((project.folder / "out.safetensors").read_bytes())
    assert written[0] == written[1] == written[2]


@pytest.mark.usefixtures("project")
def test_batch_sizes_change_no_more_than_rounding() -> None:
    expected, about = None, {}
    for size in ("128", "60", "7"):
        repair("--batch-size", size, "--alpha", "1000", "--cache-dir", f"cache{size}")
        found, about[size] = load_file("out.safetensors"), metadata_of("out.safetensors")
        expected = expected or found
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
    assert about["7"]["sap.trusted"] == about["60"]["sap.trusted"] == about["128"]["sap.trusted"]


def test_piped_and_from_files_is_the_same(project: Project) -> None:
    repair("--quiet")
    selected = run_here("select", "model.safetensors", "data", *COMMON, "-n", "30", "--quiet").stdout
    piped = run_here(
        *("project", "model.safetensors", "data", *COMMON, "--trusted", "-", "-o", "-", "--quiet"), stdin=selected
    )
    assert piped.stdout == (project.folder / "out.safetensors").read_bytes()


ODD_NETWORK = """
from torch import nn


class Network(nn.Module):
    pretrained_cfg = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.25,), "interpolation": "bilinear",
                      "crop_pct": 1.0}

    def __init__(self, num_classes=3):
        super().__init__()
        self.one_channel = nn.Conv2d(1, 4, 3, padding=1)
        self.zero = nn.Conv2d(4, 4, 3, padding=1)
        self.dead = nn.Conv2d(4, 4, 3, padding=1)
        self.after_dead = nn.Conv2d(4, 4, 1)
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(512, num_classes)

    def forward(self, images):
        hidden = self.one_channel(images)
        hidden = hidden + self.zero(hidden.relu())
        hidden = hidden + self.after_dead(self.dead(hidden).relu())
        return self.head(self.norm(self.grouped(hidden)).relu().flatten(1))


def odd(num_classes=3):
    return Network(num_classes)
"""


def test_odd_layers_are_repaired_finite_and_right(project: Project) -> None:
    (project.folder / "network.py").write_text(ODD_NETWORK)
    names: dict[str, object] = {}
    exec(ODD_NETWORK, names)
    torch.manual_seed(0)
    network = names["odd"]()  # type: ignore[operator]
    weights = network.state_dict()
    weights["zero.weight"].zero_()
    weights["dead.bias"].fill_(-1e4)  # its outputs are never positive, so nothing reaches the layer behind
    save_file(weights, "model.safetensors")
    for path in project.data.rglob("*.png"):
        # Images of one grey each: the rows of the first layer have few directions.
        grey = Image.open(path).convert("L")
        Image.new("L", (8, 8), int(np.asarray(grey).mean())).save(path)
    options = ("--arch", "network.py:odd", "--workers", "0", "--quiet")
    for importance, alpha in (("sap", "1000"), ("sgp", "100"), ("gpm", "0.95")):
        outcome = run_here(
            *("project", "model.safetensors", "data", *options, "-n", "30", "--importance", importance),
            *("--alpha", alpha, "-o", f"{importance}.safetensors"),
        )
        assert outcome.status == 0, outcome.stderr
        written = load_file(f"{importance}.safetensors")
        assert all(bool(torch.isfinite(tensor).all()) for tensor in written.values())
        assert not written["zero.weight"].any()
        assert torch.equal(written["after_dead.weight"], weights["after_dead.weight"])
        assert not torch.equal(written["head.weight"], weights["head.weight"])
        assert json.loads(metadata_of(f"{importance}.safetensors")["sap.projected"]).keys() >= {"one_channel.weight"}
        reference = projected_first_layer(project, weights["one_channel.weight"], importance, float(alpha))
        torch.testing.assert_close(written["one_channel.weight"], reference, rtol=1e-4, atol=1e-6)


def projected_first_layer(project: Project, weight: torch.Tensor, importance: str, alpha: float) -> torch.Tensor:
    """The first layer's projection, from the images and the formulas in float64."""
    outcome = run_here(
        *("select", "model.safetensors", "data", "--arch", "network.py:odd", "-n", "30", "--quiet", "--workers", "0")
    )
    paths = [json.loads(line)["path"] for line in outcome.stdout.splitlines()]
    pixels = np.stack([np.asarray(Image.open(os.path.join(project.data, path))) for path in paths])  # noqa: PTH118
    inputs = (torch.tensor(pixels, dtype=torch.float64).unsqueeze(1) / 255 - 0.5) / 0.25
    rows = torch.nn.functional.unfold(inputs, 3, padding=1).mT.reshape(-1, 9)
    values, vectors = torch.linalg.eigh(rows.mT @ rows)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    share = values / values.sum()
    kept = {
        "sap": alpha * share / ((alpha - 1) * share + 1),
        "sgp": alpha * values.sqrt() / ((alpha - 1) * values.sqrt() + values.sqrt().max()),
        "gpm": ((share.cumsum(0) - share < alpha) & (share > 0)).double(),
    }[importance]
    matrix = weight.reshape(4, 9).double()
    return ((matrix @ vectors * kept) @ vectors.mT).reshape(weight.shape).float()
