"""Networks of transformers from their `config.json`, and which tensor of the network each entry of a file becomes."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sapcli.errors import ArchitectureError
from sapcli.machine.text import in_one_line
from sapcli.networks.huggingface.library import transformers

if TYPE_CHECKING:
    from sapcli.checkpoints.checkpoint import Checkpoint

PREFIX = "transformers:"
"""What stands before the name of a class of transformers as an architecture."""

_CLASSIFIER = re.compile(r"[A-Za-z]\w{0,98}ForImageClassification\w{0,40}")
# A network of timm, which `config.json` names as timm's own schema does.
_TIMM = "TimmWrapperForImageClassification"
# What shapes no tensor of an image classifier, or is known from the tensors; and what would choose other code.
_NOT_THE_NETWORKS = frozenset(
    {
        *(
            "id2label",
            "label2id",
            "num_labels",
            "text_config",
            "auto_map",
            "dtype",
            "torch_dtype",
            "quantization_config",
        ),
        *("_name_or_path", "transformers_version", "attn_implementation", "_attn_implementation", "architectures"),
    }
)
_FIRST = 1000
_TOKENS = re.compile(r".*_token_id|vocab_size")


def classifier_named_by(config: Mapping[str, object]) -> str | None:
    """The architecture that a `config.json` of transformers names, with its prefix; None of others.

    Raises:
        ArchitectureError: It names a model that is no image classifier.
    """
    classes, kind = config.get("architectures"), config.get("model_type")
    if not isinstance(classes, list) or not classes or not isinstance(kind, str) or not isinstance(classes[0], str):
        return None
    if _CLASSIFIER.fullmatch(classes[0]):
        return None if classes[0] == _TIMM else PREFIX + classes[0]
    if "architecture" in config:
        return None
    raise ArchitectureError(
        f"config.json names {classes[0]!a:.120}, a model of transformers' that is no image classifier",
        "Give a folder whose model has a classifier (...ForImageClassification), or --arch for your own network.",
    )


def network_config(config: Mapping[str, object]) -> dict[str, object]:
    """What of a `config.json` shapes the network."""
    return {
        key: network_config(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _NOT_THE_NETWORKS and not _TOKENS.fullmatch(key)
    }


def build_classifier(class_name: str, config: Mapping[str, object], num_classes: int) -> nn.Module:
    """A network with its initial values, whose output is its logits alone.

    Args:
        class_name: The name of its class, as `architectures` has it.
        config: What `network_config` gives.
        num_classes: The number of its outputs.

    Raises:
        ArchitectureError: transformers is not installed, or knows no such network.
    """
    with transformers(f"{PREFIX}{class_name}") as library:
        network = _model(library, class_name, config, num_classes)
    # Nothing else is of use here, and the names of its tensors stay the same.
    network.forward = functools.partial(_logits, network.forward)
    return network


def _logits(forward: Any, images: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = forward(pixel_values=images).logits
    return logits


def _model(library: Any, class_name: str, config: Mapping[str, object], num_classes: int) -> nn.Module:
    made = _config(library, class_name, config, num_classes)
    model: nn.Module = library.AutoModelForImageClassification.from_config(made, trust_remote_code=False)
    return model


def _config(library: Any, class_name: str, config: Mapping[str, object], num_classes: int) -> Any:
    kind = config.get("model_type")
    known = library.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known:
        raise ArchitectureError(
            f"transformers {library.__version__} knows no model of the type {kind!r}, which config.json names",
            "Install the version that it was saved with; code that comes with a model is never run.",
        )
    values = {key: value for key, value in config.items() if key != "model_type"}
    return known[kind].from_dict({**values, "num_labels": num_classes, "architectures": [class_name]})


def as_named_in_network(checkpoint: Checkpoint, class_name: str, config: Mapping[str, object]) -> dict[str, str]:
    """From the names in the network to the entries of a file, which may have been written under other names.

    transformers renames what it loads by rules of its own, which differ between its versions. So it is given tensors
    that hold a number each, and what it makes of them tells which is which.

    Args:
        checkpoint: The file.
        class_name: The class of the network.
        config: What `network_config` gives.

    Raises:
        ArchitectureError: transformers does not accept the entries, or merges some of them into one tensor.
    """
    entries = tuple((entry.name, entry.shape, entry.dtype) for entry in checkpoint.entries.values())
    return dict(_renamed(entries, class_name, json.dumps(config), checkpoint.source))


@functools.lru_cache(maxsize=4)
def _renamed(
    entries: tuple[tuple[str, tuple[int, ...], torch.dtype], ...], class_name: str, config: str, source: str
) -> Mapping[str, str]:
    names = [name for name, _, _ in entries]
    count = _outputs({name: shape for name, shape, _ in entries})
    with transformers(source) as library:
        parsed = json.loads(config)
        with torch.device("meta"):
            network = _model(library, class_name, parsed, count)
        if network.state_dict().keys() <= set(names):
            return {name: name for name in names}
        # Whole numbers of this size are exact in float32, which all are loaded in, and no initial values.
        tracers = {
            name: torch.full((1,) * len(shape), number, dtype=torch.float32 if dtype.is_floating_point else dtype)
            .expand(shape)
            .clone()
            for number, (name, shape, dtype) in enumerate(entries, _FIRST)
        }
        try:
            loaded = type(network).from_pretrained(  # type: ignore[attr-defined]
                None,
                config=_config(library, class_name, parsed, count),
                state_dict=tracers,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:
            raise ArchitectureError(
                f"transformers does not load {source} as {class_name}: {in_one_line(error)}",
                "Load and save it once more with from_pretrained and save_pretrained of the installed version.",
            ) from error
    traced = {float(number): (name, shape) for number, (name, shape, _) in enumerate(entries, _FIRST)}
    found: dict[str, str] = {}
    for name, tensor in loaded.state_dict().items():
        numbers = tensor.unique() if tensor.numel() else tensor
        entry, shape = traced.get(float(numbers), ("", ())) if numbers.numel() == 1 else ("", ())
        if entry and shape == tuple(tensor.shape):
            found[name] = entry
    # What is loaded under no other name keeps its own.
    used = set(found.values())
    return found | {name: name for name in names if name not in used and name not in found}


def _outputs(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of outputs that the last layer of a classifier has by its usual names."""
    for name, shape in reversed(list(shapes.items())):
        if re.search(r"(^|\.)(classifier|cls_classifier|head|fc)(\.\w+)*\.bias$", name) and len(shape) == 1:
            return shape[0]
    return 2
