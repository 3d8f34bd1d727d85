"""Names from files that would steer a terminal: they are shown, never obeyed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_project import Project, make_project, run_here

CLEAR = "\x1b[2J\x1b]0;owned\x07"
OPTIONS = ("--arch", "network.py:tiny", "--workers", "0")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose classes, images, tensors and metadata have names with escape sequences."""
    project = make_project(tmp_path / "project")
    for split in ("train", "val"):
        (project.data / split / "red").rename(project.data / split / f"re{CLEAR}d\n[bold]")
    image = project.data / "train" / "blue" / f"a{CLEAR}\r\n.png"
    image.write_bytes(b"no image")
    shutil.copy(image, os.fsdecode(os.fsencode(image.parent) + b"/\xff\x9b31m.png"))
    tensors = load_file(project.checkpoint)
    tensors[f"optimizer.{CLEAR}"] = torch.ones(1)
    save_file(tensors, project.checkpoint, {"sap.repaired": "true", "sap.alpha": CLEAR})
    (project.folder / "config.json").write_text(
        json.dumps({"architecture": CLEAR, "num_classes": 3, "pretrained_cfg": {"input_size": [3, 8, 8]}})
    )
    monkeypatch.chdir(project.folder)
    return project


@pytest.mark.parametrize(
    "command",
    [
        ("select", "model.safetensors", "data", *OPTIONS, "-n", "6"),
        ("project", "model.safetensors", "data", *OPTIONS, "-n", "30", "-o", "out.safetensors", "--verbose"),
        ("eval", "model.safetensors", "data", *OPTIONS, "--split", "train", "--format", "table"),
        ("eval", "model.safetensors", "data", *OPTIONS, "--split", "train", "--format", "json"),
        ("inspect", "model.safetensors", *OPTIONS, "--format", "table"),
        ("inspect", "model.safetensors"),
        ("verify", "model.safetensors"),
        ("suspects", "model.safetensors", "data", *OPTIONS),
        ("project", "model.safetensors", "data", *OPTIONS, "--layers", CLEAR),
        ("eval", CLEAR, "data", *OPTIONS),
        (CLEAR,),
    ],
    ids=lambda command: " ".join(command[:2]).encode("unicode_escape").decode(),
)
@pytest.mark.usefixtures("project")
def test_what_is_written_obeys_no_name(command: tuple[str, ...]) -> None:
    outcome = run_here(*command)
    for stream in (outcome.stdout.decode(), outcome.stderr):
        assert "\x1b" not in stream
        assert "\x07" not in stream
        assert "\r" not in stream
        assert "\x9b" not in stream
    assert "Traceback" not in outcome.stderr


def test_names_are_still_told(project: Project) -> None:
    said = run_here("project", project.checkpoint, project.data, *OPTIONS, "-n", "30", "-o", "out.safetensors").stderr
    assert r"a\x1b[2J\x1b]0;owned\x07" in said
    assert r"\udcff" in said
