"""Splits and classes told apart, against torchvision's ImageFolder on the folder that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.data_folders import label_of, opened, write_classes, write_image
from torchvision.datasets import ImageFolder

from sapcli.datasets.dataset import Dataset, Role, open_dataset
from sapcli.errors import DatasetError, UsageError

TWO = ("cat", "dog")


def assert_like_image_folder(dataset: Dataset, folder: Path) -> None:
    """The same images with the same labels as torchvision finds in the folder."""
    reference = ImageFolder(str(folder))
    assert list(dataset.classes) == reference.classes
    found = [(str(dataset.root / path), label) for path, label in zip(dataset.paths, dataset.labels, strict=True)]
    assert found == sorted(reference.samples)


def write_splits(root: Path, splits: Sequence[str], classes: tuple[str, ...] = TWO) -> Path:
    for number, split in enumerate(splits):
        write_classes(root / split, classes, images=2 + number)
    return root


@pytest.mark.parametrize(
    ("splits", "role", "expected"),
    [
        (["training_set", "test_set"], Role.LEARN, "training_set"),
        (["training", "testing"], Role.JUDGE, "testing"),
        (["TRAIN", "TEST"], Role.LEARN, "TRAIN"),
        (["trainset", "validation_set"], Role.CHOOSE, "validation_set"),
        (["train-images", "Dev Set"], Role.CHOOSE, "Dev Set"),
        (["train", "holdout"], Role.JUDGE, "holdout"),
        (["Training", "evaluation"], Role.JUDGE, "evaluation"),
        (["train2017", "val2017"], Role.CHOOSE, "val2017"),
        (["seg_train", "seg_test"], Role.LEARN, "seg_train"),
        (["train"], Role.LEARN, "train"),
    ],
)
def test_other_names_of_splits_with_a_network_of_two_classes(
    tmp_path: Path, splits: list[str], role: Role, expected: str
) -> None:
    dataset = opened(write_splits(tmp_path, splits), role, num_classes=2)
    assert dataset.split == expected
    assert_like_image_folder(dataset, tmp_path / expected)


@pytest.mark.parametrize("names", [("fold_a", "fold_b"), ("part 1", "part 2"), ("clean", "noisy")])
def test_folders_that_hold_the_same_classes_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    write_splits(tmp_path, names)
    with pytest.raises(DatasetError, match="hold the same folders") as caught:
        opened(tmp_path, num_classes=2)
    assert names[0] in caught.value.message
    assert "--split" in caught.value.hint
    assert_like_image_folder(opened(tmp_path, num_classes=2, split=names[1]), tmp_path / names[1])
    assert open_dataset(tmp_path, Role.CHOOSE, 2) is None
    # Whoever says so has them as classes, and so has a checkpoint that names them.
    (tmp_path / "labels.csv").write_text(f"path,label\n{names[0]}/cat/0.png,{names[1]}\n")
    dataset = opened(tmp_path, num_classes=2, split=".", labels=tmp_path / "labels.csv")
    assert label_of(dataset, f"{names[0]}/cat/0.png") == names[1]
    (tmp_path / "labels.csv").unlink()
    for option in ({"split": "."}, {"label_names": names}):
        assert_like_image_folder(opened(tmp_path, num_classes=2, **option), tmp_path)


def test_most_of_the_classes_in_common_are_enough(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", ("a", "b", "c"))
    write_classes(tmp_path / "two", ("a", "b"))
    write_classes(tmp_path / "three", ("a", "b", "c"))
    with pytest.raises(DatasetError, match="hold the same folders"):
        opened(tmp_path, num_classes=3)


@pytest.mark.parametrize("inside", [("left", "right"), ("session 1",), ("images",)])
def test_folders_inside_of_classes_that_cannot_be_the_classes(tmp_path: Path, inside: tuple[str, ...]) -> None:
    write_splits(tmp_path, ("cat", "dog", "owl"), inside)
    dataset = opened(tmp_path, num_classes=3)
    assert_like_image_folder(dataset, tmp_path)
    assert any("taken for classes" in remark for remark in dataset.remarks)


def test_splits_inside_of_the_classes(tmp_path: Path) -> None:
    write_splits(tmp_path, TWO, ("test", "train"))
    with pytest.raises(DatasetError, match="holds the splits 'test', 'train'"):
        opened(tmp_path, num_classes=2)


@pytest.mark.parametrize("others", [("bus", "car"), ("plane",), ("ship", "tram", "validator")])
def test_class_called_train_stays_a_class(tmp_path: Path, others: tuple[str, ...]) -> None:
    write_classes(tmp_path, (*others, "train"))
    assert_like_image_folder(opened(tmp_path, num_classes=len(others) + 1), tmp_path)


def test_class_called_train_beside_label_files_about_all(tmp_path: Path) -> None:
    write_classes(tmp_path, ("bus", "car", "train"))
    for folder in (tmp_path, tmp_path / "bus", tmp_path / "train"):
        (folder / "metadata.csv").write_text("file_name,label\n0.png,cat\n")
    dataset = opened(tmp_path)
    assert_like_image_folder(dataset, tmp_path)
    assert any("metadata.csv" in remark and "not used" in remark for remark in dataset.remarks)


def test_class_called_train_with_folders_inside(tmp_path: Path) -> None:
    write_classes(tmp_path, ("bus", "car"))
    write_classes(tmp_path / "train", ("diesel", "steam"))
    assert_like_image_folder(opened(tmp_path, num_classes=3), tmp_path)
    (tmp_path / "labels.csv").write_text("path,label\ncar/0.png,bus\ntrain/steam/1.png,car\n")
    dataset = opened(tmp_path, num_classes=3, labels=tmp_path / "labels.csv")
    assert (label_of(dataset, "car/0.png"), label_of(dataset, "train/steam/1.png")) == ("bus", "car")
    assert label_of(dataset, "train/steam/0.png") == "train"
    # With two classes that cannot be told, unless the checkpoint has their names.
    (tmp_path / "car").rename(tmp_path.parent / f"{tmp_path.name}-car")
    with pytest.raises(DatasetError, match="'train' looks like a split, and beside it lie 'bus'"):
        opened(tmp_path, num_classes=2)
    assert_like_image_folder(opened(tmp_path, num_classes=2, label_names=("bus", "train")), tmp_path)
    assert opened(tmp_path, num_classes=2, label_names=("steam", "diesel")).split == "train"


def test_classes_called_train_and_test_where_the_checkpoint_says_so(tmp_path: Path) -> None:
    write_classes(tmp_path, ("test", "train"))
    assert_like_image_folder(opened(tmp_path, num_classes=2, label_names=("test", "train")), tmp_path)


@pytest.mark.parametrize("folders", [("train", "test"), ("train",), ("Training_Set", "val", "photos")])
def test_flat_splits_are_never_classes(tmp_path: Path, folders: tuple[str, ...]) -> None:
    write_classes(tmp_path, folders)
    (tmp_path / f"{folders[0]}.csv").write_text("path,label\n0.png,cat\n1.png,dog\n")
    with pytest.raises(DatasetError, match="without class folders") as caught:
        opened(tmp_path, num_classes=len(folders))
    assert f"{folders[0]}.csv" in caught.value.hint


def test_flat_split_with_its_labels_inside(tmp_path: Path) -> None:
    write_classes(tmp_path, ("train", "bus"))
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n0.png,dog\n1.png,cat\n")
    with pytest.raises(DatasetError, match=r"'train' looks like a split") as caught:
        opened(tmp_path, num_classes=2)
    assert "metadata.csv" in caught.value.hint
    assert opened(tmp_path / "train" / "metadata.csv", num_classes=2).labels == (1, 0)


@pytest.mark.parametrize(
    ("splits", "role", "option"),
    [
        (("train", "training"), Role.LEARN, "--split"),
        (("train", "val", "validation_set"), Role.CHOOSE, "--val"),
        (("train", "Test", "testing"), Role.JUDGE, "--split"),
    ],
)
def test_two_folders_of_one_kind(tmp_path: Path, splits: tuple[str, ...], role: Role, option: str) -> None:
    write_splits(tmp_path, splits)
    with pytest.raises(DatasetError, match="there are 2 folders for") as caught:
        opened(tmp_path, role, num_classes=2)
    assert option in caught.value.hint
    for split in splits:
        assert opened(tmp_path, role, num_classes=2, split=split).split == split


def test_a_link_to_a_split_and_an_empty_one_are_no_second_split(tmp_path: Path) -> None:
    write_splits(tmp_path, ("train", "val"))
    (tmp_path / "validation").symlink_to("val")
    (tmp_path / "training" / "cat").mkdir(parents=True)
    assert opened(tmp_path, num_classes=2).split == "train"
    assert opened(tmp_path, Role.CHOOSE, num_classes=2).split in {"val", "validation"}


@pytest.mark.parametrize("classes", [("cat", "dog"), ("Cat", "extra", "other")])
def test_a_split_beside_its_classes(tmp_path: Path, classes: tuple[str, ...]) -> None:
    write_splits(tmp_path, ("train",))
    write_classes(tmp_path, classes)
    with pytest.raises(DatasetError, match="'train' looks like a split, and beside it lie") as caught:
        opened(tmp_path, num_classes=2)
    assert classes[0] in caught.value.message
    assert opened(tmp_path, num_classes=2, split="train").split == "train"


def test_what_no_role_takes_is_said(tmp_path: Path) -> None:
    write_splits(tmp_path, ("train", "val", "hard_cases"))
    write_image(tmp_path / "unlabeled" / "0.png")
    write_image(tmp_path / "test" / "0.png")
    remarks = " ".join(opened(tmp_path, num_classes=2).remarks)
    assert "'hard_cases', 'unlabeled'" in remarks
    assert "'test' without class folders" in remarks
    assert opened(tmp_path, Role.JUDGE, num_classes=2).split == "val"
    assert open_dataset(tmp_path, Role.CONFIRM, 2) is None


def test_evaluation_beside_test_is_for_validation(tmp_path: Path) -> None:
    write_splits(tmp_path, ("train", "eval", "test"))
    assert opened(tmp_path, Role.CHOOSE, num_classes=2).split == "eval"
    dataset = opened(tmp_path, Role.JUDGE, num_classes=2)
    assert dataset.split == "test"
    assert any("'eval' beside 'test'" in remark for remark in dataset.remarks)


@pytest.mark.parametrize(
    ("folder", "written"),
    [("Validation-Set", "val"), ("dev", "validation"), ("training_images", "TRAIN"), ("Hard Cases", "hard cases")],
)
def test_split_option_in_any_spelling(tmp_path: Path, folder: str, written: str) -> None:
    write_splits(tmp_path, ("test", folder))
    assert opened(tmp_path, Role.JUDGE, num_classes=2, split=written).split == folder


def test_split_option_that_means_two_folders(tmp_path: Path) -> None:
    write_splits(tmp_path, ("val", "dev", "train"))
    assert opened(tmp_path, num_classes=2, split="val").split == "val"
    with pytest.raises(UsageError, match="'dev', 'val'"):
        opened(tmp_path, num_classes=2, split="validation")
