"""`sap noise` on folders and label files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image
from support.small_project import run_here as sap


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 20), ("test", 3)):
        for name in ("ant", "bee", "cow"):
            place = tmp_path / "data" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(place / f"{number}.png")
    return tmp_path


def read(file: Path) -> dict[str, str]:
    with file.open(newline="") as handle:
        return {row["path"]: row["label"] for row in csv.DictReader(handle)}


def test_a_label_file_and_the_truth(folder: Path) -> None:
    outputs = "-o", folder / "noisy.csv", "--truth", folder / "truth.csv"
    ended = sap("noise", folder / "data", "--kind", "symmetric", "--rate", "0.25", *outputs)
    assert ended.status == 0, ended.stderr
    assert "15 of 60 labels are wrong" in ended.stderr
    noisy, truth = read(folder / "noisy.csv"), read(folder / "truth.csv")
    assert noisy.keys() == truth.keys()
    assert all(Path(path).parent.name == label for path, label in truth.items())
    assert sum(noisy[path] != truth[path] for path in truth) == 15


def test_what_it_writes_is_taken_as_labels(folder: Path) -> None:
    """Noise on top of noise: the first file has the right labels of the second."""
    assert sap("noise", folder / "data", "--kind", "asymmetric", "--rate", "1", "-o", folder / "one.csv").status == 0
    more = "--labels", folder / "one.csv", "--kind", "asymmetric", "--rate", "1", "-o", folder / "two.csv"
    assert sap("noise", folder / "data", *more).status == 0
    following = {"ant": "bee", "bee": "cow", "cow": "ant"}
    one, two = read(folder / "one.csv"), read(folder / "two.csv")
    assert all(following[Path(path).parent.name] == label for path, label in one.items())
    assert all(two[path] == following[label] for path, label in one.items())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--kind", "symmetric", "--rate", "0.5", "--pair", "ant=bee"), "--pair"),
        (("--kind", "asymmetric", "--rate", "0.5", "--pair", "ant"), "CLASS=TAKEN_FOR"),
        (("--kind", "hierarchical", "--rate", "0.5"), "groups"),
        (("--kind", "symmetric", "--rate", "0.5", "--format", "json"), "stdout"),
    ],
)
def test_what_makes_no_sense_is_told(folder: Path, options: tuple[str, ...], named: str) -> None:
    ended = sap("noise", folder / "data", *options)
    assert ended.status in {1, 2}
    assert named in ended.stderr
    assert len(ended.stderr.splitlines()) == 2
