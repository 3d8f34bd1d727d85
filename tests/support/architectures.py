"""Architectures of timm and torchvision with random weights, saved, and what their library's plain code computes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from sapcli.activations.plain_comparison import choose_way
from sapcli.activations.scoring import Classifier
from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.machine.progress import SilentProgress
from sapcli.networks.architecture import load_model, resolve_architecture

_LARGEST = 12_000_000
_CLASSES = 7


def built_plainly(name: str) -> nn.Module:
    """The network by its library's own function, with random weights, for 7 classes."""
    library, _, own_name = name.partition(":")
    if library == "timm":
        network: nn.Module = timm.create_model(own_name, num_classes=_CLASSES)
    else:
        more = {"init_weights": True} if own_name in {"googlenet", "inception_v3"} else {}
        network = torchvision.models.get_model(own_name, weights=None, num_classes=_CLASSES, **more)
    return network


def random_architectures(count: int, seed: int, part: int = 0, parts: int = 1) -> Iterator[str]:
    """Names of small classifiers, in a random order; no two of several parts have one in common."""
    names = [f"timm:{name}" for name in timm.list_models()]
    names += [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    random.Random(seed).shuffle(names)
    for name in names[part::parts]:
        if count == 0:
            return
        size = None
        with contextlib.suppress(Exception), torch.device("meta"):  # some do not know the number of classes
            size = sum(parameter.numel() for parameter in built_plainly(name).parameters())
        if size is not None and size <= _LARGEST:
            count -= 1
            yield name


def difference_to_plain_code(name: str, folder: Path) -> tuple[float, Classifier]:
    """By how much the logits through the tool differ from those of the library's plain code, of the largest of them."""
    torch.manual_seed(0)
    trained = built_plainly(name)
    for parameter in trained.parameters():
        parameter.data += torch.randn(parameter.shape) * 0.01  # some begin with zeros only
    entries = {key: value.detach().clone().contiguous() for key, value in trained.state_dict().items()}
    save_file(entries, folder / "model.safetensors")
    torch.manual_seed(1)
    plain = built_plainly(name)
    plain.load_state_dict(trained.state_dict(), strict=True)  # with the versions of the modules, which some insist on
    plain.eval()

    checkpoint = open_checkpoint(folder / "model.safetensors")
    architecture = resolve_architecture(checkpoint, name)
    classifier = Classifier(
        load_model(checkpoint, architecture, torch.device("cpu")), architecture, torch.device("cpu")
    )
    choose_way(classifier, SilentProgress())
    preprocessing = architecture.preprocessing
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, *preprocessing.input_size), generator=generator, dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    with torch.no_grad():
        expected: Tensor = plain((images / 255 - mean) / std)
    found = classifier.logits(images)
    return float((found - expected).abs().max() / expected.abs().max()), classifier
