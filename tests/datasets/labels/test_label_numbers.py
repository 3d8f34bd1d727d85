"""Labels that are numbers: against Python's own int and float, and what NumPy's unique values would be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data_folders import label_of, opened, write_classes, write_image

from sapcli.datasets.dataset import Dataset
from sapcli.datasets.labels.label_numbers import whole_number
from sapcli.errors import DatasetError


def labelled(folder: Path, labels: list[str], num_classes: int, **options: object) -> Dataset:
    """A flat folder of an image for each label, and the label file."""
    for number in range(len(labels)):
        write_image(folder / "images" / f"{number:03}.png")
    rows = [f"images/{number:03}.png,{label}" for number, label in enumerate(labels)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return opened(folder, num_classes=num_classes, labels=folder / "labels.csv", **options)


@given(number=st.integers(-(10**20), 10**20), form=st.sampled_from(["{}", "{}.0", "{}.", "{}.000", "{:+}", "{:.1f}"]))
def test_whole_numbers_in_any_form(number: int, form: str) -> None:
    text = form.format(number)
    assert whole_number(text) == int(float(text) if form == "{:.1f}" else number)


@pytest.mark.parametrize(
    "text", ["", "1.5", "cat", "1_0", "\u0661", " 1", "nan", "inf", "0x1", "1e", "--1", "1e9999", "1,0"]
)
def test_other_texts_are_no_whole_numbers(text: str) -> None:
    assert whole_number(text) is None


@pytest.mark.parametrize("form", ["{}", "{}.0", "{:02}", "{:05}", "+{}", "{}e0", "{}.00"])
@pytest.mark.parametrize("count", [2, 12, 101])
def test_numbers_of_outputs_in_any_form(tmp_path: Path, form: str, count: int) -> None:
    numbers = [(7 * position) % count for position in range(count)]
    dataset = labelled(tmp_path, [form.format(number) for number in numbers], count)
    assert dataset.labels == tuple(numbers)
    assert dataset.classes == tuple(str(number) for number in range(count))


def test_whole_floats_of_json_lines(tmp_path: Path) -> None:
    lines = []
    for number in range(12):
        write_image(tmp_path / f"{number:02}.png")
        lines.append(json.dumps({"path": f"{number:02}.png", "label": float(number)}))
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    assert opened(tmp_path, num_classes=12, labels=tmp_path / "labels.jsonl").labels == tuple(range(12))


@pytest.mark.parametrize("labels", [["0", "3", "11"], ["5.0", "02", "0"]])
def test_gaps_are_classes_without_images(tmp_path: Path, labels: list[str]) -> None:
    dataset = labelled(tmp_path, labels, 12)
    assert dataset.labels == tuple(int(float(label)) for label in labels)
    assert len(dataset.classes) == 12


@pytest.mark.parametrize("form", ["{}", "{}.0", "{:02}"])
@pytest.mark.parametrize(("numbers", "count"), [(range(1, 13), 12), (range(1, 4), 3), ((3, 12), 12)])
@pytest.mark.parametrize("named", [False, True])
def test_numbers_from_1_are_an_error(tmp_path: Path, numbers: range, count: int, form: str, named: bool) -> None:
    names = tuple(f"class {chr(65 + position)}" for position in range(count)) if named else None
    with pytest.raises(DatasetError, match=f"run from {min(numbers)} to {count}, .* from 0 to {count - 1}") as caught:
        labelled(tmp_path, [form.format(number) for number in numbers], count, label_names=names)
    assert "Subtract 1" in caught.value.hint
    # What the hint says works.
    rows = [f"{number},{number - 1}" for number in range(1, count + 1)]
    (tmp_path / "map.csv").write_text("\n".join(["folder,class", *rows]))
    dataset = labelled(
        tmp_path, [form.format(number) for number in numbers], count, label_names=names, class_map=tmp_path / "map.csv"
    )
    assert dataset.labels == tuple(number - 1 for number in numbers)


def test_numbers_that_may_have_been_counted_from_1(tmp_path: Path) -> None:
    assert any("counted from 1" in remark for remark in labelled(tmp_path, ["1", "2", "3"], 4).remarks)
    assert not labelled(tmp_path, ["1", "3", "0"], 4).remarks


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "2", "7"], "a label is 7"),
        (["10", "20", "30"], "a label is 30"),
        (["0", "1", "99999999999999999999"], "a label is 99999999999999999999"),
        (["0", "1", "-2"], "a label is -2"),
        (["0.25", "0.5", "0.75"], "fractions"),
        (["0", "1", "cat"], "some labels are numbers .* and some are not"),
        (["0.0", "1.0", "nan"], "some labels are numbers .* and some are not"),
    ],
)
def test_numbers_that_are_none_of_the_outputs(tmp_path: Path, labels: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        labelled(tmp_path, labels, 3)


@pytest.mark.parametrize("mark", ["-1", "-1.0"])
def test_images_without_a_label(tmp_path: Path, mark: str) -> None:
    dataset = labelled(tmp_path, ["0", mark, "2", "1", mark], 3)
    assert dataset.paths == ("images/000.png", "images/002.png", "images/003.png")
    assert dataset.labels == (0, 2, 1)
    assert any("2 images have the label -1" in remark for remark in dataset.remarks)


def test_an_image_without_a_label_in_a_class_folder_is_left_out(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "labels.csv").write_text("path,label\ncat/0.png,-1\n")
    assert "cat/0.png" not in opened(tmp_path, labels=tmp_path / "labels.csv").paths


def test_a_class_called_1_is_not_the_label_minus_1(tmp_path: Path) -> None:
    write_classes(tmp_path, ("0", "1"))
    (tmp_path / "labels.csv").write_text("path,label\n0/0.png,-1\n0/1.png,1\n")
    dataset = opened(tmp_path, num_classes=2, labels=tmp_path / "labels.csv")
    assert "0/0.png" not in dataset.paths
    assert label_of(dataset, "0/1.png") == "1"


@pytest.mark.parametrize("form", ["{}", "{:03}", "{}.0"])
def test_folders_that_are_numbers_are_names(tmp_path: Path, form: str) -> None:
    numbers = np.arange(1, 13)
    write_classes(tmp_path, tuple(f"{number:02}" for number in numbers), images=1)
    rows = [f"{number:02}/0.png,{form.format(13 - number)}" for number in numbers]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    dataset = opened(tmp_path, num_classes=12, labels=tmp_path / "labels.csv")
    for number in numbers:
        assert label_of(dataset, f"{number:02}/0.png") == f"{13 - number:02}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.csv", "folder,class\na,2.0\nb,01\nc,0\n"),
        ("map.json", '{"a": 2.0, "b": 1, "c": 0.0}'),
        ("map.csv", "folder;class\na;2\nb;1\nc;0\n"),
    ],
)
def test_numbers_of_a_class_map_in_any_form(tmp_path: Path, name: str, text: str) -> None:
    write_classes(tmp_path / "data", ("a", "b", "c"), images=1)
    (tmp_path / name).write_text(text)
    assert opened(tmp_path / "data", class_map=tmp_path / name).labels == (2, 1, 0)
