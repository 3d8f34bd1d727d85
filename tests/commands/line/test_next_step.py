"""What usually comes next: the line runs as it stands, and only people get it."""

from __future__ import annotations

import io
import os
import pty
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.command_line import run
from support.small_project import CLASSES, Project, make_project, network

from sapcli.commands.line.console import Terminal

OWN = ("--arch", "network.py:tiny")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project; not to be changed."""
    return make_project(tmp_path_factory.mktemp("original") / "project")


@pytest.fixture(autouse=True)
def folder(original: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy in a folder with an odd name, as the working folder, and nobody who says that no person watches."""
    place = tmp_path / "a project's"
    shutil.copytree(original.folder, place)
    (place / "data").rename(place / "my data")
    monkeypatch.chdir(place)
    for name in ("CI", "AI_AGENT", "AGENT", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


def everything(controlling: int) -> str:
    """What was written to a terminal so far."""
    os.set_blocking(controlling, False)
    text = b""
    while True:
        try:
            text += os.read(controlling, 1 << 16)
        except BlockingIOError:
            return text.decode()


def said_on_terminal(*arguments: str) -> str:
    """What a command says on stderr where that is a terminal."""
    controlling, terminal = pty.openpty()
    streams = sys.stdout, sys.stderr
    sys.stdout = io.TextIOWrapper(io.BytesIO(), write_through=True)
    sys.stderr = open(terminal, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    try:
        status = run(list(arguments))
        sys.stderr.flush()
        text = everything(controlling)
    finally:
        sys.stderr.close()
        sys.stdout, sys.stderr = streams
        os.close(controlling)
    assert status == 0, text
    return text


def next_of(text: str) -> list[str]:
    """The command line that is said to come next."""
    (line,) = (line for line in text.replace("\r", "").split("\n") if "next: sap " in line)
    plain = line.replace("\x1b[2m", "").replace("\x1b[0m", "")
    return shlex.split(plain.partition("next: sap ")[2])


def test_the_commands_lead_to_each_other() -> None:
    begun = ("select", "model.safetensors", "my data", *OWN, "-n", "30", "-o", "the trusted.jsonl", "--workers", "0")
    following = next_of(said_on_terminal(*begun))
    assert following == [
        "project", "model.safetensors", "my data", "--trusted", "the trusted.jsonl", *OWN,
    ]  # fmt: skip
    judged = next_of(said_on_terminal(*following, "--alpha", "3", "--workers", "0"))
    assert judged == ["eval", "model.sap.safetensors", "my data", "--baseline", "model.safetensors", *OWN]
    suspicious = next_of(said_on_terminal(*judged, "--workers", "0"))
    assert suspicious == ["suspects", "model.sap.safetensors", "my data", "--html", "suspects.html", *OWN]
    assert next_of(said_on_terminal(*suspicious, "--workers", "0"))[-4:] == ["--apply", "csv", *OWN]
    inspected = next_of(said_on_terminal("inspect", "model.safetensors", *OWN, "--input-size", "8"))
    assert inspected == ["project", "model.safetensors", "DATA", *OWN, "--input-size", "8"]


@pytest.mark.parametrize(
    ("variable", "options"), [("CI", ()), ("AI_AGENT", ()), ("", ("--quiet",))], ids=["CI", "agent", "quiet"]
)
def test_nobody_else_gets_the_line(variable: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    said = said_on_terminal("inspect", "model.safetensors", *OWN, *options)
    assert "next:" not in said
    assert "\x1b" not in said


@pytest.mark.parametrize(("value", "drawn"), [("", True), ("false", True), ("1", False), ("true", False)])
def test_bars_are_for_people(value: str, drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", value)
    controlling, terminal = pty.openpty()
    with open(terminal, "w", encoding="utf-8") as stderr:  # noqa: PTH123
        monkeypatch.setattr(sys, "stderr", stderr)
        with Terminal().stage("scoring", 3) as advance:
            advance(3)
        stderr.flush()
        said = everything(controlling)
    os.close(controlling)
    assert ("\x1b" in said) == drawn
    assert "scoring: 3 images" in said


def test_where_no_projection_helps_training_comes_next() -> None:
    module = network()
    module.load_state_dict(load_file("model.safetensors"))
    module.eval()
    images = sorted(Path("my data/val").rglob("*.png"))
    for number, image in enumerate(images):
        pixels = torch.from_numpy(np.asarray(Image.open(image), dtype=np.float32).transpose(2, 0, 1) / 255)
        answer = int(module((pixels[None] - 0.5) / 0.25).argmax())
        # With the network's own answers as labels, nothing can be better than the network.
        image.rename(Path("my data/val", CLASSES[answer], f"answer{number}.png"))
    said = said_on_terminal("project", "model.safetensors", "my data", *OWN, "-n", "30", "--workers", "0")
    assert "no projection helps (the model agrees with " in said.replace("\r\n", " ")
    assert "100.0% of the validation labels" in said.replace("\r\n", " ")
    assert next_of(said) == ["polish", "model.safetensors", "my data", *OWN]
    again = said_on_terminal("project", "model.safetensors", "my data", *OWN, "-n", "30", "--workers", "0", "--force")
    assert "no projection helps (the model agrees with " in again.replace("\r\n", " ")
    assert again.count("of its training labels") == said.count("of its training labels") == 1
