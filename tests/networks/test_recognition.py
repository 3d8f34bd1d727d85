"""Tests of the recognition of bare checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_model
from support.networks import save
from torch import nn

from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.errors import ArchitectureError
from sapcli.networks.architecture import resolve_architecture
from sapcli.networks.class_count import ClassDimension
from sapcli.networks.preprocessing import Preprocessing
from sapcli.networks.recognition import (
    KnownArchitecture,
    digest_of,
    known_architectures,
    recognise,
    similarity,
    sketch_of,
    write_index,
)

HEAD = (ClassDimension("fc.weight", 0, 1, 0),)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_vit", "mobilenetv3_small_050", "xcit_nano_12_p16_224"],
)
def test_a_timm_network_is_among_its_matches_with_its_number_of_classes(tmp_path: Path, name: str, prefix: str) -> None:
    found = recognise(save(timm.create_model(name, num_classes=7), tmp_path, prefix=prefix))
    assert (f"timm:{name}", 7) in [(candidate.name, candidate.num_classes) for candidate in found.matches]
    assert not found.nearest


def test_the_only_match_is_used_and_said(tmp_path: Path) -> None:
    checkpoint = save(torchvision.models.squeezenet1_1(num_classes=5).half(), tmp_path)
    architecture = resolve_architecture(checkpoint)
    assert (architecture.name, architecture.num_classes) == ("torchvision:squeezenet1_1", 5)
    assert architecture.source == "the tensors' names and shapes"


def test_a_configuration_that_names_no_architecture_still_tells_the_rest(tmp_path: Path) -> None:
    config: dict[str, object] = {"label_names": ["a", "b"], "pretrained_cfg": {"mean": [0.5]}}
    checkpoint = save(torchvision.models.squeezenet1_1(num_classes=2), tmp_path, config=config)
    architecture = resolve_architecture(checkpoint)
    assert (architecture.label_names, architecture.preprocessing.mean) == (("a", "b"), (0.5, 0.5, 0.5))


def test_several_matches_are_named_with_their_preprocessing(tmp_path: Path) -> None:
    checkpoint = save(torchvision.models.resnet18(num_classes=3), tmp_path)
    with pytest.raises(ArchitectureError) as raised:
        resolve_architecture(checkpoint)
    assert "timm:resnet18 (3x224x224, bilinear, crop 0.95," in raised.value.message.replace("bicubic", "bilinear")
    assert "torchvision:resnet18 (3x224x224, bilinear, crop 0.875," in raised.value.message
    assert "--arch timm:" in raised.value.hint


def test_no_match_names_the_nearest(tmp_path: Path) -> None:
    checkpoint = save(timm.create_model("test_resnet", num_classes=7, in_chans=5), tmp_path)
    assert recognise(checkpoint).nearest[0].name == "timm:test_resnet"
    with pytest.raises(ArchitectureError, match="nearest: timm:test_resnet"):
        resolve_architecture(checkpoint)


def test_something_else_is_like_nothing_known(tmp_path: Path) -> None:
    found = recognise(save(nn.Sequential(nn.Linear(3, 3)), tmp_path))
    assert not found.matches
    assert found.nearest[0].similarity < 0.5


def test_training_state_and_left_out_tied_tensors_do_not_hide_a_network(tmp_path: Path) -> None:
    network = timm.create_model("coat_tiny", num_classes=7)
    save_model(network, str(tmp_path / "tied.safetensors"))
    assert "timm:coat_tiny" in [
        match.name for match in recognise(open_checkpoint(tmp_path / "tied.safetensors")).matches
    ]
    tensors = {**network.state_dict(), "optimizer.step": torch.ones(1)}
    assert "timm:coat_tiny" in [match.name for match in recognise(save(tensors, tmp_path)).matches]


def test_recognition_imports_no_library_of_networks() -> None:
    program = (
        "import sys, sapcli.networks.recognition as recognition; recognition.known_architectures(); "
        "sys.exit(not {'timm', 'torchvision'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_digest_leaves_out_the_classes_and_nothing_else() -> None:
    shapes = {"conv.weight": (8, 3, 3, 3), "fc.weight": (10, 8)}
    digest = digest_of(shapes, HEAD)
    assert digest == digest_of({"fc.weight": (3, 8), "conv.weight": (8, 3, 3, 3)}, HEAD)
    assert digest == digest_of({**shapes, "bn.num_batches_tracked": ()}, HEAD)
    assert digest != digest_of({**shapes, "fc.weight": (10, 9)}, HEAD)
    assert digest != digest_of({**shapes, "conv.weight": (8, 1, 3, 3)}, HEAD)
    assert digest != digest_of({**shapes, "fc.bias": (10,)}, HEAD)


def test_the_sketch_is_nearer_for_another_width_than_for_another_network() -> None:
    def sketch(width: int, block: str) -> bytes:
        return sketch_of({f"{block}.{number}.weight": (width, width) for number in range(100)})

    assert similarity(sketch(8, "a"), sketch(8, "a")) == 1
    assert similarity(sketch(8, "a"), sketch(9, "a")) > similarity(sketch(8, "a"), sketch(8, "b"))
    assert similarity(sketch_of({}), sketch_of({})) == 0


def test_an_index_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "center", "a source")
    written = (
        KnownArchitecture("timm:a", HEAD, "0123", b"\x00\xff", preprocessing),
        KnownArchitecture("timm:b", HEAD, "4567", b"\x01\x02", preprocessing),
    )
    (tmp_path / "data").mkdir()
    write_index(reversed(written), tmp_path / "data" / "architectures.json.xz")
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    assert known_architectures.__wrapped__() == written


def test_the_index_covers_both_libraries() -> None:
    names = {known.name for known in known_architectures()}
    assert len(names) > 1300
    assert {f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)} <= names
