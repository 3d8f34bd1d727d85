"""Which images a role gets, from which form of data, and the fingerprint of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.data_folders import CLASSES, opened, write_classes

from sapcli.datasets.dataset import Role, open_dataset
from sapcli.errors import DatasetError, UsageError


@pytest.mark.parametrize(
    ("folders", "role", "split"),
    [
        (["train", "val", "test"], Role.LEARN, "train"),
        (["train", "val", "test"], Role.CHOOSE, "val"),
        (["train", "val", "test"], Role.JUDGE, "test"),
        (["train", "validation"], Role.CHOOSE, "validation"),
        (["train", "valid"], Role.JUDGE, "valid"),
        (["Train", "Test"], Role.JUDGE, "Test"),
        ([""], Role.LEARN, None),
        ([""], Role.JUDGE, None),
    ],
)
def test_role_takes_its_split(tmp_path: Path, folders: list[str], role: Role, split: str | None) -> None:
    for folder in folders:
        write_classes(tmp_path / folder)
    dataset = opened(tmp_path, role)
    assert dataset.split == split
    assert len(dataset.paths) == 6
    assert all(path.startswith(f"{split}/" if split else CLASSES) for path in dataset.paths)


def test_choosing_needs_a_validation_split_unless_the_folder_is_one(tmp_path: Path) -> None:
    write_classes(tmp_path)
    assert open_dataset(tmp_path, Role.CHOOSE, 3) is None
    assert opened(tmp_path, Role.CHOOSE, dedicated=True).split is None


def test_missing_split_of_a_split_folder_is_an_error(tmp_path: Path) -> None:
    write_classes(tmp_path / "val")
    with pytest.raises(DatasetError, match="'val', but no folder train"):
        opened(tmp_path, Role.LEARN)


def test_split_option(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "hard_cases")
    write_classes(tmp_path / "valid")
    assert opened(tmp_path, Role.JUDGE, split="hard_cases").split == "hard_cases"
    assert opened(tmp_path, Role.JUDGE, split="val").split == "valid"
    with pytest.raises(UsageError, match="no such folder") as caught:
        opened(tmp_path, Role.JUDGE, split="holdout")
    assert "'hard_cases'" in caught.value.hint


def test_class_called_train_is_no_split(tmp_path: Path) -> None:
    write_classes(tmp_path, ("bus", "car", "train"))
    assert opened(tmp_path).classes == ("bus", "car", "train")


def test_label_file_as_data(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "data.csv").write_text("path,label\ncat/0.png,dog\ndog/1.png,dog\n")
    dataset = opened(tmp_path / "data.csv", label_names=CLASSES)
    assert dataset.root == tmp_path
    assert dataset.paths == ("cat/0.png", "dog/1.png")
    assert dataset.labels == (2, 2)


def test_list_of_files_as_data(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "list.txt").write_text("cat/1.png\nbird/0.png\n")
    dataset = opened(tmp_path / "list.txt")
    assert dataset.paths == ("bird/0.png", "cat/1.png")
    assert dataset.labels == (0, 1)


def test_fingerprint_follows_what_matters(tmp_path: Path) -> None:
    write_classes(tmp_path)
    first = opened(tmp_path)
    assert opened(tmp_path).fingerprint == first.fingerprint
    assert opened(tmp_path, label_names=("dog", "cat", "bird")).fingerprint != first.fingerprint
    os.utime(tmp_path / "cat" / "0.png", ns=(1, 1))
    assert opened(tmp_path).fingerprint == first.fingerprint
    (tmp_path / "cat" / "0.png").rename(tmp_path / "dog" / "00.png")
    assert opened(tmp_path).fingerprint != first.fingerprint


def test_fingerprint_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    write_classes(tmp_path / "here")
    before = opened(tmp_path / "here").fingerprint
    (tmp_path / "here").rename(tmp_path / "there")
    assert opened(tmp_path / "there").fingerprint == before
