"""Tests of what is found out about a checkpoint without data, and of the plan that a repair keeps to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.command_line import run
from support.digits import Trained
from support.networks import randomise, save, write_factories
from torch import nn

from sapcli.repairs.evidence.estimate import Workload
from sapcli.repairs.evidence.inspection import UNKNOWN, Inspection, inspect_checkpoint, usual_workload
from sapcli.reports.inspection_report import render_inspection
from sapcli.settings import ModelSource, PlanFormat

CPU = torch.device("cpu")
WORKLOAD = Workload(scored=10, trusted=100, captured=True, judged=20, trials=3, batchnorm=0, batch_size=8)


def inspected(network: nn.Module, folder: Path, arch: str | None = None, **how: object) -> Inspection:
    """The inspection of a network's checkpoint."""
    checkpoint = save(network, folder, **how)  # type: ignore[arg-type]
    return inspect_checkpoint(checkpoint, ModelSource(arch), CPU, WORKLOAD)


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict:
    """The JSON that a command prints."""
    assert run(list(map(str, arguments))) == 0
    return json.loads(capsys.readouterr().out)


def test_every_weight_is_planned_with_its_rows_or_a_reason(tmp_path: Path) -> None:
    network = randomise(timm.create_model("test_vit", num_classes=7))
    found = inspected(network, tmp_path)
    weights = {weight.name: weight for weight in found.weights}
    assert found.architecture is not None
    assert (found.architecture.name, found.architecture.num_classes) == ("timm:test_vit", 7)
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert set(weights) == {name for name, parameter in network.named_parameters() if parameter.dim() >= 2}
    for name, parameter in network.named_parameters():
        if name in {"cls_token", "pos_embed"}:
            assert not weights[name].projected
            assert "no matrix product" in (weights[name].reason or "")
            assert weights[name].row_length is None
        elif parameter.dim() >= 2:
            assert weights[name].projected
            assert weights[name].reason is None
            assert (weights[name].row_length, weights[name].groups) == (parameter[0].numel(), 1)


def test_depthwise_convolutions_have_a_group_a_channel(tmp_path: Path) -> None:
    network = randomise(timm.create_model("test_convnext", num_classes=7))
    weights = {weight.name: weight for weight in inspected(network, tmp_path).weights}
    depthwise = "stages.0.blocks.0.conv_dw.weight"
    assert (weights[depthwise].row_length, weights[depthwise].groups) == (49, network.state_dict()[depthwise].shape[0])


def test_architectures_with_equal_tensors_are_candidates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(randomise(timm.create_model("test_efficientnet_gn", num_classes=7)), tmp_path)
    document = told(capsys, "inspect", tmp_path / "model.safetensors", "--format", "json")
    assert document["architecture"] is None
    assert document["candidates"] == ["timm:test_efficientnet_gn", "timm:test_efficientnet_ln"]
    assert document["candidates_fit"]
    assert document["estimate"] is None
    assert {(weight["projected"], weight["reason"]) for weight in document["weights"]} == {(False, UNKNOWN)}


def test_of_an_unknown_network_the_nearest_are_named(tmp_path: Path) -> None:
    tensors = randomise(timm.create_model("test_vit", num_classes=7)).state_dict()
    tensors["blocks.0.attn.qkv.weight"] = torch.ones(5, 5)
    found = inspect_checkpoint(save(tensors, tmp_path), ModelSource(), CPU, WORKLOAD)
    assert found.architecture is None
    assert "timm:test_vit" in {candidate.name for candidate in found.candidates}
    assert "no known one has its tensors" in (found.problem or "")


def test_a_named_architecture_that_does_not_fit_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(randomise(timm.create_model("test_vit", num_classes=7)), tmp_path)
    assert run(["inspect", str(tmp_path), "--arch", "test_resnet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "does not fit" in captured.err


def test_prefixes_and_training_state_are_understood(tmp_path: Path) -> None:
    network = randomise(timm.create_model("test_vit", num_classes=7))
    tensors = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {"optimizer.exp_avg": torch.ones(3, 3), "ema.head.weight": torch.ones(7, 64)}
    found = inspect_checkpoint(save(tensors, tmp_path), ModelSource(), CPU, WORKLOAD)
    assert found.architecture is not None
    assert set(found.extra_entries) == {"optimizer.exp_avg", "ema.head.weight"}
    assert "head.weight" in {weight.name for weight in found.weights}


def test_an_own_network_is_planned_by_its_factory(tmp_path: Path) -> None:
    factories = write_factories(tmp_path / "code")
    specification = f"{factories}:bare"
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    checkpoint = save(randomise(network), tmp_path)
    assert run(["inspect", checkpoint.source, "--arch", specification, "--format", "table"]) == 1  # no preprocessing
    found = inspect_checkpoint(checkpoint, ModelSource(f"{factories}:Network"), CPU, WORKLOAD)
    assert [(weight.name, weight.row_length) for weight in found.weights] == [("0.weight", 27), ("3.weight", 4)]


def test_the_estimate_is_counted(tmp_path: Path) -> None:
    factories = write_factories(tmp_path / "code")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    found = inspected(randomise(network), tmp_path, f"{factories}:Network").estimate
    assert found is not None
    per_image = 2 * (36 * 27 * 4 + 4 * 10)  # 36 positions of the kernel on 8x8 pixels
    operations = {stage.name: stage.operations for stage in found.stages}
    assert operations["scoring training images"] == 10 * per_image
    assert operations["running trusted images"] == 100 * per_image
    assert operations["second moments"] == 100 * 36 * 27**2 + 100 * 4**2
    assert operations["decompositions"] == 9 * (27**3 + 4**3)
    assert operations["projections"] == 5 * 4 * (4 * 27**2 + 10 * 4**2)
    assert operations["judging 3 values of alpha"] == 4 * 20 * per_image
    for stage in found.stages:
        rates = {stage.operations / rate for rate in found.rates.measured.values()}
        assert any(stage.seconds == pytest.approx(seconds) for seconds in rates)
    moments = 8 * (27**2 + 4**2)
    assert found.memory_bytes > moments + 4 * found.workload.batch_size * (3 * 64 + 4 * 36)


def test_large_decompositions_are_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapcli.activations.moments._LARGE", 27)
    factories = write_factories(tmp_path / "code")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    found = inspected(randomise(network), tmp_path, f"{factories}:Network").estimate
    assert found is not None
    operations = {stage.name: stage.operations for stage in found.stages}
    assert operations["decompositions"] == 9 * 4**3
    assert operations["large decompositions"] == 9 * 27**3
    assert found.rates.measured["large decompositions"] > 0


def test_few_rows_are_planned_on_their_own_side(tmp_path: Path) -> None:
    network = randomise(timm.create_model("test_vit", num_classes=7))
    few = inspect_checkpoint(
        save(network, tmp_path), ModelSource(), CPU, Workload(0, 1, True, 0, 1, 0, batch_size=1)
    ).estimate
    assert few is not None
    # The head sees one row of 64: its moment is that row, and nothing is decomposed but one number.
    assert few.memory_bytes < 4 * sum(tensor.numel() for tensor in network.state_dict().values()) + (1 << 24)


def test_what_a_repair_did_is_shown_afterwards(
    noisy: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = told(capsys, "inspect", noisy.checkpoint)
    assert plan["earlier_repair"] is None
    output = tmp_path / "repaired.safetensors"
    common = [noisy.checkpoint, noisy.data, "-n", "50", "--alpha", "3000", "--workers", "0", "-q", "-o", output]
    dry = told(capsys, "project", *common, "--dry-run")
    assert not output.exists()
    assert run(list(map(str, ["project", *common]))) == 0
    capsys.readouterr()
    repaired = told(capsys, "inspect", output)
    projected = json.loads(repaired["metadata"]["sap.projected"])
    for document in (plan, dry, repaired):
        assert {weight["name"] for weight in document["weights"] if weight["projected"]} == set(projected)
    assert repaired["architecture"] == plan["architecture"] == "timm:test_resnet"
    assert repaired["earlier_repair"]["alpha"] == "3000"
    before, after = load_file(noisy.checkpoint), load_file(output)
    changed = {name for name in before if name.endswith("weight") and not torch.equal(before[name], after[name])}
    assert changed == set(projected)


def test_a_dry_run_keeps_to_the_options(noisy: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [noisy.checkpoint, noisy.data, "-n", "50", "-q", "-o", tmp_path / "x.safetensors", "--dry-run"]
    plan = told(capsys, "project", *common, "--keep-classifier", "--skip-layers", "layer1")
    reasons = {weight["name"]: weight["reason"] for weight in plan["weights"]}
    assert reasons["fc.weight"] == "--keep-classifier"
    assert {reason for name, reason in reasons.items() if name.startswith("layer1.")} == {"--skip-layers"}
    assert not any(reason for name, reason in reasons.items() if name.startswith("layer2."))
    workload = plan["estimate"]["workload"]
    assert (workload["scored"], workload["trusted"], workload["judged"]) == (300, 50, 100)
    assert run(["project", *map(str, common), "--layers", "nothing"]) == 2
    assert "--layers nothing matches no weight" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "select", "activations", "eval"])
def test_images_that_the_network_does_not_take_are_an_error(
    noisy: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    factories = write_factories(tmp_path / "code")
    checkpoint = save(
        randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))), tmp_path
    )
    data = [] if command == "inspect" else [str(noisy.data)]
    trusted = tmp_path / "trusted.txt"
    trusted.write_text("0\n1\n")
    options = ["--trusted", str(trusted)] if command == "activations" else []
    size = ["--arch", f"{factories}:Network", "--input-size", "3,2,2"]
    assert run([command, checkpoint.source, *data, *size, *options]) == 1
    assert "Network cannot run on images of 3x2x2" in capsys.readouterr().err


def test_the_table_tells_the_same(noisy: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(noisy.checkpoint), "--format", "table"]) == 0
    table = capsys.readouterr().out
    for text in ("timm:test_resnet", "layer1.0.conv1.weight", "GFLOP", "MiB"):
        assert text in table


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    save_file({"a\x1b[31m": torch.ones(2, 2)}, tmp_path / "model.safetensors", {"note": "\x1b[2J"})
    assert run(["inspect", str(tmp_path), "--format", "json"]) == 0
    found = inspect_checkpoint(save({"a\x1b[31m": torch.ones(2, 2)}, tmp_path), ModelSource(), CPU, usual_workload(8))
    assert "\x1b" not in render_inspection(found, PlanFormat.TABLE)
