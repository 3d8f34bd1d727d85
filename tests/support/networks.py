"""Small networks of the tests' own, and their checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sapcli.checkpoints.checkpoint import Checkpoint, open_checkpoint

FACTORIES = """
from torch import nn
from blocks import head

SETTINGS = {"input_size": (3, 8, 8), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}


class Network(nn.Sequential):
    def __init__(self, num_classes=10, width=4, extra=False, settings=True):
        super().__init__(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(width, num_classes))
        if extra:
            self.auxiliary = nn.Linear(width, num_classes)
        if settings:
            self.pretrained_cfg = SETTINGS


def of_three_classes():
    print("building")
    return Network(3)


def bare(num_classes=10):
    return Network(num_classes, settings=False)


def broken(num_classes=10):
    raise KeyError("no such block")


def leaving():
    raise SystemExit(3)


def no_network():
    return 7


not_a_function = 1
"""


def write_factories(folder: Path, name: str = "factories") -> Path:
    """Write a Python file with factories, and the module beside it that it needs."""
    folder.mkdir(exist_ok=True)
    (folder / "blocks.py").write_text("from torch import nn\n\n\ndef head(a, b):\n    return nn.Linear(a, b)\n")
    file = folder / f"{name}.py"
    file.write_text(FACTORIES)
    return file


def save(
    tensors: dict[str, Tensor] | nn.Module,
    folder: Path,
    metadata: dict[str, str] | None = None,
    config: dict[str, object] | None = None,
    prefix: str = "",
) -> Checkpoint:
    """Write a checkpoint as `model.safetensors`, beside its `config.json` if there is one, and open it."""
    if isinstance(tensors, nn.Module):
        tensors = tensors.state_dict()
    copies = {prefix + name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(copies, folder / "model.safetensors", metadata)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder / "model.safetensors")


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every floating tensor of a network's state dict positive random values."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return network.eval()
