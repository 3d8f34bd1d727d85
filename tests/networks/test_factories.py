"""Tests of the functions that build networks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from support.networks import write_factories
from torch import nn
from torch.nn.utils import parametrizations

from sapcli.errors import ArchitectureError
from sapcli.networks.factories import Factory, find_factory, runs_own_code


@pytest.mark.parametrize(
    ("spec", "own"),
    [
        ("resnet18", False),
        ("timm:resnet18", False),
        ("torchvision:resnet18", False),
        ("timm.models.resnet:resnet18", True),
        ("net.py:factory", True),
        ("package:factory", True),
    ],
)
def test_code_outside_of_the_libraries_is_told_apart(spec: str, own: bool) -> None:
    assert runs_own_code(spec) == own


def test_a_librarys_network_is_built_without_random_values() -> None:
    def factory() -> nn.Module:
        network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), parametrizations.orthogonal(nn.Linear(3, 3)))
        network[0].weight.data.normal_()
        nn.init.xavier_uniform_(network[0].weight)
        network.register_buffer("table", torch.arange(3.0) / 2, persistent=False)
        return network

    before = torch.get_rng_state()
    network = Factory("factory", factory).build({})
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(network[0].weight, torch.zeros(3, 3))
    assert torch.equal(network.table, torch.tensor([0.0, 0.5, 1.0]))


@pytest.mark.parametrize("by_value", [False, True])
def test_an_outline_takes_no_memory_even_where_values_are_computed_with(by_value: bool) -> None:
    def factory() -> nn.Module:
        widths = torch.linspace(4, 6, 2)
        return nn.Linear(*widths.int().tolist()) if by_value else nn.Linear(4, 6)

    network = Factory("factory", factory).outline({})
    assert network.weight.is_meta
    assert network.weight.shape == (6, 4)


def test_a_factory_that_needs_its_parameters_values_is_built_for_good() -> None:
    def factory() -> nn.Module:
        network = nn.Linear(2, 2)
        network.scale = network.weight.sum().item()
        return network

    assert not Factory("factory", factory).outline({}).weight.is_meta


def test_the_options_of_a_network_are_those_of_its_class_where_the_factory_hands_them_on() -> None:
    options = find_factory("torchvision:googlenet").options_of(find_factory("torchvision:googlenet").outline({}))
    assert options["aux_logits"] is True
    assert "weights" not in options


def test_the_import_path_is_as_before(tmp_path: Path) -> None:
    file = write_factories(tmp_path / "code")
    before = list(sys.path)
    factory = find_factory(f"{file}:broken")
    with pytest.raises(ArchitectureError, match="no such block"):
        factory.build({})
    assert sys.path == before


def test_a_default_device_that_a_script_sets_does_not_outlive_its_import(tmp_path: Path) -> None:
    file = tmp_path / "training.py"
    file.write_text("import torch\ntorch.set_default_device('meta')\nfactory = lambda: torch.nn.Linear(2, 3)\n")
    network = find_factory(f"{file}:factory").build({})
    assert torch.get_default_device() == torch.device("cpu")
    assert network.weight.device == torch.zeros(1).device == torch.device("cpu")


@pytest.mark.parametrize(
    "spec",
    [
        "hf-hub:timm/resnet18.a1_in1k",
        "hf_hub:timm/resnet18.a1_in1k",
        "timm/resnet18.a1_in1k",
        "hf-hub:resnet18.a1_in1k",
    ],
)
def test_the_names_of_the_hub_for_timm(spec: str) -> None:
    assert find_factory(spec).name == find_factory("timm:resnet18.a1_in1k").name
    assert not runs_own_code(spec)


@pytest.mark.parametrize("spec", ["hf-hub:someone/resnet18-of-mine", "hf-hub:timm/resnet_of_tomorrow", "timm/"])
def test_other_names_of_the_hub_are_not_fetched(spec: str) -> None:
    assert not runs_own_code(spec)
    with pytest.raises(ArchitectureError, match="no architecture named"):
        find_factory(spec)
