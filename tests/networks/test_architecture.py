"""Tests of the way from a checkpoint to its architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from support.networks import randomise, save, write_factories
from torch import nn

from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.commands.line.parsing import parse_arguments
from sapcli.errors import ArchitectureError, UsageError
from sapcli.networks.architecture import Architecture, load_model, resolve_architecture
from sapcli.settings import PreprocessingOverrides

CPU = torch.device("cpu")
SHARED = Path(__file__).parents[3] / "shared" / "checkpoints"


@pytest.fixture(scope="session")
def resnet() -> nn.Module:
    return randomise(timm.create_model("test_resnet", num_classes=7))


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("test_resnet", "timm:test_resnet"),
        ("timm:test_resnet", "timm:test_resnet"),
        ("timm:test_resnet.r160_in1k", "timm:test_resnet.r160_in1k"),
    ],
)
def test_a_timm_name_gives_the_architecture_with_the_classes_of_the_tensors(
    resnet: nn.Module, tmp_path: Path, spec: str, name: str
) -> None:
    architecture = resolve_architecture(save(resnet, tmp_path), spec)
    assert (architecture.name, architecture.num_classes, architecture.source) == (name, 7, "--arch")
    assert architecture.preprocessing.input_size == resnet.pretrained_cfg["input_size"]
    assert architecture.preprocessing.source == f"the pretrained_cfg of {name}"


def test_a_torchvision_network_is_prepared_as_its_published_weights_are(tmp_path: Path) -> None:
    checkpoint = save(torchvision.models.squeezenet1_1(num_classes=5), tmp_path)
    architecture = resolve_architecture(checkpoint, "squeezenet1_1")  # no network of timm's
    preprocessing = architecture.preprocessing
    assert (architecture.name, architecture.num_classes) == ("torchvision:squeezenet1_1", 5)
    assert (preprocessing.input_size, preprocessing.crop_pct) == ((3, 224, 224), 224 / 256)
    assert (preprocessing.interpolation, preprocessing.mean) == ("bilinear", (0.485, 0.456, 0.406))


def test_a_users_file_imports_its_neighbours_and_keeps_stdout_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_factories(tmp_path / "code")
    checkpoint = save({"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.ones(4)} | _head(3), tmp_path)
    architecture = resolve_architecture(checkpoint, f"{file}:of_three_classes")
    assert architecture.num_classes == 3  # the factory takes no number of classes: seen by running the network
    load_model(checkpoint, architecture, CPU)
    captured = capsys.readouterr()
    assert (captured.out, "building" in captured.err) == ("", True)


def test_a_module_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_factories(tmp_path / "code", "my_factories")
    monkeypatch.chdir(tmp_path / "code")
    checkpoint = save({"0.weight": torch.ones(9, 3, 3, 3), "0.bias": torch.ones(9)} | _head(5, 9), tmp_path)
    architecture = resolve_architecture(checkpoint, "my_factories:Network", {"width": 9})
    assert (architecture.num_classes, architecture.arguments) == (5, {"width": 9})


def test_config_json_names_architecture_arguments_classes_and_preprocessing(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    config: dict[str, object] = {
        "architecture": "test_resnet",
        "num_classes": 1000,
        "model_args": {"in_chans": 1, "num_classes": 1000},
        "pretrained_cfg": {"input_size": [1, 96, 96], "mean": [0.25], "std": [0.5], "label_names": ["x"]},
        "label_names": ["a", "b", "c"],
    }
    architecture = resolve_architecture(save(network, tmp_path, config=config))
    assert (architecture.name, architecture.arguments) == ("timm:test_resnet", {"in_chans": 1})
    assert (architecture.num_classes, architecture.label_names) == (3, ("a", "b", "c"))
    assert architecture.source == "config.json"
    preprocessing = architecture.preprocessing
    assert (preprocessing.input_size, preprocessing.mean, preprocessing.std) == ((1, 96, 96), (0.25,), (0.5,))
    assert preprocessing.crop_pct == network.pretrained_cfg["crop_pct"]


def test_options_go_before_config_json_and_another_architecture_leaves_its_arguments(
    resnet: nn.Module, tmp_path: Path
) -> None:
    config: dict[str, object] = {
        "architecture": "resnet18",
        "model_args": {"no_such": 1},
        "pretrained_cfg": {"mean": [0, 0, 0]},
        "label_names": {"0": "a", "1": "b", "2": "c", "3": "d", "4": "e", "5": "f", "6": "g"},
    }
    overrides = PreprocessingOverrides(input_size=(3, 64, 64), std=(0.5,), crop_pct=0.5)
    architecture = resolve_architecture(save(resnet, tmp_path, config=config), "test_resnet", overrides=overrides)
    preprocessing = architecture.preprocessing
    assert (preprocessing.input_size, preprocessing.std, preprocessing.crop_pct) == ((3, 64, 64), (0.5,) * 3, 0.5)
    assert preprocessing.mean == resnet.pretrained_cfg["mean"]
    assert preprocessing.source == "--input-size, the pretrained_cfg of timm:test_resnet, --std, --crop-pct"
    assert architecture.label_names == tuple("abcdefg")


def test_the_metadata_that_an_architecture_writes_names_it_again(resnet: nn.Module, tmp_path: Path) -> None:
    overrides = PreprocessingOverrides(input_size=(3, 64, 64), mean=(0.1, 0.2, 0.3))
    written = resolve_architecture(save(resnet, tmp_path), "test_resnet", {"drop_rate": 0.5}, overrides)
    read = resolve_architecture(save(resnet, tmp_path, metadata=written.to_metadata()))
    assert (read.name, read.arguments, read.num_classes) == (written.name, {"drop_rate": 0.5}, 7)
    assert read.source == "the metadata"
    assert str(read.preprocessing) == str(written.preprocessing)


def test_an_input_size_reaches_networks_that_are_built_for_one(tmp_path: Path) -> None:
    checkpoint = save(timm.create_model("test_vit", num_classes=3, img_size=96), tmp_path)
    asked = resolve_architecture(checkpoint, "test_vit", overrides=PreprocessingOverrides(input_size=(3, 96, 96)))
    assert asked.arguments == {"img_size": 96}

    found = resolve_architecture(checkpoint, "test_vit")  # the position table tells
    assert (found.arguments, found.preprocessing.input_size) == ({"img_size": 96}, (3, 96, 96))
    assert found.preprocessing.source.startswith("the network's arguments")
    module = load_model(checkpoint, found, CPU).module
    assert module(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_tensors_tell_whether_there_is_an_auxiliary_classifier(tmp_path: Path, auxiliary: bool) -> None:
    network = torchvision.models.googlenet(num_classes=5, aux_logits=auxiliary, init_weights=False)
    architecture = resolve_architecture(save(network, tmp_path), "torchvision:googlenet")
    assert architecture.num_classes == 5
    assert architecture.arguments == ({} if auxiliary else {"aux_logits": False})


def test_both_heads_of_a_distilled_network_follow_the_number_of_classes(tmp_path: Path) -> None:
    network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4)
    assert resolve_architecture(save(network, tmp_path), "deit_tiny_distilled_patch16_224").num_classes == 4


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared checkpoint is not here")
def test_the_shared_checkpoint_loads_with_its_own_preprocessing() -> None:
    checkpoint = open_checkpoint(SHARED / "cifar10_resnet18_half_noisy25.safetensors")
    architecture = resolve_architecture(checkpoint, f"{SHARED / 'cifar_resnet.py'}:resnet18_half")
    assert architecture.preprocessing.input_size == (3, 32, 32)
    assert load_model(checkpoint, architecture, CPU).entry_names.keys() == checkpoint.entries.keys()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("resnet_18", "no architecture named 'resnet_18'"),
        ("timm:vit_b_16", "no architecture named 'timm:vit_b_16'"),
        ("timm:hf-hub:someone/something", "no architecture named"),
        ("timm:test_resnet.no_such_tag", "no_such_tag"),
        ("code/none.py:Network", "there is no file code/none.py"),
        ("no.such.module:factory", "No module named 'no'"),
        ("code/factories.py:nothing", "has no function or class named 'nothing'"),
        ("code/factories.py:not_a_function", "has no function or class named"),
        ("code/factories.py:broken", "broken(num_classes=7) failed: KeyError: 'no such block'"),
        ("code/factories.py:leaving", "leaving() failed: SystemExit: 3"),
        ("code/factories.py:no_network", "returned a int"),
        ("code/wrong.py:factory", "SyntaxError"),
        ("code/factories.py:Network", "missing: 0.weight, 0.bias, 3.weight, 3.bias; unexpected: "),
        ("test_vit", "does not fit timm:test_vit: missing: "),
    ],
)
def test_what_cannot_be_resolved_is_named(
    resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, says: str
) -> None:
    write_factories(tmp_path / "code")
    (tmp_path / "code" / "wrong.py").write_text("def factory(:")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchitectureError) as raised:
        resolve_architecture(save({f"x.{name}": value for name, value in resnet.state_dict().items()}, tmp_path), spec)
    assert says in raised.value.message
    assert "\n" not in raised.value.message + raised.value.hint


@pytest.mark.parametrize("config", [True, False])
def test_code_that_only_the_checkpoint_names_is_not_run(tmp_path: Path, config: bool) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    named = {"architecture": f"{tmp_path}/evil.py:factory"}
    checkpoint = save(_head(3), tmp_path, **({"config": named} if config else {"metadata": named}))  # type: ignore[arg-type]
    with pytest.raises(ArchitectureError, match="only runs if you say so"):
        resolve_architecture(checkpoint)


@pytest.mark.parametrize("argument", ["pretrained", "checkpoint_path", "weights", "pretrained_cfg"])
def test_arguments_that_bring_other_weights_are_refused(resnet: nn.Module, tmp_path: Path, argument: str) -> None:
    config: dict[str, object] = {"architecture": "test_resnet", "model_args": {argument: "elsewhere.pth"}}
    with pytest.raises(ArchitectureError, match=f"'{argument}' of timm:test_resnet is refused"):
        resolve_architecture(save(resnet, tmp_path, config=config))


def test_a_network_without_preprocessing_needs_it_from_the_user(tmp_path: Path) -> None:
    file = write_factories(tmp_path / "code")
    checkpoint = save({"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.ones(4)} | _head(3), tmp_path)
    with pytest.raises(ArchitectureError) as raised:
        resolve_architecture(checkpoint, f"{file}:bare", overrides=PreprocessingOverrides(input_size=(3, 8, 8)))
    assert raised.value.hint.startswith("Give --mean, --std")
    overrides = PreprocessingOverrides(input_size=(3, 8, 8), mean=(0.5,), std=(0.5,))
    assert _preprocessed(resolve_architecture(checkpoint, f"{file}:bare", overrides=overrides)) == (3, 8, 8)


@pytest.mark.parametrize(
    ("pairs", "arguments"),
    [
        ([], {}),
        (["a=1", "b=0.5", "c=(1, 2)", "d=None"], {"a": 1, "b": 0.5, "c": (1, 2), "d": None}),
        (["a=true", "b=False", "c=null"], {"a": True, "b": False, "c": None}),
        (["act=silu", "a='1'", "e=", "x=a=b"], {"act": "silu", "a": "1", "e": "", "x": "a=b"}),
    ],
)
def test_arguments_are_literals_or_texts(pairs: list[str], arguments: dict[str, object]) -> None:
    assert parse_arguments(pairs) == arguments


@pytest.mark.parametrize("pairs", [["a"], ["=1"], ["a b=1"], ["a=1", "a=2"]])
def test_arguments_of_another_form_are_wrong_usage(pairs: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_arguments(pairs)


def _head(classes: int, width: int = 4) -> dict[str, torch.Tensor]:
    return {"3.weight": torch.ones(classes, width), "3.bias": torch.ones(classes)}


def _preprocessed(architecture: Architecture) -> tuple[int, int, int]:
    return architecture.preprocessing.input_size
