"""A run that several processes share: the result of one, and an end for all when one of them dies."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.small_project import Project, make_project

ROOT = Path(__file__).parents[2]
OPTIONS = ("--arch", "network.py:tiny", "--batch-size", "8", "--cache-dir")
# The tiny network, as slow as a large one, which tells how many images it has seen.
SLOW = """
import os, time
from network import Network, nn


class Slow(nn.Identity):
    def forward(self, logits):
        time.sleep(0.1 * len(logits))
        with open(os.environ["SEEN"], "a") as seen:
            seen.write(f"{len(logits)}\\n")
        return logits


def slow(num_classes=3):
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, num_classes)]
    return Network(*layers, Slow())
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("several") / "project")
    (made.folder / "slow.py").write_text(SLOW)
    return made


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "SEEN": str(folder / "seen"),
    }


def sap(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    command = [sys.executable, "-P", "-m", "sapcli", *arguments]
    return subprocess.run(
        command, cwd=project.folder, env=environment(project.folder), capture_output=True, text=True, timeout=300
    )


def test_two_processes_give_what_one_gives(project: Project) -> None:
    arguments = ("project", "model.safetensors", "data", "-n", "30", "--force", *OPTIONS)
    alone = sap(project, *arguments, "cache-1", "-o", "one.safetensors")
    assert alone.returncode == 0, alone.stderr
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sapcli"]
    shared = subprocess.run(
        [*launched, *arguments, "cache-2", "-o", "two.safetensors", "--report", "two.json"],
        cwd=project.folder,
        env=environment(project.folder),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert shared.returncode == 0, shared.stderr
    # One process speaks, and writes.
    assert shared.stdout == "two.safetensors\n"
    assert shared.stderr.count("scoring training images: 120 images") == 1
    one, two = (load_file(project.folder / name) for name in ("one.safetensors", "two.safetensors"))
    original = load_file(project.checkpoint)
    assert not torch.equal(one["0.weight"], original["0.weight"])
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6)
    trusted = [
        next((project.folder / name).glob("trusted-" + "?" * 32)).read_bytes() for name in ("cache-1", "cache-2")
    ]
    assert trusted[0] == trusted[1]
    assert json.loads((project.folder / "two.json").read_text())["search"]["alpha"] is not None


def test_the_other_commands_with_two_processes(project: Project) -> None:
    # A label that cannot be agreed on, so that there are suspects.
    odd = project.folder / "odd"
    if not odd.exists():
        (odd / "blue").mkdir(parents=True)
        for name in ("green", "red"):
            (odd / name).symlink_to(project.data / "val" / name)
        for image in (project.data / "val" / "red").iterdir():
            (odd / "blue" / f"was-red-{image.name}").symlink_to(image)
    # With so many wrong labels, classes seem to be exchanged: a class map says that they are not.
    (project.folder / "classes.json").write_text(json.dumps({"blue": 0, "green": 1, "red": 2}))
    stated = ("--class-map", "classes.json")
    found = {}
    for devices in ("1", "2"):
        cache = f"cache-odd-{devices}"
        ended = sap(
            project, "--devices", devices, "suspects", "model.safetensors", "odd", *stated, *OPTIONS, cache, "-q"
        )
        assert ended.returncode == 0, ended.stderr
        found[devices] = ended.stdout
    assert found["1"].count("was-red") == 20
    assert found["2"] == found["1"]
    # What is wrong is said once, and the status is the command's.
    ended = sap(project, "--devices", "2", "eval", "model.safetensors", "nowhere", *OPTIONS, "cache-1")
    assert ended.returncode == 1
    assert re.fullmatch(r"error: nowhere: .*\nhint:  .*\n", ended.stderr)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_all(project: Project, rank: int) -> None:
    cache = project.folder / f"killed-{rank}"
    command = [sys.executable, "-P", "-m", "sapcli", "--devices", "2", "select", "model.safetensors", "data"]
    options = [
        "-n",
        "30",
        "--arch",
        "slow.py:slow",
        "--batch-size",
        "4",
        "--cache-dir",
        str(cache),
        "-o",
        "never.jsonl",
    ]
    run = subprocess.Popen(
        [*command, *options, "-o", "never.jsonl"],
        cwd=project.folder,
        env=environment(project.folder),
        stderr=subprocess.PIPE,
        text=True,
    )
    ranks = {}
    deadline = time.monotonic() + 120
    while not (len(ranks) == 2 and list(cache.glob("probe-*.sha256"))):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
        for process in map(int, Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()):
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
                ranks |= {number: process for number in (0, 1) if f"RANK={number}".encode() in variables}
    os.kill(ranks[rank], signal.SIGKILL)
    began = time.monotonic()
    _, said = run.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert run.returncode == 1
    error, hint = said.splitlines()[-2:]
    assert error.startswith(f"error: rank {rank} of 2 has died")
    assert hint.startswith("hint:  ")
    assert not any(Path(f"/proc/{process}").exists() for process in ranks.values())
    assert not list(project.folder.rglob(".sap-*"))
    assert not (project.folder / "never.jsonl").exists()


def test_a_run_that_is_killed_goes_on_where_it_was(project: Project) -> None:
    seen = project.folder / "seen"
    seen.unlink(missing_ok=True)
    arguments = ["suspects", "model.safetensors", "data", "--arch", "slow.py:slow", "--batch-size", "4", "-q"]
    expected = sap(project, *arguments, "--cache-dir", "whole")
    assert expected.returncode == 0, expected.stderr
    once = sum(map(int, seen.read_text().split()))
    kills = 3
    seen.unlink()
    for _ in range(kills):
        run = subprocess.Popen(
            [sys.executable, "-P", "-m", "sapcli", *arguments, "--cache-dir", "parts"],
            cwd=project.folder,
            env=environment(project.folder),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        parts = len(list((project.folder / "parts").glob("parts-*.sha256")))
        # In the middle of the part after the next one.
        while len(list((project.folder / "parts").glob("parts-*.sha256"))) == parts:
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.7)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    ended = sap(project, *arguments, "--cache-dir", "parts")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == expected.stdout
    whole, parts_of = (next((project.folder / name).glob("scores-" + "?" * 32)) for name in ("whole", "parts"))
    assert whole.name == parts_of.name
    assert whole.read_bytes() == parts_of.read_bytes()
    assert not list((project.folder / "parts").glob("parts-*"))
    # Seen twice was what came in the 0.7 seconds, at ten images a second, and the batches that were on their way.
    again = sum(map(int, seen.read_text().split())) - once
    assert 0 <= again <= kills * (7 + 3 * 4)
