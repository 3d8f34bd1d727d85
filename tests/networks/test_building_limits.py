"""Arguments that a file gives to a network: no more is built than the file's tensors could fill."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from sapcli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sapcli.errors import ArchitectureError
from sapcli.networks.architecture import load_model, resolve_architecture
from sapcli.networks.building_limits import BuildingLimits, NetworkTooLargeError
from sapcli.networks.factories import Factory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

LIMITS = BuildingLimits(modules=50, elements=10_000, number=1000)


def checkpoint_of(folder: Path, config: dict[str, object], weights: dict[str, Tensor] | None = None) -> Checkpoint:
    save_file(weights or {"head.weight": torch.zeros(3, 2)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder / "model.safetensors")


@pytest.mark.parametrize(
    "arguments",
    [
        {"depth": 100_000_000},
        {"depth": 60_000},
        {"depth": 1, "embed_dim": 40_000, "num_heads": 16, "weight_init": "bogus"},
        {"depth": 300, "embed_dim": 1000, "num_heads": 4, "weight_init": "bogus"},
        {"depth": 10**400},
        {"depth": [-(10**30)]},
        {"mlp_ratio": 1e300},
        {"embed_dim": [50_000, 60_000]},
        {"img_size": {"a": [1e9]}},
    ],
    ids=str,
)
def test_a_file_cannot_have_a_network_built_that_it_does_not_hold(tmp_path: Path, arguments: dict[str, object]) -> None:
    checkpoint = checkpoint_of(tmp_path, {"architecture": "vit_tiny_patch16_224", "model_args": arguments})
    with pytest.raises(NetworkTooLargeError):
        resolve_architecture(checkpoint)


def test_the_metadata_cannot_either(tmp_path: Path) -> None:
    metadata = {"architecture": "vit_tiny_patch16_224", "model_args": json.dumps({"depth": 10**9})}
    save_file({"head.weight": torch.zeros(3, 2)}, tmp_path / "model.safetensors", metadata)
    with pytest.raises(NetworkTooLargeError, match="metadata"):
        resolve_architecture(open_checkpoint(tmp_path / "model.safetensors"))


def test_an_argument_of_the_user_gets_the_error_soon(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, {})
    with pytest.raises(ArchitectureError, match="modules"):
        resolve_architecture(checkpoint, "vit_tiny_patch16_224", {"depth": 50_000})


def values_on(side: int) -> nn.Module:
    """Computes with values, which the meta device cannot, and keeps a table that no file holds."""
    network = nn.Linear(3, 2)
    assert torch.zeros(1).item() == 0
    network.register_buffer("table", torch.outer(torch.arange(side), torch.arange(side)), persistent=False)
    return network


def multiplied(side: int) -> nn.Module:
    assert torch.zeros(1).item() == 0
    return nn.Linear(int((torch.ones(side, 5) @ torch.ones(5, side)).sum()) % 2 + 1, 2)


def repeated(side: int) -> nn.Module:
    assert torch.zeros(1).item() == 0
    return nn.Linear(int(torch.ones(1, 1).repeat(side, side).shape[0] > 0), 2)


def drawn(side: int) -> nn.Module:
    assert torch.zeros(1).item() == 0
    network = nn.Module()
    network.weight = nn.Parameter(torch.randn(side, side) * 0.02)
    return network


def read_nothing(side: int) -> nn.Module:
    network = nn.Module()
    network.weight = nn.Parameter(torch.full((side, side), float(torch.zeros(1))))
    return network


@pytest.mark.parametrize("build", [values_on, multiplied, repeated, drawn, read_nothing])
def test_tensors_with_values_are_bounded(build: Callable[[int], nn.Module]) -> None:
    factory = Factory("factory", build)
    assert isinstance(factory.outline({"side": 90}, LIMITS), nn.Module)
    with pytest.raises(NetworkTooLargeError, match="elements"):
        factory.outline({"side": 200_000}, LIMITS)


def test_tensors_are_bounded_together() -> None:
    def build(depth: int) -> nn.Module:
        assert torch.zeros(1).item() == 0
        return nn.ParameterList(nn.Parameter(torch.ones(10, 100)) for _ in range(depth))

    factory = Factory("factory", build)
    assert len(list(factory.outline({"depth": 39}, LIMITS).parameters())) == 39
    with pytest.raises(NetworkTooLargeError, match="tensors of more than 40000"):
        factory.outline({"depth": 41}, LIMITS)


@pytest.mark.parametrize("kind", [nn.Identity, nn.ReLU, lambda: nn.Linear(1, 1)])
def test_modules_are_bounded(kind: Callable[[], nn.Module]) -> None:
    factory = Factory("factory", lambda depth: nn.Sequential(*(kind() for _ in range(depth))))
    assert len(list(factory.outline({"depth": 50}, LIMITS).children())) == 50
    with pytest.raises(NetworkTooLargeError, match="more than 50 modules"):
        factory.outline({"depth": 51}, LIMITS)


def test_modules_are_counted_no_longer_than_one_is_built() -> None:
    factory = Factory("factory", lambda depth: nn.Sequential(*(nn.Identity() for _ in range(depth))))
    for _ in range(3):
        factory.outline({"depth": 40}, LIMITS)
    nn.Sequential(*(nn.Identity() for _ in range(100)))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "depths": [1, 1, 1, 1]}),
        ("resnet18", {"in_chans": 1}),
    ],
)
def test_what_the_file_holds_is_built_as_before(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    expected = timm.create_model(name, num_classes=5, **arguments).eval()
    channels = arguments.get("in_chans", 3)
    settings = {"input_size": [channels, 64, 64], "mean": [0.5] * channels, "std": [0.5] * channels}
    config = {"architecture": name, "model_args": arguments, "pretrained_cfg": settings}
    checkpoint = checkpoint_of(tmp_path, config, {key: value.clone() for key, value in expected.state_dict().items()})
    loaded = load_model(checkpoint, resolve_architecture(checkpoint), torch.device("cpu"))
    images = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(images), expected(images))
