"""The classes' names in what training tools save beside the weights, under the keys and in the forms that they use."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The more telling ones first. timm writes label_names, transformers id2label and label2id, ultralytics names,
# mmpretrain classes or CLASSES, torchvision's weights categories; class_to_idx is that of torchvision's ImageFolder.
_TO_NUMBERS = ("class_to_idx", "label2id")
_NAME_LISTS = ("label_names", "class_names", "classes", "CLASSES")
_KEYS = (*_NAME_LISTS, "id2label", "idx_to_class", *_TO_NUMBERS, "names", "categories")
# Where they stand: at the top, or in what mmpretrain, Lightning and timm put around them.
_PLACES: tuple[tuple[str, ...], ...] = (
    (),
    ("meta", "dataset_meta"),
    ("meta",),
    ("hyper_parameters",),
    ("datamodule_hyper_parameters",),
    ("pretrained_cfg",),
    # The command line or the settings of a script.
    ("args",),
    ("hparams",),
    ("config",),
)
# What else can hold them is not timm's folder of class folders, whose order is known.
_TORCHVISION_FOLDERS = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")

TOP_KEYS = (*_KEYS, *dict.fromkeys(place[0] for place in _PLACES if place))
"""The keys that hold class names, or mappings in which they stand."""


@dataclass(frozen=True)
class SavedNames:
    """Class names that stand in a file.

    Attributes:
        names: In the order of the network's outputs.
        key: Where they stand, as `meta.dataset_meta.classes`.
    """

    names: tuple[str, ...]
    key: str


def saved_class_names(content: Mapping[Any, object]) -> list[SavedNames]:
    """All class names in what a training tool saved, the more telling ones first.

    What stands under a key that usually holds names, but is no name of its own for every output, is passed over; so is
    the `LABEL_0`, `LABEL_1`, ... that transformers writes where nobody named the classes.

    Args:
        content: The file's content, or a part of it: from keys to whatever.
    """
    found = []
    for place in _PLACES:
        inner: object = content
        for key in place:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
            inner = vars(inner) if isinstance(inner, argparse.Namespace) else inner
        if not isinstance(inner, Mapping):
            continue
        for key in _KEYS:
            names = _names(inner.get(key), to_numbers=key in _TO_NUMBERS)
            if names:
                found.append(SavedNames(names, ".".join((*place, key))))
    return found


def sorts_folders_as_timm(content: Mapping[object, object]) -> bool:
    """Whether a training file is one of timm's training script, which had sorted the class folders in its own way.

    Other scripts save `arch` and `state_dict` too (PyTorch's ImageNet example, which sorts as torchvision does); timm's
    has a `version` and, beside it, the command line.
    """
    version, arguments = content.get("version"), content.get("args")
    if not isinstance(content.get("arch"), str) or isinstance(version, bool) or not isinstance(version, int):
        return False
    options = arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {})
    if options.get("class_map"):
        return False
    dataset = options.get("dataset")
    return not (isinstance(dataset, str) and dataset.startswith(_TORCHVISION_FOLDERS))


def _names(value: object, *, to_numbers: bool) -> tuple[str, ...]:
    """The names in the order of the outputs; empty where the value does not tell them."""
    listed: list[object]
    if isinstance(value, Mapping):
        by_number = _by_number(value, to_numbers=to_numbers)
        listed = [by_number.get(number) for number in range(len(by_number))] if len(by_number) == len(value) else []
    else:
        listed = list(value) if isinstance(value, list | tuple) else []
    # Names that are numbers are often saved as such.
    if not all(isinstance(name, str) or _is_integer(name) for name in listed):
        return ()
    names = tuple(str(name) for name in listed)
    placeholders = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return () if "" in names or placeholders or len(set(names)) < len(names) else names


def _by_number(mapping: Mapping[object, object], *, to_numbers: bool) -> dict[int, object]:
    """A mapping from numbers to names, out of one in either direction; the numbers may be written as text."""
    if not to_numbers:
        numbers = [_number(key) for key in mapping]
        # Under `classes` and the like both directions are found.
        to_numbers = None in numbers and all(_is_integer(value) for value in mapping.values())
    pairs = [(_number(value), key) if to_numbers else (_number(key), value) for key, value in mapping.items()]
    return {number: name for number, name in pairs if number is not None}


def _number(value: object) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
