"""Tests that nothing mixes the tensors of a GPU with those of the CPU, on a GPU that is pretended."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from support.brute_force import correlated_images
from support.pretended_gpu import CUDA, MPS, OnGpu, pretended_gpu
from support.small_project import Outcome, Project, make_project, run_here

from sapcli.activations.bases import Bases, SecondMoments
from sapcli.machine.progress import SilentProgress
from sapcli.repairs.projected_weights import projected_weight
from sapcli.settings import Importance

NETWORKS = (
    "convnext_atto",
    "efficientvit_b0",
    "mobilenetv3_small_050",
    "resnest14d",
    "resnext50_32x4d",
    "swinv2_tiny_window8_256",
    "vit_tiny_patch16_224",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


def test_the_pretended_gpu_refuses_what_a_gpu_refuses() -> None:
    with pretended_gpu():
        there, here = torch.ones(3, device="cuda"), torch.arange(3.0)
        assert isinstance(there, OnGpu)
        assert there.device == CUDA
        with pytest.raises(RuntimeError, match="found on the CPU"):
            there + here
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        moved = here.to(CUDA)
        assert (there + moved)[here.long()].cpu().tolist() == [1, 2, 3]
        assert torch.where(moved > 1, moved, 0.5).sum().item() == 3
    with pretended_gpu(MPS), pytest.raises(TypeError, match="float64"):
        torch.ones(3, device="mps").double()


def _run(project: Project, folder: Path, device: str, command: str, *options: str) -> Outcome:
    arguments = [
        *(command, project.checkpoint, project.data, *options, "--device", device),
        *("--arch", f"{project.folder / 'network.py'}:tiny", "--cache-dir", folder / f"cache-{device}"),
    ]
    if device == "cpu":
        return run_here(*arguments)
    with pretended_gpu(torch.device(device, 0)):
        return run_here(*arguments)


@pytest.mark.parametrize(
    "options",
    [
        ("--alpha", "auto"),
        ("--alpha", "30", "--strategy", "curvature", "--all-rows"),
        ("--alpha", "0.9", "--importance", "gpm", "--batchnorm", "keep"),
        ("--alpha", "30", "--forget", "FORGET"),
        ("--alpha", "30", "--batch-size", "7", "--report", "REPORT"),
    ],
    ids=" ".join,
)
def test_a_repair_on_a_gpu(project: Project, tmp_path: Path, options: tuple[str, ...]) -> None:
    forget = tmp_path / "forget.txt"
    forget.write_text("".join(f"{index}\n" for index in range(20)))
    files = {"FORGET": str(forget), "REPORT": str(tmp_path / "report.md")}
    options = tuple(files.get(option, option) for option in options)
    outputs = {}
    for device in ("cpu", "cuda", "mps"):
        outputs[device] = tmp_path / f"{device}.safetensors"
        outcome = _run(
            project, tmp_path, device, "project", "-n", "60", "--force", "-o", str(outputs[device]), *options
        )
        assert outcome.status == 0, outcome.stderr
    assert outputs["cuda"].read_bytes() == outputs["cpu"].read_bytes()
    # Apple's GPUs are given images in another layout.
    on_mps = load_file(outputs["mps"])
    for name, tensor in load_file(outputs["cpu"]).items():
        assert torch.dist(on_mps[name].double(), tensor.double()) <= 1e-5 * tensor.double().norm(), name


@pytest.mark.parametrize("command", ["select", "eval", "suspects"])
def test_other_commands_on_a_gpu(project: Project, tmp_path: Path, command: str) -> None:
    on_cpu, *on_gpus = (_run(project, tmp_path, device, command) for device in ("cpu", "cuda", "mps"))
    for on_gpu in on_gpus:
        assert on_gpu.status == 0, on_gpu.stderr
        assert on_gpu.stdout == on_cpu.stdout


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_plan_on_a_gpu(project: Project, tmp_path: Path, device: str) -> None:
    outcome = _run(project, tmp_path, device, "project", "--dry-run")
    assert outcome.status == 0, outcome.stderr


@pytest.mark.parametrize("name", NETWORKS)
def test_bases_and_projections_of_networks_on_a_gpu(name: str) -> None:
    size = 64
    sized = {"img_size": size} if name.startswith(("swin", "vit")) else {}
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=4, **sized).eval()
    images = correlated_images(6, 3, size, size)
    on_cpu = _projections(network, images, torch.device("cpu"))
    with pretended_gpu():
        on_gpu = _projections(network.to(CUDA), images, CUDA)
    assert on_gpu.keys() == on_cpu.keys()
    assert len(on_cpu) > 10
    for weight, projected in on_cpu.items():
        # Attention has another kernel where it does not know that it is on a CPU.
        assert torch.dist(on_gpu[weight], projected) <= 1e-5 * torch.linalg.vector_norm(projected), weight


def _projections(network: torch.nn.Module, images: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    moments = SecondMoments(network, len(images))
    with torch.no_grad(), moments.capture:
        for half in images.chunk(2):
            moments.forward(half.to(device))
    bases = Bases(moments.pieces(SilentProgress()), {}, "", "")
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        return {
            name: projected_weight(name, parameters[name].clone(), bases, Importance.SAP, 30.0).cpu()
            for name in bases.pieces
        }
