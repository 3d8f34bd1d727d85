"""Class names in what training tools save."""

from __future__ import annotations

import argparse
from argparse import Namespace

import pytest

from sapcli.checkpoints.class_names import SavedNames, saved_class_names, sorts_folders_as_timm


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"classes": ["b", "a"]}, ("b", "a")),
        ({"names": {0: "b", 1: "a"}}, ("b", "a")),
        ({"id2label": {"1": "a", "0": "b"}}, ("b", "a")),
        # Classes that are called by numbers, in either direction.
        ({"class_to_idx": {"1": 0, "0": 1}}, ("1", "0")),
        ({"idx_to_class": {0: "1", 1: "0"}}, ("1", "0")),
        ({"id2label": {"0": "1", "1": "0"}}, ("1", "0")),
        ({"class_to_idx": {7: 1, 3: 0}}, ("3", "7")),
        ({"classes": [3, 7]}, ("3", "7")),
        ({"meta": {"dataset_meta": {"classes": ("b", "a")}}}, ("b", "a")),
        ({"hyper_parameters": {"label_names": ["b", "a"]}}, ("b", "a")),
        ({"args": argparse.Namespace(lr=0.1, class_names=["b", "a"])}, ("b", "a")),
        ({"config": {"classes": ["b", "a"]}}, ("b", "a")),
        ({"hparams": {"class_to_idx": {"a": 1, "b": 0}}}, ("b", "a")),
    ],
)
def test_all_forms(content: dict[str, object], names: tuple[str, ...]) -> None:
    assert [found.names for found in saved_class_names(content)] == [names]


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "abc",
        [],
        {},
        ["a", "a"],
        ["a", None],
        ["a", ""],
        [True, False],
        {"a": 0, "b": 2},
        {"a": 0, "b": 0},
        {"0": "a", "2": "b"},
        {"LABEL": {"0": "a"}},
        ["LABEL_0", "LABEL_1"],
        {"0": "LABEL_0", "1": "LABEL_1"},
    ],
)
@pytest.mark.parametrize("key", ["classes", "id2label", "class_to_idx"])
def test_what_names_no_classes(key: str, value: object) -> None:
    assert saved_class_names({key: value, "meta": {key: value}, "hyper_parameters": value}) == []


def test_the_more_telling_come_first() -> None:
    content = {"names": ["n"], "classes": ["c"], "meta": {"classes": ["m"]}, "label_names": ["l"]}
    assert saved_class_names(content) == [
        SavedNames(("l",), "label_names"),
        SavedNames(("c",), "classes"),
        SavedNames(("n",), "names"),
        SavedNames(("m",), "meta.classes"),
    ]


@pytest.mark.parametrize(
    ("content", "is_timm"),
    [
        ({"arch": "resnet18", "version": 2, "args": Namespace(model="resnet18", class_map="", dataset="")}, True),
        ({"arch": "resnet18", "version": 2}, True),
        ({"arch": "resnet18", "version": 2, "args": {"dataset": "folder"}}, True),
        ({"arch": "resnet18", "version": 2, "args": Namespace(class_map="map.txt")}, False),
        ({"arch": "resnet18", "version": 2, "args": Namespace(dataset="torch/image_folder")}, False),
        # PyTorch's ImageNet example, which sorts folders as torchvision does.
        ({"arch": "resnet18", "epoch": 3, "state_dict": {}, "best_acc1": 1.0, "optimizer": {}}, False),
        ({"version": 2}, False),
    ],
)
def test_training_files_of_timm(content: dict[str, object], is_timm: bool) -> None:
    assert sorts_folders_as_timm(content) == is_timm
