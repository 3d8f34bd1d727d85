"""SIGKILL at random moments: the input stays, no output is partial, and the next run makes what it would have made."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.processes import project_arguments, start
from support.small_project import Project

KILLS = 100


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_leaves_a_correct_state(
    project: Project, original: Project, expected: bytes, seconds: float, number: int
) -> None:
    output = project.folder / "out.safetensors"
    run = start(project.folder, project_arguments("out.safetensors", "--workers", str(number % 3)))
    time.sleep(random.Random(number).uniform(0, 1.1 * seconds))
    run.process.kill()
    assert run.wait() in (0, -signal.SIGKILL), run.said()

    assert project.checkpoint.read_bytes() == original.checkpoint.read_bytes()
    assert not output.exists() or output.read_bytes() == expected
    left = {path.name for path in project.folder.iterdir()} - {path.name for path in original.folder.iterdir()}
    assert left <= {"out.safetensors", "cache", "__pycache__"} | temporary_files(project.folder)

    again = start(project.folder, project_arguments("out.safetensors", "--force"))
    assert again.wait() == 0, again.said()
    assert output.read_bytes() == expected


def temporary_files(folder: Path) -> set[str]:
    """What a killed run may leave, since nobody is there to remove it."""
    return {path.name for path in folder.glob(".sap-*.tmp")}


def test_what_a_killed_run_left_is_removed_by_a_later_one(project: Project) -> None:
    old, new = project.folder / ".sap-0123456789abcdef.tmp", project.folder / ".sap-fedcba9876543210.tmp"
    old.write_bytes(b"half a checkpoint")
    new.write_bytes(b"another process is writing this")
    os.utime(old, (time.time() - 4000,) * 2)
    assert start(project.folder, project_arguments()).wait() == 0
    assert not old.exists()
    assert new.exists()
