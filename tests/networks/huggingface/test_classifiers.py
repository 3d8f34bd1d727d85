"""What a `config.json` of transformers tells, without the library."""

from __future__ import annotations

import pytest

from sapcli.errors import ArchitectureError
from sapcli.networks.huggingface.classifiers import classifier_named_by, network_config


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "ViTForImageClassification"),
        ({"model_type": "deit", "architectures": ["DeiTForImageClassificationWithTeacher"]},
         "DeiTForImageClassificationWithTeacher"),
        ({"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]}, None),
        ({"architecture": "resnet18"}, None),
        ({"architectures": "ViT", "model_type": "vit"}, None),
        ({"architectures": [], "model_type": "vit"}, None),
        ({"architectures": [{"a": 1}], "model_type": "vit"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_class_that_is_named(config: dict[str, object], name: str | None) -> None:
    assert classifier_named_by(config) == (name and f"transformers:{name}")


@pytest.mark.parametrize("named", ["ViTModel", "BertForSequenceClassification", "os.system\n"])
def test_another_kind_of_model_is_named(named: str) -> None:
    with pytest.raises(ArchitectureError, match="no image classifier") as caught:
        classifier_named_by({"model_type": "vit", "architectures": [named]})
    assert "\n" not in caught.value.message


def test_what_shapes_the_network_is_kept_and_nothing_that_chooses_code() -> None:
    config = {
        "model_type": "clip", "hidden_size": 16, "auto_map": {"AutoModel": "code.Model"}, "id2label": {"0": "a"},
        "vision_config": {"image_size": 32, "bos_token_id": 49406, "dtype": "float16"}, "text_config": {"x": 9},
    }  # fmt: skip
    assert network_config(config) == {
        "model_type": "clip", "hidden_size": 16, "vision_config": {"image_size": 32},
    }  # fmt: skip
