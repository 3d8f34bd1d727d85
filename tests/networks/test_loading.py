"""Tests of the strict filling of a network from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from safetensors.torch import save_model
from support.architectures import difference_to_plain_code
from support.networks import randomise, save, write_factories
from torch import nn

from sapcli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sapcli.errors import ArchitectureError, CheckpointError, NumericsError
from sapcli.networks.architecture import LoadedModel, load_model, resolve_architecture
from sapcli.networks.loading import Outline, fill, match_entries

CPU = torch.device("cpu")
TIED = """
from torch import nn


class Tied(nn.Module):
    pretrained_cfg = {"input_size": (3, 8, 8), "mean": 0.5, "std": 0.5}

    def __init__(self, num_classes=10):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, num_classes)
"""


@pytest.fixture(scope="session")
def resnet() -> nn.Module:
    return randomise(timm.create_model("test_resnet", num_classes=7))


def load(checkpoint: Checkpoint, spec: str = "test_resnet") -> LoadedModel:
    return load_model(checkpoint, resolve_architecture(checkpoint, spec), CPU)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "swinv2_cr_tiny_ns_224", "eva02_tiny_patch14_224"]
)
def test_a_loaded_network_computes_what_the_saved_one_does(tmp_path: Path, name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    saved = timm.create_model(name, num_classes=7).eval()
    loaded = load(save(saved, tmp_path), name)
    images = torch.rand(2, *saved.pretrained_cfg["input_size"])
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), saved(images))
    buffers = dict(saved.named_buffers())  # those that no checkpoint holds, too
    assert all(torch.equal(value, buffers[key]) for key, value in loaded.module.named_buffers())
    assert not any(module.training for module in loaded.module.modules())


@pytest.mark.parametrize(
    "name", ["timm:test_efficientnet", "timm:lcnet_050", "timm:test_vit2", "torchvision:shufflenet_v2_x0_5"]
)
def test_the_logits_through_the_tool_are_those_of_the_librarys_plain_code(tmp_path: Path, name: str) -> None:
    difference, classifier = difference_to_plain_code(name, tmp_path)
    assert difference <= 1e-5
    assert not classifier.as_built


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_are_seen_through(resnet: nn.Module, tmp_path: Path, prefix: str) -> None:
    loaded = load(save(resnet, tmp_path, prefix=prefix))
    assert loaded.entry_names == {name: prefix + name for name in resnet.state_dict()}
    assert _same(loaded.module, resnet)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_computes_in_float32(resnet: nn.Module, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in resnet.state_dict().items()
    }
    module = load(save(tensors, tmp_path)).module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    torch.testing.assert_close(module.conv1[0].weight, tensors["conv1.0.weight"].float())


def test_training_state_is_kept_apart(resnet: nn.Module, tmp_path: Path) -> None:
    ema = {f"ema.{name}": value * 0 for name, value in resnet.state_dict().items()}
    loaded = load(save({**resnet.state_dict(), **ema, "optimizer.step": torch.ones(1)}, tmp_path))
    assert set(loaded.extra_entries) == {*ema, "optimizer.step"}
    assert _same(loaded.module, resnet)


def test_tied_tensors_may_be_stored_once(tmp_path: Path) -> None:
    checkpoint, spec = _tied(tmp_path)
    loaded = load(checkpoint, spec)
    first, second = loaded.entry_names["first.weight"], loaded.entry_names["second.weight"]
    assert first == second
    assert loaded.module.first.weight is loaded.module.second.weight
    assert torch.equal(loaded.module.first.weight, checkpoint.read(first))


def test_tied_tensors_that_differ_do_not_fit(tmp_path: Path) -> None:
    checkpoint, spec = _tied(tmp_path)
    tensors = {name: checkpoint.read(name) for name in checkpoint.entries}
    tensors |= {"first.weight": torch.ones(4, 4), "second.weight": torch.ones(4, 4)}
    load(save(tensors, tmp_path), spec)
    with pytest.raises(ArchitectureError, match=r"first.weight and second.weight .* differ"):
        load(save(tensors | {"second.weight": torch.zeros(4, 4)}, tmp_path), spec)


def test_missing_unexpected_and_misshapen_names_are_told(resnet: nn.Module, tmp_path: Path) -> None:
    tensors = resnet.state_dict()
    tensors["fc.bias2"] = tensors.pop("fc.bias")
    tensors |= {f"more.{number}": torch.ones(1) for number in range(6)}
    tensors["conv1.0.weight"] = torch.ones(1, 2, 3, 4)
    with pytest.raises(ArchitectureError) as raised:
        load(save(tensors, tmp_path))
    message = raised.value.message
    assert "missing: fc.bias;" in message
    assert ", ... and 3 more; misshapen: conv1.0.weight is (1, 2, 3, 4), expected (" in message


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_networks_under_names_of_their_own_are_told(resnet: nn.Module, tmp_path: Path, wrapper: str) -> None:
    """As files of self-supervised trainings and of averages have them, with other tensors beside them."""
    state = resnet.state_dict()
    entries = {f"{wrapper}{head}.{name}": value + 1 for head in ("query", "key") for name, value in state.items()}
    entries |= {f"{wrapper}query.{name}": value.clone() for name, value in state.items()}
    entries[f"{wrapper}queue"] = torch.zeros(3, 4)
    torch.save({"state_dict": entries}, tmp_path / "model.pt")
    safetensors.torch.save_file(entries, tmp_path / "model.safetensors")
    for file in ("model.pt", "model.safetensors"):
        checkpoint = open_checkpoint(tmp_path / file)
        match = match_entries(checkpoint, Outline.of(resnet))
        with pytest.raises(ArchitectureError, match="holds more than the weights of resnet") as caught:
            match.require_fit(checkpoint, "resnet")
        hint = caught.value.hint or ""
        if file == "model.pt":
            assert caught.value.message.endswith(f"fits what stands under {wrapper}query, {wrapper}key")
            assert f"--weights {wrapper}query." in hint
            chosen = open_checkpoint(tmp_path / file, weights=f"{wrapper}query")
        else:
            line = (
                hint.partition(": ")[2]
                .replace(f"'{wrapper}key.'", f"'{wrapper}query.'")
                .replace("'model.safetensors'", "OUTPUT")
            )
            names = {"safetensors": safetensors, "FILE": tmp_path / file, "OUTPUT": tmp_path / "part.safetensors"}
            exec(line, names)
            chosen = open_checkpoint(tmp_path / "part.safetensors")
        match = match_entries(chosen, Outline.of(resnet))
        match.require_fit(chosen, "resnet")
        assert all(torch.equal(chosen.read(match.entry_names[name]), value) for name, value in state.items())


def test_old_files_without_batch_counters_fit(resnet: nn.Module, tmp_path: Path) -> None:
    tensors = {name: value for name, value in resnet.state_dict().items() if "num_batches" not in name}
    assert _same(load(save(tensors, tmp_path)).module, resnet)


def test_a_stored_buffer_that_the_network_computes_itself_is_an_extra(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("table", torch.arange(3), persistent=False)
    checkpoint = save({**network.state_dict(), "table": torch.arange(3)}, tmp_path)
    match = match_entries(checkpoint, Outline.of(network))
    assert match.fits
    assert match.extra_entries == ("table",)


def test_weights_that_are_not_finite_are_named(resnet: nn.Module, tmp_path: Path) -> None:
    tensors = resnet.state_dict()
    tensors["fc.weight"] = tensors["fc.weight"].clone().fill_(torch.nan)
    with pytest.raises(NumericsError, match=r"fc\.weight of .* contains NaN"):
        load(save(tensors, tmp_path))


def test_quantised_weights_are_refused(resnet: nn.Module, tmp_path: Path) -> None:
    tensors = resnet.state_dict()
    tensors["fc.weight"] = tensors["fc.weight"].to(torch.int8)
    with pytest.raises(CheckpointError, match="quantised"):
        load(save(tensors, tmp_path))


def test_building_draws_no_random_numbers(resnet: nn.Module, tmp_path: Path) -> None:
    checkpoint = save(resnet, tmp_path)
    before = torch.get_rng_state()
    load(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


def test_filling_reads_one_tensor_at_a_time_and_leaves_the_names_alone(tmp_path: Path) -> None:
    source, target = (
        randomise(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))),
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
    )
    checkpoint = save(source, tmp_path)
    parameters = list(target.parameters())
    fill(target, checkpoint, match_entries(checkpoint, Outline.of(target)))
    assert _same(target, source)
    assert all(now is before for now, before in zip(target.parameters(), parameters, strict=True))


def test_a_file_of_the_users_own_is_loaded_once(tmp_path: Path) -> None:
    file = write_factories(tmp_path / "code")
    head = {"3.weight": torch.ones(5, 4), "3.bias": torch.ones(5)}
    checkpoint = save({"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.ones(4)} | head, tmp_path)
    first, second = (load(checkpoint, f"{file}:Network").module for _ in range(2))
    assert type(first) is type(second)


def _tied(folder: Path) -> tuple[Checkpoint, str]:
    file = folder / "tied.py"
    file.write_text(TIED)
    names: dict[str, object] = {}
    exec(TIED, names)
    network = names["Tied"](3)  # type: ignore[operator]
    save_model(network, str(folder / "model.safetensors"))
    return open_checkpoint(folder / "model.safetensors"), f"{file}:Tied"


def _same(first: nn.Module, second: nn.Module) -> bool:
    tensors = second.state_dict()
    return all(torch.equal(value, tensors[name]) for name, value in first.state_dict().items())
