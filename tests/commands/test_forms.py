"""Tests that one model is repaired alike in whatever form it comes, and that it keeps its form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from support.command_line import run
from support.digits import Trained
from support.networks import randomise
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sapcli.checkpoints.checkpoint import Form, open_checkpoint

SETTINGS = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
TIED = f"""
from torch import nn


class Tied(nn.Module):
    pretrained_cfg = {SETTINGS}

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, stride=4)
        self.first = nn.Conv2d(12, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(12, num_classes)

    def forward(self, images):
        features = self.stem(images).relu()
        features = self.second(self.first(features).relu()).relu()
        return self.head(features.mean((2, 3)))
"""
NORMALISED = f"""
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


def network(normalised, num_classes=10):
    wrap = weight_norm if normalised else nn.Identity()
    layers = [nn.Conv2d(3, 12, 4, stride=4), nn.Conv2d(12, 16, 3, groups=4), nn.Linear(16, num_classes)]
    stem, middle, head = map(wrap, layers)
    module = nn.Sequential(stem, nn.ReLU(), middle, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    module.pretrained_cfg = {SETTINGS}
    return module


def normalised(num_classes=10):
    return network(True, num_classes)


def merged(num_classes=10):
    return network(False, num_classes)
"""
Tensors = dict[str, Tensor]


def repaired(checkpoint: Path, output: Path, trained: Trained, *options: str) -> Path:
    """Repair a checkpoint with the first samples of every class trusted and a given alpha."""
    trusted = output.parent / "trusted.txt"
    folders = sorted((trained.data / "train").iterdir())
    trusted.write_text("\n".join(f"train/{folder.name}/{min(folder.iterdir()).name}" for folder in folders))
    arguments = ["project", checkpoint, trained.data, "--trusted", trusted, "--alpha", "300", "-o", output]
    assert run([*map(str, arguments), "--workers", "0", "-q", *options]) == 0
    return output


def tensors_of(checkpoint: Path) -> Tensors:
    """All tensors of a checkpoint by name."""
    opened = open_checkpoint(checkpoint)
    return {name: opened.read(name) for name in opened.entries}


def largest_difference(found: Tensors, expected: Tensors) -> float:
    """The largest `||found - expected|| / ||expected||` of a tensor."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name].double() - expected[name].double()).norm() / expected[name].double().norm().clamp_min(1e-9))
        for name in expected
    )


@pytest.fixture
def model(noisy: Trained, tmp_path: Path) -> Path:
    """The tensors of the trained network, where other forms of it can be written beside its config.json."""
    (tmp_path / "config.json").write_bytes(noisy.checkpoint.with_name("config.json").read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def plain(noisy: Trained, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """The plain file's repaired tensors."""
    return load_file(repaired(noisy.checkpoint, tmp_path_factory.mktemp("plain") / "out.safetensors", noisy))


def test_a_plain_file_keeps_everything_but_the_weights(noisy: Trained, plain: Tensors) -> None:
    before = load_file(noisy.checkpoint)
    assert [(name, tensor.dtype, tensor.shape) for name, tensor in before.items()] == [
        (name, tensor.dtype, tensor.shape) for name, tensor in plain.items()
    ]
    assert largest_difference(plain, before) > 0.1


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixed(noisy: Trained, plain: Tensors, model: Path, prefix: str) -> None:
    save_file({prefix + name: tensor for name, tensor in load_file(noisy.checkpoint).items()}, model / "in.safetensors")
    found = load_file(repaired(model / "in.safetensors", model / "out.safetensors", noisy))
    assert set(found) == {prefix + name for name in plain}
    assert largest_difference({name.removeprefix(prefix): tensor for name, tensor in found.items()}, plain) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precision(noisy: Trained, model: Path, dtype: torch.dtype) -> None:
    rounded = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(noisy.checkpoint).items()
    }
    save_file(rounded, model / "in.safetensors")
    found = load_file(repaired(model / "in.safetensors", model / "out.safetensors", noisy))
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in rounded.items()
    }
    # The same numbers in the usual precision, so that nothing but the rounding of the result can differ.
    save_file({name: tensor.to(plain_dtype(tensor)) for name, tensor in rounded.items()}, model / "in.safetensors")
    expected = load_file(repaired(model / "in.safetensors", model / "expected.safetensors", noisy))
    step = max(torch.finfo(dtype).eps, 1e-6)
    for name, tensor in expected.items():
        # Running statistics are estimated with the weights as they are stored, which are rounded here.
        steps = 8 if "running" in name else 1
        assert float((found[name] - tensor).abs().max()) <= steps * step * float(tensor.abs().max()), name


def plain_dtype(tensor: Tensor) -> torch.dtype:
    """Float32 for what is floating."""
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def test_sharded(noisy: Trained, plain: Tensors, model: Path) -> None:
    tensors = load_file(noisy.checkpoint)
    names = list(tensors)
    shards = {f"model-0000{number}-of-00002.safetensors": names[number - 1 :: 2] for number in (1, 2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, model / shard, {"format": "pt"})
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    output = model / "out"
    output.mkdir()
    repaired(model, output / index.name, noisy)
    written = open_checkpoint(output)
    assert written.form is Form.SHARDED
    named = json.loads((output / index.name).read_text())["weight_map"]
    assert {name: re.sub(r"\.[0-9a-f]{12}\.", ".", shard) for name, shard in named.items()} == weight_map
    assert {path.name for path in output.iterdir()} == {index.name, *named.values(), "trusted.txt"}
    assert largest_difference(tensors_of(output), plain) == 0


def test_a_pytorch_file_becomes_safetensors(noisy: Trained, plain: Tensors, model: Path) -> None:
    state = {"state_dict": load_file(noisy.checkpoint), "optimizer": {"exp_avg": torch.ones(2)}, "epoch": 3}
    torch.save(state, model / "in.pt")
    found = load_file(repaired(model / "in.pt", model / "out.safetensors", noisy))
    assert largest_difference(found, plain) == 0
    kept = load_file(repaired(model / "in.pt", model / "kept.safetensors", noisy, "--keep-extra"))
    assert torch.equal(kept.pop("optimizer.exp_avg"), torch.ones(2))
    assert largest_difference(kept, plain) == 0


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module"])
def test_submodules_in_wrappers_of_their_own(noisy: Trained, plain: Tensors, model: Path, wrapper: str) -> None:
    def wrapped(name: str) -> str:
        return name.replace("layer1.", f"layer1.{wrapper}.")

    save_file({wrapped(name): tensor for name, tensor in load_file(noisy.checkpoint).items()}, model / "in.safetensors")
    found = load_file(repaired(model / "in.safetensors", model / "out.safetensors", noisy))
    assert set(found) == set(map(wrapped, plain)) != set(plain)
    assert largest_difference(found, {wrapped(name): tensor for name, tensor in plain.items()}) == 0


def test_a_folder_with_an_averaged_model_as_its_only_checkpoint(noisy: Trained, plain: Tensors, model: Path) -> None:
    averaged = {"n_averaged": torch.tensor(7)}
    averaged |= {f"module.{name}": tensor for name, tensor in load_file(noisy.checkpoint).items()}
    torch.save(averaged, model / "swa.pth")
    found = load_file(repaired(model, model / "out.safetensors", noisy))
    assert found.pop("n_averaged") == 7
    assert largest_difference({name.removeprefix("module."): tensor for name, tensor in found.items()}, plain) == 0


def separate(network: nn.Module, path: Path) -> None:
    """Both names of a tied tensor with a copy each."""
    save_file({name: tensor.clone() for name, tensor in network.state_dict().items()}, path)


def one_of_two(network: nn.Module, path: Path) -> None:
    """One name of a tied tensor, and in the metadata which other one it stands for."""
    save_model(network, str(path))


def shared_storage(network: nn.Module, path: Path) -> None:
    """Both names of a tied tensor with one storage, as PyTorch saves them."""
    torch.save(network.state_dict(), path)


@pytest.mark.parametrize("write", [separate, one_of_two, shared_storage])
def test_tied(noisy: Trained, tmp_path: Path, write: Callable[[nn.Module, Path], None]) -> None:
    code = tmp_path / "tied.py"
    code.write_text(TIED)
    scope: dict[str, type[nn.Module]] = {}
    exec(TIED, scope)  # the same text as the file's
    network = randomise(scope["Tied"]())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.sub_(0.5)
    path = tmp_path / ("in.pt" if write is shared_storage else "in.safetensors")
    write(network, path)
    separate(network, tmp_path / "reference.safetensors")
    arch = ("--arch", f"{code}:Tied")
    expected = load_file(repaired(tmp_path / "reference.safetensors", tmp_path / "expected.safetensors", noisy, *arch))
    assert torch.equal(expected["first.weight"], expected["second.weight"])
    assert not torch.equal(expected["first.weight"], network.state_dict()["first.weight"])
    output = repaired(path, tmp_path / "out.safetensors", noisy, *arch)
    assert open_checkpoint(output).entries.keys() == open_checkpoint(path).entries.keys()
    found = load_file(output)
    assert largest_difference(found, {name: expected[name] for name in found}) == 0
    if write is one_of_two:
        assert len(found) == len(expected) - 1
        with safe_open(output, "pt") as file:
            assert file.metadata()["second.weight"] == "first.weight"
    assert run(["inspect", str(output), *arch]) == 0


def test_weight_normalisation(noisy: Trained, tmp_path: Path) -> None:
    """What the normalised weights become is the projection of what they were, and `sap verify` agrees."""
    code = tmp_path / "normalised.py"
    code.write_text(NORMALISED)
    scope: dict[str, Callable[[], nn.Module]] = {}
    exec(NORMALISED, scope)  # the same text as the file's
    torch.manual_seed(0)
    normalised, merged = scope["normalised"](), scope["merged"]()
    separate(normalised, tmp_path / "in.safetensors")
    for number in (0, 2, 6):
        parametrize.remove_parametrizations(normalised[number], "weight")
    merged.load_state_dict(normalised.state_dict())
    separate(merged, tmp_path / "merged.safetensors")

    arch = ("--arch", f"{code}:normalised")
    output = repaired(tmp_path / "in.safetensors", tmp_path / "out.safetensors", noisy, *arch)
    result = scope["normalised"]()
    result.load_state_dict(load_file(output))
    for number in (0, 2, 6):
        parametrize.remove_parametrizations(result[number], "weight")
    expected = repaired(
        tmp_path / "merged.safetensors", tmp_path / "expected.safetensors", noisy, "--arch", f"{code}:merged"
    )
    assert largest_difference(result.state_dict(), load_file(expected)) < 1e-4
    assert largest_difference(load_file(expected), merged.state_dict()) > 0.01

    bases = tmp_path / "bases.safetensors"
    trusted = ("--trusted", tmp_path / "trusted.txt")
    common = [tmp_path / "in.safetensors", noisy.data, *trusted, *arch, "--workers", "0", "-q", "-o", bases]
    assert run(["activations", *map(str, common)]) == 0
    original = ("--input", str(tmp_path / "in.safetensors"))
    assert run(["verify", str(output), *original, "--bases", str(bases)]) == 0
