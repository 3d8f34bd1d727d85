"""Tests of what checkpoints say about themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.networks import save

from sapcli.errors import ArchitectureError
from sapcli.networks.description import Description, _label_names, describe, metadata_of

TENSORS = {"weight": torch.ones(2)}
TIMM = {"architecture": "resnet18", "model_args": {"in_chans": 1}, "pretrained_cfg": {"crop_pct": 0.5}}


def test_config_json_goes_before_the_metadata_which_adds_the_label_names(tmp_path: Path) -> None:
    metadata = {"architecture": "resnet34", "label_names": json.dumps(["a", "b"])}
    description = describe(save(TENSORS, tmp_path, metadata, TIMM), None)
    assert description == Description("resnet18", "config.json", {"in_chans": 1}, {"crop_pct": 0.5}, ("a", "b"))


def test_a_corrected_checkpoint_knows_better_than_the_config_of_another_file(tmp_path: Path) -> None:
    metadata = metadata_of(Description("resnet34", "anywhere", {}, {"crop_pct": 0.9}))
    of_another = TIMM | {"label_names": ["a", "b"]}
    description = describe(save(TENSORS, tmp_path, metadata, of_another), None)
    assert description == Description("resnet34", "the metadata", {}, {"crop_pct": 0.9})
    metadata = metadata_of(Description("resnet18", "anywhere", {}, {"crop_pct": 0.9}))
    assert describe(save(TENSORS, tmp_path, metadata, TIMM), None).source == "config.json"


@pytest.mark.parametrize(
    "metadata",
    [
        {"config": json.dumps(TIMM)},
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in TIMM.items()},
        metadata_of(Description("resnet18", "anywhere", {"in_chans": 1}, {"crop_pct": 0.5})),
        {"config": json.dumps(TIMM | {"architecture": "resnet34"}), "sap.architecture": "resnet18"},
    ],
)
def test_the_metadata_tell_it_in_several_forms(tmp_path: Path, metadata: dict[str, str]) -> None:
    description = describe(save(TENSORS, tmp_path, metadata), None)
    assert description == Description("resnet18", "the metadata", {"in_chans": 1}, {"crop_pct": 0.5})


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"resnet18"', "[" * 100_000])
def test_metadata_of_others_are_left_alone(tmp_path: Path, text: str) -> None:
    metadata = {"config": text, "model_args": text, "pretrained_cfg": text, "format": "pt"}
    assert describe(save(TENSORS, tmp_path, metadata), None).name is None


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ("resnet18", {"in_chans": 1}),
        ("timm:resnet18.a1_in1k", {"in_chans": 1}),
        ("torchvision:resnet18", {}),
        ("resnet34", {}),
        ("some.module:resnet18", {}),
    ],
)
def test_the_arguments_count_for_their_architecture_alone(
    tmp_path: Path, spec: str, arguments: dict[str, object]
) -> None:
    description = describe(save(TENSORS, tmp_path, config=TIMM), spec)
    assert (description.name, description.arguments) == (spec, arguments)
    assert bool(description.settings) == bool(arguments)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architecture": 5}, "architecture of config.json is a int, expected a str"),
        ({"model_args": [1]}, "model_args of config.json is a list"),
        ({"pretrained_cfg": "x"}, "pretrained_cfg of config.json is a str"),
        ({"label_names": "abc"}, "label_names of config.json is no list"),
        ({"label_names": ["a", 1]}, "label_names of config.json is no list"),
        ({"label_names": {"1": "a", "2": "b"}}, "label_names of config.json is no list"),
        ({"label_names": ["a", "b", "a"]}, "label_names of config.json has 'a' twice"),
        ({"architecture": "here.py:factory"}, "only runs if you say so"),
    ],
)
def test_a_configuration_of_another_form_is_an_error(tmp_path: Path, config: dict[str, object], says: str) -> None:
    with pytest.raises(ArchitectureError) as raised:
        describe(save(TENSORS, tmp_path, config=config), None)
    assert says in raised.value.message


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model_type": "vit", "id2label": {"0": "b", "1": "a"}}, "id2label"),
        ({"label2id": {"b": 0, "a": 1}}, "label2id"),
        ({"class_to_idx": {"a": "1", "b": "0"}}, "class_to_idx"),
        ({"names": {"1": "a", "0": "b"}}, "names"),
        ({"meta": {"CLASSES": ["b", "a"]}}, "meta.CLASSES"),
        ({"hyper_parameters": {"idx_to_class": {"0": "b", "1": "a"}}}, "hyper_parameters.idx_to_class"),
    ],
)
def test_the_classes_as_other_tools_write_them(tmp_path: Path, config: dict[str, object], key: str) -> None:
    for place in ("config", "metadata"):
        (tmp_path / place).mkdir()
    for number, checkpoint in enumerate(
        (
            save(TENSORS, tmp_path / "config", config=config),
            save(TENSORS, tmp_path / "metadata", {name: json.dumps(value) for name, value in config.items()}),
        )
    ):
        description = describe(checkpoint, "some.module:factory")
        assert description.label_names == ("b", "a")
        assert description.named_classes[0].source == f"{key} of {('config.json', 'the metadata')[number]}"
        assert not description.named_classes[0].binding


def test_label_names_go_before_all_others(tmp_path: Path) -> None:
    config = {"id2label": {"0": "x", "1": "y"}, "label_names": ["a", "b"]}
    description = describe(save(TENSORS, tmp_path, {"names": '["p", "q", "r"]'}, config), None)
    assert [found.names for found in description.named_classes] == [("a", "b"), ("x", "y"), ("p", "q", "r")]
    assert description.named_classes[0].binding


@pytest.mark.parametrize(
    "labels",
    [
        [str(number) for number in range(100_000)],
        [f"class {number}" for number in range(100_000)],
        {str(number): f"n{number:08}" for number in range(100_000)},
    ],
    ids=["numbers", "names", "an object"],
)
def test_many_label_names_are_handled_in_linear_time(labels: list[str] | dict[str, str]) -> None:
    compared = 0

    class Counted(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)  # type: ignore[no-any-return]

    counted = (
        {key: Counted(name) for key, name in labels.items()} if isinstance(labels, dict) else list(map(Counted, labels))
    )
    names = _label_names(counted, "config.json")
    assert len(names) == 100_000
    assert compared < 500_000


@pytest.mark.parametrize("position", [0, 1, 99_998])
def test_a_label_name_that_occurs_twice_is_named(position: int) -> None:
    labels = [f"class {number}" for number in range(100_000)]
    labels[-1] = labels[position]
    with pytest.raises(ArchitectureError, match=f"'class {position}' twice"):
        _label_names(labels, "config.json")
