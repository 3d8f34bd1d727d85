"""Which image a line of a label file means, against the csv module and the disk."""

from __future__ import annotations

import csv
import os
import unicodedata
from pathlib import Path

import pytest
from support.data_folders import CLASSES, label_of, opened, write_classes, write_image

from sapcli.datasets.dataset import Dataset, Role, open_dataset
from sapcli.errors import DatasetError

SPLITS = ("train", "val", "test")
ROLES = {"train": Role.LEARN, "val": Role.CHOOSE, "test": Role.JUDGE}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in SPLITS:
        write_classes(tmp_path / "data" / split)
    return tmp_path / "data"


def rotated(label: str) -> str:
    return CLASSES[(CLASSES.index(label) + 1) % len(CLASSES)]


def assert_labels(dataset: Dataset, expected: dict[str, str]) -> None:
    """The labels are the given ones, and those of the folders for all other images."""
    for path in dataset.paths:
        assert label_of(dataset, path) == expected.get(path, Path(path).parent.name), path


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("place", ["{}/labels.csv", "{}/lists/labels.csv"])
def test_the_label_file_of_a_split_leaves_the_others_alone(data: Path, split: str, place: str) -> None:
    file = data / place.format(split)
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([("path", "label"), *((f"{name}/0.png", rotated(name)) for name in CLASSES)])
    with file.open(newline="") as handle:
        expected = {f"{split}/{row['path']}": row["label"] for row in csv.DictReader(handle)}
    for other, role in ROLES.items():
        dataset = opened(data, role, labels=file, label_names=CLASSES)
        assert dataset.split == other
        assert_labels(dataset, expected)


def test_a_line_of_one_split_is_not_looked_for_in_another(data: Path) -> None:
    write_image(data / "val" / "cat" / "extra.png")
    (data / "train" / "labels.csv").write_text("path,label\ncat/extra.png,dog\n")
    with pytest.raises(DatasetError, match=r"line 2: there is no image 'cat/extra.png'"):
        opened(data, labels=data / "train" / "labels.csv")


@pytest.mark.parametrize("place", ["data/labels.csv", "labels.csv", "data/lists/of/all.jsonl"])
def test_a_line_that_fits_several_splits_is_an_error(data: Path, place: str) -> None:
    file = data.parent / place
    file.parent.mkdir(exist_ok=True, parents=True)
    csv_text, jsonl_text = "path,label\ncat/0.png,dog\n", '{"path": "cat/0.png", "label": "dog"}\n'
    file.write_text(jsonl_text if file.suffix == ".jsonl" else csv_text)
    for role in ROLES.values():
        with pytest.raises(DatasetError, match="is an image in each of 'test', 'train', 'val'") as caught:
            opened(data, role, labels=file)
        assert "--split" in caught.value.hint


def test_a_line_that_fits_several_splits_where_one_is_named(data: Path) -> None:
    file = data / "labels.csv"
    file.write_text("path,label\ncat/0.png,dog\nbird/1.png,cat\n")
    expected = {"val/cat/0.png": "dog", "val/bird/1.png": "cat"}
    named = opened(data, Role.JUDGE, labels=file, split="val")
    assert_labels(named, expected)
    assert any("2 lines name images in each of" in remark and "'val'" in remark for remark in named.remarks)
    for role in ROLES.values():
        assert_labels(opened(data, role, labels=file, labels_split="val", label_names=CLASSES), expected)


@pytest.mark.parametrize("name", ["train.csv", "Training-labels.csv", "train_metadata.csv"])
def test_a_label_file_called_after_a_split(data: Path, name: str) -> None:
    (data / name).write_text("path,label\ncat/0.png,dog\n")
    for role in ROLES.values():
        assert_labels(opened(data, role, labels=data / name, label_names=CLASSES), {"train/cat/0.png": "dog"})


def test_flat_splits_with_a_label_file_each(tmp_path: Path) -> None:
    for split, order in (("train", CLASSES), ("test", CLASSES[::-1])):
        rows = [f"{number}.png,{label}" for number, label in enumerate(order)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["path,label", *rows]))
        for number in range(3):
            write_image(tmp_path / split / f"{number}.png")
    assert opened(tmp_path / "train.csv").labels == (0, 1, 2)
    assert opened(tmp_path / "test.csv", Role.JUDGE).labels == (2, 1, 0)
    # The file that is named decides, not what the images are wanted for.
    assert opened(tmp_path / "train.csv", Role.JUDGE).split == "train"
    assert open_dataset(tmp_path / "train.csv", Role.CONFIRM, 3) is None


def test_a_list_of_the_training_images_has_no_validation_images(data: Path) -> None:
    (data / "some.csv").write_text("path,label\ntrain/cat/0.png,dog\n")
    assert opened(data / "some.csv", label_names=CLASSES).paths == ("train/cat/0.png",)
    assert open_dataset(data / "some.csv", Role.CHOOSE, 3, label_names=CLASSES) is None


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["b\u00e4cker/0.png", "cat/\u1ed9.png", "\u00e9t\u00e9/\u00c5.png"])
def test_paths_in_another_unicode_form(tmp_path: Path, on_disk: str, written: str, name: str) -> None:
    write_classes(tmp_path / "train")
    path = unicodedata.normalize(on_disk, f"train/{name}")
    write_image(tmp_path / path)
    for prefix in ("train/", ""):
        (tmp_path / "labels.csv").write_text(f"path,label\n{prefix}{unicodedata.normalize(written, name)},dog\n")
        # A folder that is no class has no labels of its own, so that the line is what counts.
        assert label_of(opened(tmp_path, labels=tmp_path / "labels.csv", label_names=CLASSES), path) == "dog"


def test_two_files_whose_names_differ_in_their_unicode_form_alone(tmp_path: Path) -> None:
    write_classes(tmp_path)
    forms = {form: unicodedata.normalize(form, "cat/\u00e4.png") for form in ("NFC", "NFD")}
    for path in forms.values():
        write_image(tmp_path / path)
    (tmp_path / "labels.csv").write_text(f"path,label\n{forms['NFD']},dog\n{forms['NFC']},bird\n")
    dataset = opened(tmp_path, labels=tmp_path / "labels.csv")
    assert (label_of(dataset, forms["NFD"]), label_of(dataset, forms["NFC"])) == ("dog", "bird")


@pytest.mark.parametrize(
    "written", ["train\\cat\\1.png", "cat\\1.png", ".\\train\\cat\\1.png", "./cat/1.png", "cat//1.png"]
)
def test_paths_of_windows_and_with_dots(data: Path, written: str) -> None:
    (data / "train.csv").write_text(f"path,label\n{written},dog\n")
    assert_labels(opened(data, labels=data / "train.csv"), {"train/cat/1.png": "dog"})


def test_a_backslash_may_be_part_of_a_name(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_image(tmp_path / "cat" / "a\\b.png")
    write_image(tmp_path / "cat" / "a" / "b.png")
    (tmp_path / "labels.csv").write_text("path,label\ncat/a\\b.png,dog\n")
    dataset = opened(tmp_path, labels=tmp_path / "labels.csv")
    assert_labels(dataset, {"cat/a\\b.png": "dog", "cat/a/b.png": "cat"})


@pytest.mark.parametrize("link", ["link to data", "link to split", "link to class"])
def test_paths_through_links(data: Path, link: str) -> None:
    target = {"link to data": data, "link to split": data / "train", "link to class": data / "train" / "cat"}[link]
    (data.parent / link).symlink_to(target)
    image = data.parent / link / (data / "train" / "cat" / "1.png").relative_to(target)
    labels = data.parent / "labels.csv"
    for written in (image, os.path.relpath(image, labels.parent), os.path.relpath(image, data)):
        labels.write_text(f"path,label\n{written},dog\n")
        assert_labels(opened(data, labels=labels), {"train/cat/1.png": "dog"})
    # The data folder may be the link as well.
    labels.write_text(f"path,label\n{data / 'train/cat/1.png'},dog\n")
    (data.parent / "other").symlink_to(data)
    assert_labels(opened(data.parent / "other", labels=labels), {"train/cat/1.png": "dog"})


@pytest.mark.parametrize(
    "written", ["train/cat/0.png", "./train/cat/0.png", "train\\cat\\0.png", "lists/../train/cat/0.png"]
)
def test_two_lines_about_one_image(data: Path, written: str) -> None:
    (data / "lists").mkdir()
    (data / "labels.csv").write_text(f"path,label\ntrain/cat/0.png,dog\n{written},bird\n")
    with pytest.raises(DatasetError, match=r"line 3: .* was named in line 2 already"):
        opened(data, labels=data / "labels.csv")


@pytest.mark.parametrize("written", ["../elsewhere/0.png", "{}/elsewhere/0.png", "../../0.png", "train/cat", "/0.png"])
def test_lines_that_lead_out_of_the_data(data: Path, written: str) -> None:
    write_image(data.parent / "elsewhere" / "0.png")
    (data / "labels.csv").write_text(f"path,label\n{written.format(data.parent)},dog\n")
    with pytest.raises(DatasetError, match="line 2: there is no image"):
        opened(data, labels=data / "labels.csv")


def test_the_label_file_of_a_larger_folder(data: Path) -> None:
    rows = [f"{split}/cat/0.png,dog" for split in SPLITS]
    (data / "labels.csv").write_text("\n".join(["path,label", *rows]))
    dataset = opened(data / "train", labels=data / "labels.csv")
    assert_labels(dataset, {"cat/0.png": "dog"})
    assert any("2 lines name images outside" in remark for remark in dataset.remarks)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_tables_as_programs_save_them(tmp_path: Path, encoding: str, delimiter: str) -> None:
    write_classes(tmp_path, ("cat", "d\u00f6g"), images=3)
    rows = [("note", "path", "label"), ("a,b;c", "cat/0.png", "d\u00f6g"), ("", "d\u00f6g/2.png", "cat")]
    with (tmp_path / "labels.csv").open("w", newline="", encoding=encoding) as handle:
        csv.writer(handle, delimiter=delimiter).writerows(rows)
    with (tmp_path / "labels.csv").open(newline="", encoding=encoding) as handle:
        expected = {row["path"]: row["label"] for row in csv.DictReader(handle, delimiter=delimiter)}
    dataset = opened(tmp_path, num_classes=2, labels=tmp_path / "labels.csv")
    assert_labels(dataset, expected)
    assert {path for path in dataset.paths if label_of(dataset, path) != path.split("/")[0]} == set(expected)
