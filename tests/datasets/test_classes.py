"""Class names against the outputs of the model, through the datasets that come out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.data_folders import CLASSES, label_of, opened, write_classes

from sapcli.datasets.classes import FoundClasses, resolve_class_names
from sapcli.datasets.dataset import Role
from sapcli.datasets.labels.class_maps import read_class_map
from sapcli.errors import DatasetError


def test_folders_in_torchvision_order(tmp_path: Path) -> None:
    names = tuple(str(number) for number in range(1, 12))
    write_classes(tmp_path, names, images=1)
    assert opened(tmp_path, num_classes=11).classes == ("1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")


def test_classes_are_matched_by_name_not_by_order(tmp_path: Path) -> None:
    write_classes(tmp_path)
    dataset = opened(tmp_path, label_names=("dog", "bird", "cat"))
    assert dataset.classes == ("dog", "bird", "cat")
    assert all(label_of(dataset, path) == path.split("/")[0] for path in dataset.paths)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("aquarium_fish", "aquarium fish"), ("Cat", "cat"), ("cafe\u0301", "caf\u00e9"), ("maple-tree", "maple_tree")],
)
def test_spelling_decides_nothing_where_it_is_unique(tmp_path: Path, folder: str, name: str) -> None:
    write_classes(tmp_path, (folder, "other"))
    assert label_of(opened(tmp_path, num_classes=2, label_names=("other", name)), f"{folder}/0.png") == name


def test_exact_names_come_before_spelling(tmp_path: Path) -> None:
    write_classes(tmp_path, ("A", "a"))
    dataset = opened(tmp_path, num_classes=2, label_names=("a", "A"))
    assert [label_of(dataset, path) for path in dataset.paths] == ["A", "A", "a", "a"]


def test_data_may_lack_classes_that_the_checkpoint_names(tmp_path: Path) -> None:
    write_classes(tmp_path, ("cat",))
    assert set(opened(tmp_path, label_names=CLASSES).labels) == {1}


def test_other_splits_follow_the_training_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val", ("dog",))
    dataset = opened(tmp_path, Role.CHOOSE)
    assert dataset.classes == CLASSES
    assert set(dataset.labels) == {2}


def test_empty_class_folders_count_only_where_they_fit(tmp_path: Path) -> None:
    write_classes(tmp_path, ("cat", "dog"))
    (tmp_path / "bird").mkdir()
    assert opened(tmp_path, num_classes=3).classes == CLASSES
    assert opened(tmp_path, num_classes=2).classes == ("cat", "dog")
    with pytest.raises(DatasetError, match=r"3 class folders .* 4 classes; without images: 'bird'"):
        opened(tmp_path, num_classes=4)


def test_unknown_class_is_named_with_the_nearest(tmp_path: Path) -> None:
    write_classes(tmp_path, ("bird", "catt", "dog"))
    with pytest.raises(DatasetError, match="'catt' is no class of the model; did you mean 'cat'"):
        opened(tmp_path, label_names=CLASSES)


def test_unknown_folder_without_images_is_passed_over(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "notes").mkdir()
    assert len(opened(tmp_path, label_names=CLASSES).paths) == 6


def test_checkpoint_that_contradicts_itself(tmp_path: Path) -> None:
    write_classes(tmp_path)
    with pytest.raises(DatasetError, match="names 2 classes, and its classifier has 3"):
        opened(tmp_path, label_names=("a", "b"))


def test_imagenet_ids_without_label_names_take_their_imagenet_position(tmp_path: Path) -> None:
    write_classes(tmp_path, ("n01443537", "n02012849"))
    dataset = opened(tmp_path, num_classes=1000)
    assert len(dataset.classes) == 1000
    assert set(dataset.labels) == {1, 134}


def test_imagenet_ids_among_descriptions(tmp_path: Path) -> None:
    from timm.data import ImageNetInfo

    descriptions = ImageNetInfo().label_descriptions()
    write_classes(tmp_path, ("n02012849", "n03126707"))  # both are a "crane"
    assert set(opened(tmp_path, num_classes=1000, label_names=descriptions).labels) == {134, 517}


def test_imagenet_ids_for_a_model_of_a_few_imagenet_classes(tmp_path: Path) -> None:
    write_classes(tmp_path, ("n01440764", "n01443537"))
    dataset = opened(tmp_path, num_classes=2, label_names=("goldfish", "tench"))
    assert label_of(dataset, "n01440764/0.png") == "tench"
    assert label_of(dataset, "n01443537/0.png") == "goldfish"


def test_numbers_in_a_class_map_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    class_map = tmp_path / "map.json"
    class_map.write_text(json.dumps({f"folder {name}": name for name in reversed(names)}))
    found = FoundClasses(tmp_path, tuple(sorted(f"folder {name}" for name in names)), None)
    resolved = resolve_class_names(12, found, class_map=class_map)
    assert [resolved.position(f"folder {name}") for name in names] == list(range(12))


@pytest.mark.parametrize("line", ["{},0\n", "{}\n"])
def test_a_class_map_of_a_million_lines_is_the_wrong_file(tmp_path: Path, line: str) -> None:
    (tmp_path / "map.csv").write_text("folder,class\n" + "".join(map(line.format, range(1_000_000))))
    with pytest.raises(DatasetError, match="more than 500,000 lines"):
        read_class_map(tmp_path / "map.csv")
