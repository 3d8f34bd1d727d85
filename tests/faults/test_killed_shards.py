"""SIGKILL while a sharded checkpoint replaces another one: what is opened is always the old or the new one, whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.processes import OPTIONS, Run, start
from support.small_project import Project

from sapcli.checkpoints.checkpoint import open_checkpoint

KILLS = 100
SHARDS = 4


@pytest.fixture(scope="module")
def sharded(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project with its checkpoint in shards, each made large enough to take a moment to write."""
    folder = tmp_path_factory.mktemp("sharded") / "project"
    shutil.copytree(original.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    weight_map = {}
    for number in range(SHARDS):
        shard = f"model-{number + 1}-of-{SHARDS}.safetensors"
        inside = names[number::SHARDS]
        save_file({name: tensors[name] for name in inside}, folder / shard)
        weight_map |= dict.fromkeys(inside, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return Project(folder)


def repairing(project: Project, alpha: int) -> Run:
    arguments = ["project", "model.safetensors.index.json", "data", *OPTIONS, "--alpha", str(alpha), "-o", "out"]
    return start(project.folder, [*arguments, "--force"], slow_files)


def slow_files() -> None:
    """Have each step of publishing take a moment, so that kills come between all of them."""
    from sapcli.machine.files import _PendingFile

    publish = _PendingFile.publish

    def slowly(self: _PendingFile) -> None:
        Path("publishing").touch()
        time.sleep(0.01)
        publish(self)
        time.sleep(0.01)

    _PendingFile.publish = slowly  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def digests(sharded: Project) -> dict[int, str]:
    """The digests of both outputs, by alpha."""
    (sharded.folder / "out").mkdir()
    found = {}
    for alpha in (100, 100_000):
        run = repairing(sharded, alpha)
        assert run.wait() == 0, run.said()
        found[alpha] = open_checkpoint(sharded.folder / "out").digest
    assert len(set(found.values())) == 2
    return found


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_leaves_the_old_or_the_new_checkpoint(
    sharded: Project, digests: dict[int, str], number: int
) -> None:
    out, marker = sharded.folder / "out", sharded.folder / "publishing"
    marker.unlink(missing_ok=True)
    before = open_checkpoint(out).digest
    run = repairing(sharded, (100, 100_000)[number % 2])
    while not marker.exists() and run.process.is_alive():
        time.sleep(0.0005)
    time.sleep(random.Random(number).uniform(0, 0.12))
    run.process.kill()
    run.wait()
    after = open_checkpoint(out).digest
    assert after in {before, digests[(100, 100_000)[number % 2]]}
    assert after in digests.values()


def test_nothing_of_killed_runs_stays_for_good(sharded: Project, digests: dict[int, str]) -> None:
    out = sharded.folder / "out"
    for path in out.iterdir():
        os.utime(path, (time.time() - 4000,) * 2)
    run = repairing(sharded, 100)
    assert run.wait() == 0, run.said()
    assert open_checkpoint(out).digest == digests[100]
    assert len(list(out.iterdir())) == SHARDS + 1
