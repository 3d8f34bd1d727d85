"""`sap project` as CI and other programs see it: several checkpoints, progress, summaries, annotations, log files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.command_line import run_process
from support.digits import Trained
from support.processes import SAP, sap

FAST = ("-n", "60", "--alpha", "3000", "--batchnorm", "keep")


def test_several_checkpoints_share_a_trusted_set(noisy: Trained, clean: Trained, tmp_path: Path) -> None:
    models = []
    for name, trained in (("first", noisy), ("second", clean)):
        (tmp_path / name).mkdir()
        shutil.copy(trained.checkpoint.with_name("config.json"), tmp_path / name)
        models.append(Path(shutil.copy(trained.checkpoint, tmp_path / name / f"{name}.safetensors")))
    output = tmp_path / "out"
    output.mkdir()
    trusted = tmp_path / "trusted.jsonl"
    assert sap("select", models[0], noisy.data, "-n", "60", "-o", trusted).status == 0
    ended = sap("project", *models, noisy.data, *FAST, "-o", output)
    assert ended.status == 0, ended.stderr
    written = [output / "first.sap.safetensors", output / "second.sap.safetensors"]
    assert ended.stdout.decode().split() == list(map(str, written))
    alone = tmp_path / "alone.safetensors"
    assert sap("project", models[1], noisy.data, *FAST, "--trusted", trusted, "-o", alone).status == 0
    assert alone.read_bytes() == written[1].read_bytes()


@pytest.mark.parametrize("options", [("-o", "-"), ("-o", "model.out"), ("--bases", "b"), ("--report", "r.md")])
def test_what_serves_one_checkpoint_only_is_refused_for_several(
    noisy: Trained, tmp_path: Path, options: tuple[str, str]
) -> None:
    ended = sap("project", noisy.checkpoint, noisy.checkpoint, noisy.data, *options, folder=tmp_path)
    assert ended.status == 2
    assert len(ended.stderr.splitlines()) == 2


def test_programs_are_told_every_stage(noisy: Trained, tmp_path: Path) -> None:
    progress = tmp_path / "progress.ndjson"
    with progress.open("wb") as file:
        descriptor = file.fileno()
        options = ("--quiet", "--progress-json", str(descriptor), "--cache-dir", tmp_path / "cache")
        process = run_process(
            [*SAP, "project", noisy.checkpoint, noisy.data, *FAST, "-o", tmp_path / "m", *options],
            pass_fds=[descriptor],
            capture_output=True,
            check=True,
        )
    assert process.stderr == b""
    events = [json.loads(line) for line in progress.read_text().splitlines()]
    opened = [event["name"] for event in events if event["event"] == "stage"]
    closed = [event["name"] for event in events if event["event"] == "done"]
    assert sorted(opened) == sorted(closed)
    assert "scoring training images" in opened
    done = {event["name"]: event["done"] for event in events if event["event"] == "done"}
    assert done["scoring training images"] == 300
    assert [event["title"] for event in events if event["event"] == "summary"] == ["repair"]


def test_a_descriptor_that_is_not_open_is_a_usage_error(noisy: Trained) -> None:
    ended = sap("project", noisy.checkpoint, noisy.data, "--progress-json", "77")
    assert ended.status == 2
    assert "77" in ended.stderr


def test_a_gate_that_is_not_met_still_leaves_the_summary(noisy: Trained, tmp_path: Path) -> None:
    summary, output = tmp_path / "summary.md", tmp_path / "m.safetensors"
    summary.write_text("before\n")
    gate = ("--require-gain", "99", "--summary", summary)
    ended = sap("project", noisy.checkpoint, noisy.data, *FAST, *gate, "-o", output)
    assert ended.status == 3
    assert not output.exists()
    text = summary.read_text()
    assert text.startswith("before\n### sap project:")
    assert "| alpha | 3000, as given |" in text
    ended = sap("eval", noisy.checkpoint, noisy.data, "--baseline", noisy.checkpoint, "--summary", summary)
    assert ended.status == 0
    assert "**+0.00 points**" in summary.read_text()


def test_a_log_file_holds_one_line_a_stage_and_no_control_characters(noisy: Trained, tmp_path: Path) -> None:
    options = ("-n", "60", "-o", tmp_path / "m", "--cache-dir", tmp_path / "cache")
    ended = sap("project", noisy.checkpoint, noisy.data, *options)
    assert ended.status == 0
    assert all(character.isprintable() for character in ended.stderr.replace("\n", ""))
    lines = [line for line in ended.stderr.splitlines() if line.endswith(" s")]
    stages = [line.split(":")[0] for line in lines]
    assert stages == ["scoring training images", "capturing activations", "decomposing", "choosing alpha"]


def test_warnings_and_errors_are_annotations_in_github_actions(noisy: Trained, tmp_path: Path) -> None:
    environment = os.environ | {"GITHUB_ACTIONS": "true"}
    process = run_process(
        [*SAP, "eval", tmp_path / "100%.safetensors", noisy.data], capture_output=True, env=environment
    )
    first, second = process.stderr.decode().splitlines()
    assert first.startswith("::error title=sap::")
    assert "100%25.safetensors" in first
    assert second.startswith("hint:")
