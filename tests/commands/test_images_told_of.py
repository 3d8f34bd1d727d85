"""What a command says of images that the training may have seen otherwise, and what becomes of `--exif`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from support.small_project import Outcome, Project, make_project, run_here


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A trained project; not to be changed."""
    return make_project(tmp_path_factory.mktemp("made"))


@pytest.fixture
def project(made: Project, tmp_path: Path) -> Project:
    return Project(Path(shutil.copytree(made.folder, tmp_path / "project")))


def command(name: str, project: Project, *more: str | Path) -> Outcome:
    options = () if name == "eval" else ("-n", "30")
    ended = run_here(
        *(name, project.checkpoint, project.data, "--arch", f"{project.folder}/network.py:tiny", "--workers", "0"),
        *(*options, *more),
    )
    assert ended.status == 0, ended.stderr
    return ended


def in_grey(project: Project, highest: int, dtype: type = np.uint16, split: str = "val") -> None:
    """Write a split's images as grey values up to a highest."""
    for path in sorted((project.data / split).rglob("*.png")):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.float64)
        grey[0, 0] = 255
        Image.fromarray((grey * (highest / 255)).astype(dtype)).save(path)


def said(ended: Outcome, words: str) -> list[str]:
    return [line for line in ended.stderr.splitlines() if words in line]


def turn(project: Project, split: str, count: int) -> None:
    """Have some images carry an orientation, their pixels as they were."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in sorted((project.data / split).rglob("*.png"))[:count]:
        Image.open(path).save(path, exif=exif)


@pytest.mark.parametrize(
    ("highest", "words", "doubtful"),
    [
        (65535, "60 divided by 257, they need 16 bits (the highest is 65535)", False),
        (255, "60 taken as they are, none is above 255 (the highest is 255)", False),
        (1023, "60 divided by 257, they need 16 bits (the highest is 1023); they are nearly black", True),
    ],
)
def test_the_scaling_of_more_than_8_bits_is_said_once(
    project: Project, highest: int, words: str, doubtful: bool
) -> None:
    in_grey(project, highest)
    (line,) = said(command("eval", project), "grey values of more than 8 bits of 60 images")
    assert words in line
    assert line.startswith("warning:") == doubtful
    (again,) = said(command("eval", project, "--baseline", project.checkpoint), "grey values of more than 8 bits")
    assert again == line


def test_images_that_seem_to_be_meant_differently_are_warned_of(project: Project) -> None:
    in_grey(project, 65535)
    for path in sorted((project.data / "val" / "red").iterdir())[:4]:
        Image.fromarray(np.full((8, 8), 200, np.uint16)).save(path)
    (line,) = said(command("eval", project), "grey values of more than 8 bits")
    assert line.startswith("warning:")
    assert "56 divided by 257" in line
    assert "4 taken as they are" in line


def test_all_is_said_again_where_the_images_are_not_looked_at_again(project: Project, tmp_path: Path) -> None:
    in_grey(project, 65535, split="train")
    turn(project, "train", 0)
    first = command("select", project, "--cache-dir", tmp_path / "cache")
    second = command("select", project, "--cache-dir", tmp_path / "cache")
    assert said(second, "from the cache")
    for ended in (first, second):
        assert len(said(ended, "grey values of more than 8 bits of 120 images")) == 1


def test_images_with_an_orientation_are_counted(project: Project) -> None:
    assert not said(command("eval", project), "EXIF")
    turn(project, "val", 7)
    (line,) = said(command("eval", project), "7 images carry an EXIF orientation, which is not applied")
    assert "--exif apply" in line
    ended = command("eval", project, "--exif", "apply")
    assert said(ended, "7 images were turned upright by their EXIF orientation")
    assert said(ended, "std 0.25,0.25,0.25, EXIF orientation applied (")


def test_a_corrected_checkpoint_remembers_that_the_orientation_was_applied(project: Project) -> None:
    turn(project, "val", 60)
    turn(project, "train", 120)
    for given, kept in (((), None), (("--exif", "apply"), "apply")):
        output = project.folder / "out.safetensors"
        command("project", project, "--alpha", "1000", "--force", "-o", output, *given)
        with safe_open(output, "pt") as file:
            settings = json.loads(file.metadata()["sap.pretrained_cfg"])
        assert settings.get("exif") == kept
        corrected = Project(project.folder)
        shutil.copy(output, corrected.checkpoint)
        # A network of the user's own remembers how its images are prepared only from what the file says.
        assert bool(said(command("eval", corrected), "were turned upright")) == (kept == "apply")
        assert not said(command("eval", corrected, "--exif", "ignore"), "were turned upright")


@pytest.mark.parametrize("value", ["upright", "1", ""])
def test_senseless_values_of_the_option(project: Project, value: str) -> None:
    ended = run_here("eval", project.checkpoint, project.data, "--exif", value)
    assert ended.status == 2
    assert "--exif" in ended.stderr
