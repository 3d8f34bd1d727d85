"""Tiny image classifiers of transformers with random weights, saved as its users save them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.client_files import CLASSES, randomised

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIDE = {"image_size": 32, "patch_size": 8}
# By the class: the arguments of its configuration, the image processor and its arguments.
KINDS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "ViTForImageClassification": (
        "ViTConfig", {**SMALL, **SIDE}, "ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "DeiTForImageClassification": (
        "DeiTConfig", {**SMALL, **SIDE}, "DeiTImageProcessor",
        {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}),
    "DeiTForImageClassificationWithTeacher": (
        "DeiTConfig", {**SMALL, **SIDE}, "DeiTImageProcessor",
        {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}),
    "BeitForImageClassification": (
        "BeitConfig", {**SMALL, **SIDE, "use_relative_position_bias": True, "out_indices": [1]}, "BeitImageProcessor",
        {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
    "ResNetForImageClassification": (
        "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    "RegNetForImageClassification": (
        "RegNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
        "ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    "SwinForImageClassification": (
        "SwinConfig", {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
                       "window_size": 4}, "ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "Swinv2ForImageClassification": (
        "Swinv2Config", {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
                         "window_size": 4}, "ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "ConvNextForImageClassification": (
        "ConvNextConfig", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, "ConvNextImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    "ConvNextV2ForImageClassification": (
        "ConvNextV2Config", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, "ConvNextImageProcessor",
        {"size": {"shortest_edge": 384}}),
    "Dinov2ForImageClassification": (
        "Dinov2Config", {**SMALL, "image_size": 28, "patch_size": 7}, "BitImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}),
    "MobileNetV1ForImageClassification": (
        "MobileNetV1Config", {"depth_multiplier": 0.25, "image_size": 32, "min_depth": 8}, "MobileNetV1ImageProcessor",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}),
    "MobileNetV2ForImageClassification": (
        "MobileNetV2Config", {"depth_multiplier": 0.25, "image_size": 32}, "MobileNetV2ImageProcessor",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}),
    "EfficientNetForImageClassification": (
        "EfficientNetConfig", {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.2,
                               "hidden_dim": 320},
        "EfficientNetImageProcessor", {"size": {"height": 32, "width": 32}}),
    "LevitForImageClassification": (
        "LevitConfig", {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2],
                        "depths": [1, 1, 1], "key_dim": [8, 8, 8], "drop_path_rate": 0}, "LevitImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
    "PoolFormerForImageClassification": (
        "PoolFormerConfig", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, "PoolFormerImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "PvtForImageClassification": (
        "PvtConfig", {"num_labels": 4, "image_size": 32, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
                      "num_attention_heads": [1, 1, 2, 2], "sequence_reduction_ratios": [2, 2, 1, 1]},
        "PvtImageProcessor",
        {"size": {"height": 32, "width": 32}}),
    "MobileViTForImageClassification": (
        "MobileViTConfig", {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
                            "num_attention_heads": 2}, "MobileViTImageProcessor",
        {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}),
    "SiglipForImageClassification": (
        "SiglipConfig", {"vision_config": {**SMALL, **SIDE}}, "SiglipImageProcessor",
        {"size": {"height": 32, "width": 32}}),
    "CLIPForImageClassification": (
        "CLIPConfig", {"vision_config": {**SMALL, **SIDE}}, "CLIPImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
}  # fmt: skip


def save_classifier(folder: Path, kind: str, change: Callable[[Any], None] | None = None, **options: object) -> Any:
    """Write a tiny classifier with shuffled `id2label` and its image processor, and return the model.

    Args:
        folder: Where to.
        kind: The class.
        change: What is done to the model before it is saved.
        options: For `save_pretrained`.
    """
    import torch
    import transformers

    names = list(CLASSES)
    random.Random(3).shuffle(names)
    config_class, arguments, processor_class, settings = KINDS[kind]
    config = getattr(transformers, config_class)(
        **arguments, id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)}
    )
    torch.manual_seed(0)
    model = randomised(getattr(transformers, kind)(config))
    if change is not None:
        change(model)
    model.save_pretrained(folder, **options)
    getattr(transformers, processor_class)(**settings).save_pretrained(folder)
    return model
