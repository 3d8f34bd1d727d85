"""Tests of the demo: its data, its network, its commands, and what they gain."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits
from support.digits import Trained
from support.processes import sap

from sapcli.commands.demo import make_model, write_digits
from sapcli.errors import SapError
from sapcli.machine.progress import SilentProgress

SIZES = {"train": 60, "val": 40, "test": 30}


def wrong_share(split: Path) -> float:
    """The share of the images of a split that stand in another digit's folder."""
    target = load_digits().target
    images = list(split.glob("*/*.png"))
    wrong = sum(int(target[int(image.stem)]) != int(image.parent.name) for image in images)
    return wrong / len(images)


def test_a_share_of_the_labels_is_wrong_but_for_the_test(tmp_path: Path) -> None:
    write_digits(tmp_path, SIZES, 0.3)
    numbers = {split: {image.stem for image in (tmp_path / split).glob("*/*.png")} for split in SIZES}
    assert {split: len(found) for split, found in numbers.items()} == SIZES
    assert len(set.union(*numbers.values())) == sum(SIZES.values())
    assert {split: wrong_share(tmp_path / split) for split in SIZES} == {"train": 0.3, "val": 0.3, "test": 0.0}


def test_the_images_are_the_digits(tmp_path: Path) -> None:
    write_digits(tmp_path, {"test": 5}, 0.0)
    digits = load_digits().images
    for path in tmp_path.glob("test/*/*.png"):
        with Image.open(path) as image:
            assert [value * 16 / 255 for value in image.tobytes()] == pytest.approx(
                digits[int(path.stem)].ravel().tolist(), abs=0.05
            )


def test_the_data_are_the_same_each_time_and_others_with_another_seed(tmp_path: Path) -> None:
    contents = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        write_digits(tmp_path / name, SIZES, 0.3, seed)
        files = sorted((tmp_path / name).rglob("*.png"))
        contents.append({str(file.relative_to(tmp_path / name)): file.read_bytes() for file in files})
    assert contents[0] == contents[1] != contents[2]


def test_the_network_memorises_wrong_labels(noisy: Trained) -> None:
    assert noisy.reproduced > 0.97
    assert json.loads(noisy.checkpoint.with_name("config.json").read_text())["num_classes"] == 10


def test_the_demo_gains_eight_points_or_more(tmp_path: Path) -> None:
    ended = sap("demo", "here", folder=tmp_path)
    assert ended.status == 0, ended.stderr
    shown = [line for line in ended.stderr.splitlines() if line.startswith("$ ")]
    assert [line.split()[:3] for line in shown] == [
        ["$", "sap", "eval"],
        ["$", "sap", "project"],
        ["$", "sap", "eval"],
    ]
    gain = re.search(r"^gain \+(\d+\.\d+) points", ended.stdout.decode(), re.MULTILINE)
    assert gain is not None
    assert float(gain[1]) >= 8
    assert {path.name for path in tmp_path.iterdir()} == {"here"}

    # Typed again as it was shown, the command works.
    ended = sap(*shown[0].split()[2:], folder=tmp_path)
    assert ended.status == 0, ended.stderr


def test_an_earlier_demo_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapcli.commands.demo._SIZES", SIZES)
    monkeypatch.setattr("sapcli.commands.demo._EPOCHS", 1)
    folder = tmp_path / "new" / "demo"
    make_model(folder, SilentProgress())
    first = (folder / "model.safetensors").read_bytes()
    (folder / "model.sap.safetensors").write_bytes(b"of an earlier run")
    (folder / "data" / "train" / "0" / "left.png").write_bytes(b"of an earlier version")
    make_model(folder, SilentProgress())
    assert (folder / "model.safetensors").read_bytes() == first
    assert not (folder / "model.sap.safetensors").exists()
    assert not list(folder.rglob("left.png"))


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(SapError, match="not a demo's"):
        make_model(tmp_path, SilentProgress())
    assert [path.name for path in tmp_path.rglob("*")] == ["data"]
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SapError, match="is a file"):
        make_model(file, SilentProgress())


def test_without_scikit_learn_the_hint_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SapError) as caught:
        make_model(tmp_path / "demo", SilentProgress())
    assert caught.value.hint == "pip install 'sapcli[demo]'"
