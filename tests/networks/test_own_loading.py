"""Tests of how the code of a network fills it: versions, random values, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.networks import save
from support.samples import folder_of
from torch import Tensor, nn

from sapcli import repair
from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.errors import ArchitectureError
from sapcli.networks.architecture import Architecture, LoadedModel, load_model, resolve_architecture
from sapcli.networks.factories import Factory
from sapcli.networks.preprocessing import Preprocessing
from sapcli.settings import PreprocessingOverrides

CPU = torch.device("cpu")
OVERRIDES = PreprocessingOverrides(input_size=(3, 4, 4), mean=(0.5,), std=(0.5,))

# The weight was kept the other way round before version 2, as the state dict's own metadata tells.
VERSIONED = """
from torch import nn
class Layer(nn.Linear):
    _version = {version}
    def _load_from_state_dict(self, entries, prefix, metadata, *rest):
        if (metadata.get("version") or 1) < {version}:
            entries[prefix + "weight"] = entries[prefix + "weight"].flip(1)
        super()._load_from_state_dict(entries, prefix, metadata, *rest)
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), {layer})
"""


def load(file: Path, checkpoint: Path) -> LoadedModel:
    opened = open_checkpoint(checkpoint)
    return load_model(opened, resolve_architecture(opened, f"{file}:Net", overrides=OVERRIDES), CPU)


def written(folder: Path, text: str) -> tuple[Path, nn.Module]:
    """A file of that text, and its network with random weights."""
    file = folder / "net.py"
    file.write_text(text)
    names: dict[str, object] = {"__name__": "plain"}
    exec(text, names)
    torch.manual_seed(0)
    network = names["Net"]()  # type: ignore[operator]
    assert isinstance(network, nn.Module)
    return file, network


@pytest.mark.parametrize("layer", ["Layer(48, 3)", "nn.Sequential(Layer(48, 3))"])
@pytest.mark.parametrize("saved_as", ["alone", "in a dictionary", "in parallel"])
def test_the_versions_in_a_file_of_pytorchs_reach_the_code(tmp_path: Path, layer: str, saved_as: str) -> None:
    file, network = written(tmp_path, VERSIONED.format(version=2, layer=layer))
    state = nn.DataParallel(network).state_dict() if saved_as == "in parallel" else network.state_dict()
    content = {"state_dict": state, "epoch": 3} if saved_as == "in a dictionary" else state
    torch.save(content, tmp_path / "model.pth")
    images = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(load(file, tmp_path / "model.pth").module(images), network(images))


def test_the_versions_are_kept_in_the_corrected_file(tmp_path: Path) -> None:
    file, network = written(tmp_path, VERSIONED.format(version=3, layer="Layer(48, 3)"))
    torch.save(network.state_dict(), tmp_path / "model.pth")
    data = folder_of(tmp_path / "data", {"a": 6, "b": 6, "c": 6})
    repaired = repair(
        tmp_path / "model.pth", data, arch=f"{file}:Net", preprocessing=OVERRIDES, trusted_count=9, alpha=20
    )
    out = repaired.save(tmp_path / "out.safetensors")
    images = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(load(file, out).module(images), repaired.module(images))
    assert not torch.equal(load_file(out)["1.weight"], network.state_dict()["1.weight"])


def test_an_old_file_is_turned_by_the_code(tmp_path: Path) -> None:
    file, network = written(tmp_path, VERSIONED.format(version=2, layer="Layer(48, 3)"))
    checkpoint = save(network, tmp_path)
    images = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        expected = nn.functional.linear(images.flatten(1), network[1].weight.flip(1), network[1].bias)
        assert checkpoint.path is not None
        loaded = load(file, checkpoint.path)
        torch.testing.assert_close(loaded.module(images), expected)
    assert loaded.kept["1.weight"] == "changed by the network's own code after it was loaded"
    assert "1.bias" not in loaded.kept


@pytest.mark.parametrize(
    ("drawn", "noted"),
    [
        ("torch.rand(48)", True),
        ("torch.rand(48, generator=torch.Generator().manual_seed(1))", False),
        ("(torch.manual_seed(1), torch.rand(48))[1]", False),
        ("torch.linspace(0, 1, 48)", False),
        ("next(COUNT)", False),
        ("__import__('random').random()", True),
        ("__import__('numpy').random.rand()", True),
    ],
)
@pytest.mark.parametrize(
    "kept_as",
    ["self.table = {}", "self.register_buffer('table', torch.as_tensor({}), persistent=False)", "self.table, = [{}]"],
)
def test_values_without_a_seed_that_no_file_holds_are_told_of(
    tmp_path: Path, drawn: str, noted: bool, kept_as: str
) -> None:
    text = f"""
import torch
import itertools
from torch import nn
COUNT = itertools.count(1)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(48, 3)
        {kept_as.format(drawn)}
    def forward(self, x):
        return self.f(x.flatten(1) * self.table)
"""
    file, network = written(tmp_path, text)
    checkpoint = save(network, tmp_path)
    assert checkpoint.path is not None
    loaded = load(file, checkpoint.path)
    assert [("table" in note, "without a seed" in note) for note in loaded.notes] == [(True, True)] * noted


def test_values_that_are_drawn_and_made_anew_are_not_told_of(tmp_path: Path) -> None:
    text = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.utils.weight_norm(nn.Linear(48, 3))  # its `weight` is made of others in every forward pass
        self.register_buffer("unused", torch.rand(3), persistent=False)
    def forward(self, x):
        return self.f(x.flatten(1))
"""
    file, network = written(tmp_path, text)
    checkpoint = save(network, tmp_path)
    assert checkpoint.path is not None
    assert load(file, checkpoint.path).notes == ()


@pytest.mark.parametrize("drawn", [True, False])
def test_a_librarys_network_is_built_plainly_where_random_values_reach_further(tmp_path: Path, drawn: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(48, 3)
            table = torch.empty(48)
            nn.init.uniform_(table, 1, 2) if drawn else nn.init.ones_(table)
            self.register_buffer("table", table, persistent=False)

        def forward(self, images: Tensor) -> Tensor:
            """Logits."""
            logits: Tensor = self.f(images.flatten(1) * self.table)
            return logits

    torch.manual_seed(0)
    checkpoint = save(Net(), tmp_path)
    preprocessing = Preprocessing((3, 4, 4), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center", "the tests")
    factory = Factory("timm:of_the_tests", Net)
    architecture = Architecture(factory.name, {}, 3, None, preprocessing, "the tests", factory=factory)
    before = torch.get_rng_state()
    loaded = load_model(checkpoint, architecture, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(loaded.notes) == drawn
    table = loaded.module.table
    assert isinstance(table, Tensor)
    assert bool((table >= 1).all())


@pytest.mark.parametrize("missing", ["f.weight", "g.bias"])
def test_what_the_code_does_not_accept_does_not_fit(tmp_path: Path, missing: str) -> None:
    text = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Linear(48, 5), nn.Linear(5, 3)
        self.register_load_state_dict_post_hook(lambda module, _: None)
    def forward(self, x):
        return self.g(self.f(x.flatten(1)))
"""
    file, network = written(tmp_path, text)
    tensors = network.state_dict()
    del tensors[missing]
    checkpoint = save(tensors, tmp_path)
    assert checkpoint.path is not None
    with pytest.raises(ArchitectureError, match=f"missing: {missing}"):
        load(file, checkpoint.path)
