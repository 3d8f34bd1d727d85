"""`--format json` on every command: what comes fits the schemas of `docs/schemas/`, and says what the command did."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import typer
from safetensors.torch import load_file, save_file
from support.schemas import SCHEMAS, validated
from support.small_project import Outcome, Project, run_here

from sapcli.commands.app import app
from sapcli.reports.schemas import NAMES

OWN = ("--arch", "network.py:tiny")
FEW = ("-n", "30", "--cache-dir", "cache")
REPAIR = ("project", "model.safetensors", "data", *OWN, *FEW)


def json_of(name: str, ended: Outcome, status: int = 0) -> dict[str, object]:
    """The document on stdout, which fits the schema."""
    assert ended.status == status, ended.stderr
    document = validated(name, ended.stdout)
    assert isinstance(document, dict)
    return document


def test_every_command_has_a_schema_and_a_format() -> None:
    group = typer.main.get_command(app)
    commands = {name: [command] for name, command in group.commands.items() if not hasattr(command, "commands")}  # type: ignore[attr-defined]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        commands |= {name: list(command.commands.values())} if hasattr(command, "commands") else {}
    assert commands.keys() | {"progress"} == set(NAMES)
    for name, several in commands.items():
        for command in several:
            assert "--format" in [option for parameter in command.params for option in parameter.opts], name
    assert sorted(path.name for path in SCHEMAS.iterdir()) == sorted(f"{name}.schema.json" for name in NAMES)


def test_project_says_what_it_did(project: Project) -> None:
    document = json_of("project", run_here(*REPAIR, "--format", "json", "-o", "fixed.safetensors"))
    evaluation = json_of("eval", run_here("eval", "fixed.safetensors", "data", *OWN, "--baseline", "model.safetensors"))
    assert document["output"] == "fixed.safetensors"
    assert document["after"] == {key: evaluation[key] for key in ("top1", "top5", "loss", "ece", "images")}
    assert document["before"] == evaluation["baseline"]
    assert document["gain"] == {"points": evaluation["gain"], "interval": evaluation["gain_interval"]}
    assert document["projected"] == ["0.weight", "4.weight"]
    assert document["trusted"] == 30
    before, after = load_file("model.safetensors"), load_file("fixed.safetensors")
    assert document["changed"] == any(not before[name].equal(after[name]) for name in before)
    attempts = document["attempts"]
    assert isinstance(attempts, list)
    assert document["alpha"] in [attempt["alpha"] for attempt in attempts]
    digest = hashlib.sha256()
    for name, tensor in sorted(before.items()):
        dtype = {"float32": "F32", "int64": "I64"}[str(tensor.dtype).removeprefix("torch.")]
        digest.update(json.dumps([name, dtype, list(tensor.shape)]).encode() + tensor.numpy().tobytes())
    assert document["input_digest"] == digest.hexdigest()


def test_project_tells_of_a_gate_that_is_not_met(project: Project) -> None:
    ended = run_here(*REPAIR, "--format", "json", "-o", "fixed.safetensors", "--require-gain", "99")
    document = json_of("project", ended, status=3)
    assert document["output"] is None
    assert document["gate"] == {"required_gain": 99.0, "met": False}
    assert not Path("fixed.safetensors").exists()


def test_project_writes_a_line_for_each_checkpoint(project: Project) -> None:
    save_file(load_file("model.safetensors"), "other.safetensors")
    (project.folder / "out").mkdir()
    options = (*OWN, *FEW, "--alpha", "1000", "-o", "out", "--format", "json")
    ended = run_here("project", "model.safetensors", "other.safetensors", "data", *options)
    assert ended.status == 0, ended.stderr
    rows = [validated("project", line) for line in ended.stdout.splitlines()]
    assert [row["checkpoint"] for row in rows] == ["model.safetensors", "other.safetensors"]
    assert [Path(row["output"]).is_file() for row in rows] == [True, True]
    assert [row["evidence"] for row in rows] == ["fixed", "fixed"]


def test_polish_says_what_it_did(project: Project) -> None:
    command = ("polish", "model.safetensors", "data", *OWN, "--cache-dir", "cache", "--epochs", "1", "--format", "json")
    document = json_of("polish", run_here(*command, "-o", "polished.safetensors"))
    assert (document["output"], document["validation_images"]) == ("polished.safetensors", 60)
    evaluation = json_of("eval", run_here("eval", "polished.safetensors", "data", *OWN))
    assert document["after"] == {key: evaluation[key] for key in ("top1", "top5", "loss", "ece", "images")}
    ended = run_here(*command, "-o", "none.safetensors", "--require-gain", "99")
    assert json_of("polish", ended, status=3)["gate"] == {"required_gain": 99.0, "met": False}
    assert not Path("none.safetensors").exists()


@pytest.mark.parametrize("command", [REPAIR, ("activations", *REPAIR[1:])], ids=lambda command: command[0])
def test_a_file_and_json_are_not_both_for_stdout(project: Project, command: tuple[str, ...]) -> None:
    ended = run_here(*command, "--format", "json", "-o", "-")
    assert (ended.status, ended.stdout) == (2, b"")
    assert "-o -" in ended.stderr


def test_plans_and_inspections(project: Project) -> None:
    plan = json_of("inspect", run_here(*REPAIR, "--dry-run", "--format", "json"))
    weights = plan["weights"]
    assert isinstance(weights, list)
    assert [(weight["name"], weight["row_length"]) for weight in weights] == [("0.weight", 27), ("4.weight", 512)]
    json_of("inspect", run_here("inspect", "model.safetensors", *OWN, "--format", "json"))
    unknown = json_of("inspect", run_here("inspect", "model.safetensors", "--format", "json"))
    assert unknown["architecture"] is None
    assert unknown["problem"]


def test_lists_of_samples_are_lines_or_an_array(project: Project) -> None:
    # With so small an alpha, much of what was learned is gone.
    assert run_here(*REPAIR, "--alpha", "3", "-o", "fixed.safetensors").status == 0
    for name, more in (("select", ("-n", "12")), ("suspects", ())):
        command = (name, "fixed.safetensors", "data", *OWN, *more)
        lines, array = (run_here(*command, "--format", form) for form in ("jsonl", "json"))
        rows = [validated(name, line) for line in lines.stdout.splitlines()]
        assert validated(name, array.stdout) == rows
        assert len(rows) > 2
        assert (project.data / rows[0]["path"]).is_file()


def test_activations_say_what_is_in_the_file(project: Project) -> None:
    command = ("activations", "model.safetensors", "data", *OWN, *FEW, "-o", "bases.safetensors", "--format", "json")
    document = json_of("activations", run_here(*command))
    bases = load_file("bases.safetensors")
    assert document["output"] == "bases.safetensors"
    weights = document["weights"]
    assert isinstance(weights, list)
    for weight in weights:
        assert bases[f"{weight['name']}.vectors"].shape == (
            weight["groups"],
            weight["row_length"],
            weight["directions"],
        )
    assert document["samples"] == 30


def test_verify_says_what_holds(project: Project) -> None:
    assert run_here(*REPAIR, "--alpha", "500", "-o", "fixed.safetensors").status == 0
    document = json_of(
        "verify", run_here("verify", "fixed.safetensors", "--input", "model.safetensors", "--format", "json")
    )
    assert document["holds"]
    wrong = run_here("verify", "fixed.safetensors", "--input", "fixed.safetensors", "--format", "json", "--quiet")
    document = json_of("verify", wrong, status=1)
    findings = document["findings"]
    assert isinstance(findings, list)
    assert not document["holds"]
    assert [bool(finding["hint"]) for finding in findings] == [not finding["holds"] for finding in findings]


def test_reports(project: Project) -> None:
    ended = run_here(*REPAIR, "--alpha", "500", "-o", "fixed.safetensors", "--report", "repair.json")
    assert ended.status == 0, ended.stderr
    rendered = json_of("report", run_here("report", "repair.json", "--format", "json"))
    assert rendered == validated("report", Path("repair.json").read_bytes())


def test_the_cache_and_the_settings(project: Project) -> None:
    assert run_here("select", "model.safetensors", "data", *OWN, "-n", "30", "--cache-dir", "kept").status == 0
    held = json_of("cache", run_here("cache", "info", "--cache-dir", "kept", "--format", "json"))
    files = [path for path in Path("kept").iterdir() if path.suffix != ".sha256"]
    assert (held["entries"], held["bytes"]) == (len(files), sum(path.stat().st_size for path in files))
    cleared = json_of("cache", run_here("cache", "clear", "--cache-dir", "kept", "--format", "json"))
    assert cleared == held | {"cleared": True}
    assert json_of("cache", run_here("cache", "info", "--cache-dir", "kept", "--format", "json"))["entries"] == 0
    Path("sap.toml").write_text('batch-size = 7\n[project]\nlayers = ["0", "4"]\n')
    document = json_of("config", run_here("config", "project", "--format", "json"))
    settings = document["settings"]
    assert isinstance(settings, list)
    found = {setting["name"]: (setting["value"], setting["source"]) for setting in settings}
    assert found["batch-size"] == (7, "sap.toml")
    assert found["layers"] == (["0", "4"], "sap.toml")
    assert found["strategy"] == ("loss", "default")


def test_progress(project: Project) -> None:
    reading, writing = os.pipe()
    ended = run_here(*REPAIR, "--alpha", "500", "-o", "fixed.safetensors", "--progress-json", str(writing))
    os.close(writing)
    assert ended.status == 0, ended.stderr
    with os.fdopen(reading) as events:
        kinds = {validated("progress", line)["event"] for line in events}
    assert {"stage", "done", "note", "summary"} <= kinds
