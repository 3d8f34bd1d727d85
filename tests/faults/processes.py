"""Runs of the command line as processes that can be ended at any moment, started in a fraction of a second.

Importing PyTorch takes seconds, and a run of the small project a fraction of one. So a server imports it once, and each
run is a fork of that server; from there on it is what `sap` is.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from small_project import Project

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["sapcli.cli", "sapcli.repairing", "torch._dynamo"])

OPTIONS = ("--arch", "network.py:tiny", "-n", "30", "--cache-dir", "cache")


@dataclass(frozen=True)
class Run:
    """A running or ended `sap`; `stdout` and `stderr` are the files that it writes to."""

    process: multiprocessing.context.ForkServerProcess
    stdout: Path
    stderr: Path

    @property
    def pid(self) -> int:
        """Its process and process group."""
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit status, negative for the signal that ended it, once it and its workers are gone."""
        self.process.join(seconds)
        status = self.process.exitcode
        assert status is not None, f"still running after {seconds} s: {self.said()}"
        deadline = time.monotonic() + 10
        while _lives(self.pid):
            assert time.monotonic() < deadline, "its workers outlive it"
            time.sleep(0.005)
        return status

    def said(self) -> str:
        """What it wrote to stderr."""
        return self.stderr.read_text(errors="replace")


def start(folder: Path, arguments: Sequence[str | Path], prepare: Callable[[], object] | None = None) -> Run:
    """Start `sap` in a folder, as the leader of a process group of its own.

    Args:
        folder: The working folder.
        arguments: The command line.
        prepare: Called by the process before it begins, to put something in its way; has to be picklable.
    """
    stdout, stderr = (folder.parent / f"{folder.name}.{name}" for name in ("stdout", "stderr"))
    for file in (stdout, stderr):
        file.write_bytes(b"")
    texts = [str(argument) for argument in arguments]
    process = _SERVER.Process(target=_sap, args=(folder, texts, stdout, stderr, prepare))
    process.start()
    run = Run(process, stdout, stderr)
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        while process.is_alive() and os.getpgid(run.pid) != run.pid:
            time.sleep(0.001)
    return run


def project_arguments(output: str = "out.safetensors", *more: str) -> list[str]:
    """The arguments that repair the small project."""
    return ["project", "model.safetensors", "data", *OPTIONS, "-o", output, *more]


def repaired(project: Project) -> bytes:
    """The bytes of an undisturbed repair."""
    run = start(project.folder, project_arguments())
    assert run.wait() == 0, run.said()
    return (project.folder / "out.safetensors").read_bytes()


def _sap(folder: Path, arguments: list[str], stdout: Path, stderr: Path, prepare: Callable[[], object] | None) -> None:
    os.setpgid(0, 0)
    os.chdir(folder)
    for number, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    sys.argv = ["sap", *arguments]
    # A process of the server takes over its way of starting others, which is not that of `sap`.
    multiprocessing.set_start_method(None, force=True)
    if prepare is not None:
        prepare()
    from sapcli.__main__ import main

    main()


def _lives(group: int) -> bool:
    """Whether a process of the group is left that is no zombie."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False
