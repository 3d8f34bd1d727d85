"""Whole commands on splits of other names and on the label file of one split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.small_project import CLASSES, Project, make_project, run_here


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


def arguments(project: Project) -> tuple[str | Path, ...]:
    return (
        "--arch",
        f"{project.folder / 'network.py'}:tiny",
        "--workers",
        "0",
        "--cache-dir",
        project.folder / "cache",
    )


def top1(project: Project, data: Path, *options: str | Path) -> float:
    outcome = run_here("eval", project.checkpoint, data, *arguments(project), *options, "--format", "json")
    assert outcome.status == 0, outcome.stderr
    return float(json.loads(outcome.stdout)["top1"])


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("Training", "Evaluation"), ("TRAIN", "DEV")])
def test_select_and_eval_on_splits_of_other_names(project: Project, tmp_path: Path, names: tuple[str, str]) -> None:
    data = tmp_path / "data"
    for name, source in zip(names, ("train", "val"), strict=True):
        shutil.copytree(project.data / source, data / name)
    outcome = run_here("select", project.checkpoint, data, *arguments(project), "-n", "6")
    assert outcome.status == 0, outcome.stderr
    for line in map(json.loads, outcome.stdout.splitlines()):
        split, folder, _ = line["path"].split("/")
        assert (split, folder) == (names[0], line["label"])
    assert top1(project, data) == top1(project, project.data)


def test_the_labels_of_one_split_change_no_other(project: Project, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(project.data, data)
    shutil.copytree(project.data / "val", data / "test")
    rows = [
        f"{name}/{number:02}.png,{CLASSES[(label + 1) % 3]}"
        for label, name in enumerate(CLASSES)
        for number in range(20)
    ]
    (data / "train" / "labels.csv").write_text("\n".join(["path,label", *rows]))
    before = top1(project, data)
    assert before > 70
    assert top1(project, data, "--labels", data / "train" / "labels.csv") == before
    assert top1(project, data, "--labels", data / "train" / "labels.csv", "--split", "val") == before
    assert top1(project, data, "--labels", data / "train" / "labels.csv", "--split", "train") < 60
    # The same lines beside the splits are about all three, and so about none.
    shutil.move(data / "train" / "labels.csv", data / "labels.csv")
    outcome = run_here("eval", project.checkpoint, data, *arguments(project), "--labels", data / "labels.csv")
    assert outcome.status == 1
    assert "in each of 'test', 'train', 'val'" in outcome.stderr
    assert top1(project, data, "--labels", data / "labels.csv", "--split", "test") < 30


def test_project_keeps_validation_labels_where_the_training_split_is_named(project: Project, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(project.data, data)
    rows = [
        f"{name}/{number:02}.png,{CLASSES[(label + 1) % 3]}"
        for label, name in enumerate(CLASSES)
        for number in range(20)
    ]
    (data / "labels.csv").write_text("\n".join(["path,label", *rows]))
    found = []
    for options in ((), ("--labels", data / "labels.csv", "--split", "train")):
        outcome = run_here(
            "project", project.checkpoint, data, *arguments(project), *options, "-n", "9", "--alpha", "1e7", "--force",
            "-o", tmp_path / "out.safetensors",
        )  # fmt: skip
        assert outcome.status == 0, outcome.stderr
        found.append([line for line in outcome.stderr.splitlines() if line.split()[:1] == ["before"]])
    assert len(found[0]) == 1
    assert found[0] == found[1]
