"""What the shells are offered."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.command_line import run_process


def offered(line: str, folder: Path, shell: str = "bash") -> list[str]:
    """What is offered for the last word of a command line."""
    words = line.split(" ")
    variables = {
        "_SAP_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    process = run_process(
        [sys.executable, "-c", "from sapcli.commands.entry import run; run()"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | variables,
    )
    assert "Traceback" not in process.stderr
    return process.stdout.split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "notes.txt").touch()
    tensors = {"stem.weight": (4, 3, 3, 3), "stem.bias": (4,), "layer1.conv.weight": (4, 4, 3, 3)}
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "model.safetensors")
    return tmp_path


def test_checkpoints_and_folders_are_offered_and_other_files_are_not(folder: Path) -> None:
    assert offered("sap project ", folder) == ["data/", "model.safetensors"]


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_architectures_are_offered_by_every_shells_protocol(folder: Path, shell: str) -> None:
    text = "\n".join(offered("sap eval model.safetensors data --arch torchvision:vit_b", folder, shell))
    assert "vit_b_16" in text
    assert "vit_b_32" in text
    assert "resnet18" not in text


def test_timms_names_are_offered_without_the_librarys(folder: Path) -> None:
    assert "resnet18" in offered("sap eval model.safetensors data --arch resnet1", folder)


def test_layers_are_those_of_the_checkpoint_level_by_level(folder: Path) -> None:
    line = "sap project model.safetensors data --layers "
    assert offered(line, folder) == ["layer1", "stem"]
    assert offered(line + "layer1.", folder) == ["layer1.conv"]
    assert offered("sap project notes.txt data --layers ", folder) == []
