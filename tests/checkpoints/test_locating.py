"""Folders and references to the Hub: the checkpoint in them, and where its repair goes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_project import run_here
from torch import nn

from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.checkpoints.locating import checkpoint_in, referenced_path
from sapcli.errors import CheckpointError

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["last.ckpt", "hparams.yaml"], "last.ckpt"),
        (["model_best.pth.tar"], "model_best.pth.tar"),
        (["pytorch_model.bin", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "sampler.bin"],
         "pytorch_model.bin"),
        (["weights.bin", "optimizer.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt", "training_args.bin"],
         "weights.bin"),
        (["net.pth", "optim.pt"], "net.pth"),
        (["model.safetensors", "other.pth"], "model.safetensors"),
        (["a.safetensors.index.json", "a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"],
         "a.safetensors.index.json"),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"], "pytorch_model.bin.index.json"),
        (["checkpoints/epoch=3.ckpt", "metrics.csv"], "checkpoints/epoch=3.ckpt"),
    ],
)  # fmt: skip
def test_the_only_checkpoint_of_a_folder(tmp_path: Path, names: list[str], found: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert checkpoint_in(tmp_path) == tmp_path / found


@pytest.mark.parametrize(
    "names", [["a.pth", "b.ckpt"], ["checkpoint-0.pth.tar", "model_best.pth.tar"], ["one.safetensors", "two.bin"]]
)
def test_several_are_listed(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(CheckpointError, match="2 checkpoints") as caught:
        checkpoint_in(tmp_path)
    assert all(name in caught.value.message for name in names)


def test_shards_of_pytorchs_own(tmp_path: Path) -> None:
    weights = {"conv.weight": torch.rand(2, 3), "fc.weight": torch.rand(4, 2)}
    for number, (name, tensor) in enumerate(weights.items(), 1):
        torch.save({name: tensor}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    named = {name: f"pytorch_model-0000{number}-of-00002.bin" for number, name in enumerate(weights, 1)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": named}))
    checkpoint = open_checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in weights.items())
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": named | {"other": "../x.bin"}}))
    with pytest.raises(CheckpointError, match="expected the name of a"):
        open_checkpoint(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of `huggingface_hub`, and no connection."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def put_into(cache: Path, owner: str, name: str) -> Path:
    """The folder of a repository in the cache, as a download makes it."""
    repository = cache / f"models--{owner}--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.mark.parametrize("spelling", ["hf-hub:ann/tiny", "hf://ann/tiny", f"hf-hub:ann/tiny@{REVISION}"])
def test_a_reference_to_the_hub_is_its_copy_in_the_cache(cache: Path, tmp_path: Path, spelling: str) -> None:
    """With timm's configuration; the result goes into the working folder, and nothing into the cache."""
    import timm
    from support.client_files import CLASSES, numbers, randomised, write_pictures

    snapshot = put_into(cache, "ann", "tiny")
    network: nn.Module = randomised(timm.create_model("test_resnet", num_classes=4))
    save_file(network.state_dict(), snapshot / "model.safetensors")
    settings = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    }
    config = {"architecture": "test_resnet", "num_classes": 4, "pretrained_cfg": settings, "label_names": CLASSES[::-1]}
    (snapshot / "config.json").write_text(json.dumps(config))
    pictures = write_pictures(tmp_path / "data")
    outcome = run_here("eval", spelling, pictures.folder, "--format", "json", "--workers", "0")
    assert outcome.status == 0, outcome.stderr
    from support.client_files import logits_of, metrics_of
    from torchvision import transforms

    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    expected = numbers(logits_of(network, pictures, prepare), pictures.label_numbers(CLASSES[::-1]))
    assert metrics_of(outcome) == pytest.approx(expected, abs=1e-4)
    before = sorted(cache.rglob("*"))
    outcome = run_here("project", spelling, pictures.folder, "--alpha", "50", "-n", "12", "--workers", "0", "--force")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.decode().strip() == "tiny.sap.safetensors"
    assert set(load_file(tmp_path / "tiny.sap.safetensors")) == set(network.state_dict())
    assert sorted(cache.rglob("*")) == before


def test_a_reference_that_is_not_there(cache: Path) -> None:
    for spelling in ("hf-hub:ann/none", "hf://ann/none"):
        with pytest.raises(CheckpointError, match="not in the cache") as caught:
            open_checkpoint(spelling)
        assert "hf download ann/none" in caught.value.hint
    shutil.rmtree(cache, ignore_errors=True)
    snapshot = put_into(cache, "ann", "empty")
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not in the cache"):
        open_checkpoint("hf-hub:ann/empty")


@pytest.mark.parametrize("path", ["model.safetensors", "hf-hub", "hf/hub:a", "./hf-hub:ann/tiny", "hf:ann"])
def test_paths_are_no_references(path: str) -> None:
    assert referenced_path(path) is None
