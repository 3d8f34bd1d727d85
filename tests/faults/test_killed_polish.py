"""SIGKILL at random moments of a polish: one that was killed ten times ends with the bytes of an undisturbed one."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.processes import start
from support.small_project import Project

KILLS = 10
ARGUMENTS = ("polish", "model.safetensors", "data", "--arch", "network.py:tiny", "--cache-dir", "cache")
OPTIONS = ("--epochs", "12", "--workers", "0", "-o", "out.safetensors")


@pytest.fixture(scope="module")
def undisturbed(original: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """What an undisturbed run writes, and how many seconds it takes."""
    folder = tmp_path_factory.mktemp("polished") / "project"
    shutil.copytree(original.folder, folder)
    began = time.monotonic()
    run = start(folder, (*ARGUMENTS, *OPTIONS))
    assert run.wait() == 0, run.said()
    return (folder / "out.safetensors").read_bytes(), time.monotonic() - began


@pytest.mark.parametrize("number", range(3))
def test_a_polish_that_was_killed_ten_times(project: Project, undisturbed: tuple[bytes, float], number: int) -> None:
    expected, seconds = undisturbed
    draws = random.Random(number)
    output = project.folder / "out.safetensors"
    went_on = 0
    for _ in range(KILLS):
        run = start(project.folder, (*ARGUMENTS, *OPTIONS, "--force"), inputs_stay=False)
        # Later ones too, when the start is in the cache and an epoch has been kept.
        time.sleep(draws.uniform(0.3, 0.9) * seconds)
        run.process.kill()
        assert run.wait() in (0, -signal.SIGKILL), run.said()
        went_on += "training goes on after epoch" in run.said()
        assert not output.exists() or output.read_bytes() == expected
    last = start(project.folder, (*ARGUMENTS, *OPTIONS, "--force"), inputs_stay=False)
    assert last.wait() == 0, last.said()
    assert output.read_bytes() == expected
    assert went_on, "no run was killed while it trained"


def test_a_damaged_snapshot_costs_an_epoch_and_no_more(project: Project, undisturbed: tuple[bytes, float]) -> None:
    expected, _ = undisturbed
    arguments = (*ARGUMENTS, *OPTIONS, "--force")
    assert start(project.folder, arguments, inputs_stay=False).wait() == 0
    kept = [path for path in Path(project.folder, "cache").glob("training-*") if path.suffix != ".sha256"]
    assert len(kept) == 2
    newest = max(kept, key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-50])
    again = start(project.folder, arguments, inputs_stay=False)
    assert again.wait() == 0, again.said()
    assert "training goes on after epoch 11" in again.said()
    assert (project.folder / "out.safetensors").read_bytes() == expected
