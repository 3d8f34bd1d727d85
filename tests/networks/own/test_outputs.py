"""Tests of networks that return more than logits, against what their parts are in plain code."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sapcli.activations.scoring import Classifier
from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.errors import ArchitectureError
from sapcli.networks.architecture import load_model, resolve_architecture
from sapcli.networks.own.outputs import described, logits_alone, way_out
from sapcli.settings import PreprocessingOverrides

CPU = torch.device("cpu")
HEAD = """
import dataclasses
from collections import namedtuple
import torch
from torch import nn
Pair = namedtuple("Pair", "features logits")
@dataclasses.dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.f = nn.Linear(48, 4), nn.Linear(4, 3)
    def forward(self, x):
        h = self.a(x.flatten(1)).relu()
        z = self.f(h)
        return {returned}
{more}
"""
IMAGES = torch.arange(2 * 48, dtype=torch.uint8).reshape(2, 3, 4, 4)


def classifier_of(folder: Path, returned: str, more: str = "", name: str = "Net") -> tuple[Classifier, Tensor]:
    """The network that returns that, as a command has it, and the logits `z` of the images."""
    (folder / "net.py").write_text(HEAD.replace("{returned}", returned).replace("{more}", more))
    generator = torch.Generator().manual_seed(0)
    weights = {"a.weight": (4, 48), "a.bias": (4,), "f.weight": (3, 4), "f.bias": (3,)}
    entries = {key: torch.randn(shape, generator=generator) for key, shape in weights.items()}
    save_file(entries, folder / "model.safetensors")
    hidden = ((IMAGES / 255 - 0.5) / 0.5).flatten(1) @ entries["a.weight"].T + entries["a.bias"]
    logits = hidden.relu() @ entries["f.weight"].T + entries["f.bias"]
    checkpoint = open_checkpoint(folder / "model.safetensors")
    overrides = PreprocessingOverrides(input_size=(3, 4, 4), mean=(0.5,), std=(0.5,))
    architecture = resolve_architecture(checkpoint, f"{folder / 'net.py'}:{name}", overrides=overrides)
    return Classifier(load_model(checkpoint, architecture, CPU), architecture, CPU), logits


@pytest.mark.parametrize(
    "returned",
    [
        *("{'logits': z}", "{'features': h, 'logits': z}", "{'prediction': z}", "(z,)", "[z]"),
        *("Output(h, z)", "Pair(h, z)", "z"),
    ],
)
def test_logits_that_are_named_or_alone_are_taken(tmp_path: Path, returned: str) -> None:
    classifier, logits = classifier_of(tmp_path, returned)
    assert torch.allclose(classifier.logits(IMAGES), logits, atol=1e-5)


@pytest.mark.parametrize(
    ("returned", "says", "advice"),
    [
        ("(z, h)", "a tuple of a tensor [1, 3], a tensor [1, 4] for one image", "super().forward(x)[POSITION]"),
        ("(h.sum(), z)", "a tuple of a tensor [], a tensor [1, 3]", "super().forward(x)[1]"),
        ("{'out': z, 'loss': h.sum()}", "a dict with 'out', 'loss'", "super().forward(x)['out']"),
        ("z[:, :, None, None]", "a tensor [1, 3, 1, 1]", ".flatten(1)"),
        ("z.squeeze()", "a tensor [3]", "a squeeze() in it drops the batch of one image"),
        ("'a text'", "a str", "return its logits alone"),
    ],
)
def test_what_is_returned_instead_is_described(tmp_path: Path, returned: str, says: str, advice: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        classifier_of(tmp_path, returned)
    assert says in caught.value.message
    assert advice in (caught.value.hint or "")


@pytest.mark.parametrize("returned", ["(h.sum(), z)", "{'out': z, 'loss': h.sum()}", "(None, z)"])
def test_the_line_of_the_advice_works(tmp_path: Path, returned: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        classifier_of(tmp_path, returned)
    line = (caught.value.hint or "").partition(": ")[2].rstrip(".").replace("NETWORK", "Net")
    classifier, logits = classifier_of(tmp_path, returned, line, "Logits")
    assert torch.allclose(classifier.logits(IMAGES), logits, atol=1e-5)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({}, "a dict without anything"),
        ([], "a list of nothing"),
        (None, "a NoneType"),
        ({"x" * 99: 1}, f"a dict with '{'x' * 60}'"),
        ([torch.zeros(2, 3), 1], "a list of a tensor [2, 3], int"),
    ],
)
def test_descriptions(output: object, text: str) -> None:
    assert described(output) == text
    assert logits_alone(nn.Identity(), (), output) is output
    assert way_out(output)


@dataclasses.dataclass
class _Late:
    logits: object


@pytest.mark.parametrize("make", [_Late, namedtuple("_Two", "logits other", defaults=[1])])
def test_a_name_without_a_tensor_is_not_taken(make: Callable[[object], object]) -> None:
    output = make("no tensor")
    assert logits_alone(nn.Identity(), (), output) is output


def test_a_network_on_the_meta_device_is_filled(tmp_path: Path) -> None:
    build = "def build():\n    with torch.device('meta'):\n        return Net()\n"
    classifier, logits = classifier_of(tmp_path, "z", build, "build")
    assert torch.allclose(classifier.logits(IMAGES), logits, atol=1e-5)


def test_a_buffer_on_the_meta_device_that_no_file_holds_is_named(tmp_path: Path) -> None:
    build = "def build():\n    with torch.device('meta'):\n        net = Net()\n        net.a.register_buffer('t', torch.ones(2), persistent=False)\n        return net\n"  # noqa: E501
    with pytest.raises(ArchitectureError, match=r"a\.t of .*build is on the meta device, and no checkpoint holds it"):
        classifier_of(tmp_path, "z", build, "build")


def test_an_instance_in_the_place_of_a_factory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"model of .* is a network, not what builds one"):
        classifier_of(tmp_path, "z", "model = Net()", "model")
