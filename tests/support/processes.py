"""Runs of the command line as processes of their own, started in a fraction of a second.

Importing PyTorch takes seconds, and a run on small data a fraction of one. So a server imports it once, and each run is
a fork of that server; from there on it is what `sap` is.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.no_code import begin
from support.small_project import Outcome, Project
from support.untouched import Contents, check_untouched, contents_of

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["sapcli.commands.entry", "sapcli.commands.project", "sapcli.commands.inspect", "timm.data"]
)


SAP = (sys.executable, "-m", "sapcli")
"""The command line that does without the server."""
OPTIONS = ("--arch", "network.py:tiny", "-n", "30", "--cache-dir", "cache")


@functools.cache
def _streams() -> tempfile.TemporaryDirectory[str]:
    """Where what the runs say is kept; made by the tests alone, not by each run that imports this module as well."""
    return tempfile.TemporaryDirectory(prefix="sap-test-")


@dataclass(frozen=True)
class Run:
    """A running or ended `sap`, and the files that it reads from and writes to."""

    process: multiprocessing.context.ForkServerProcess
    stdin: Path
    stdout: Path
    stderr: Path
    inputs: Contents = field(default_factory=dict, repr=False)

    @property
    def pid(self) -> int:
        """Its process and process group."""
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit status, negative for the signal that ended it, once it and its workers are gone; its inputs stay."""
        self.process.join(seconds)
        status = self.process.exitcode
        assert status is not None, f"still running after {seconds} s: {self.said()}"
        deadline = time.monotonic() + 10
        while _lives(self.pid):
            assert time.monotonic() < deadline, "its workers outlive it"
            time.sleep(0.005)
        check_untouched(self.inputs)
        return status

    def said(self) -> str:
        """What it wrote to stderr."""
        return self.stderr.read_text(errors="replace")


def start(
    folder: Path,
    arguments: Sequence[str | Path],
    prepare: Callable[[], object] | None = None,
    stdin: bytes = b"",
    *,
    inputs_stay: bool = True,
) -> Run:
    """Start `sap` in a folder, as the leader of a process group of its own.

    Args:
        folder: The working folder.
        arguments: The command line.
        prepare: Called by the process before it begins, to put something in its way; has to be picklable.
        stdin: What it reads.
        inputs_stay: Whether `Run.wait` makes sure that the inputs are as they were; not where the test changes them.
    """
    place = Path(tempfile.mkdtemp(dir=_streams().name))
    streams = place / "stdin", place / "stdout", place / "stderr"
    for stream in streams:
        stream.write_bytes(stdin if stream is streams[0] else b"")
    texts = [str(argument) for argument in arguments]
    inputs = contents_of(folder, arguments) if inputs_stay else {}
    process = _SERVER.Process(target=_sap, args=(folder, texts, streams, prepare))
    process.start()
    run = Run(process, *streams, inputs)
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        while process.is_alive() and os.getpgid(run.pid) != run.pid:
            time.sleep(0.001)
    return run


def sap(*arguments: str | Path, stdin: bytes = b"", folder: Path | None = None) -> Outcome:
    """Run `sap` with these arguments in a working folder."""
    run = start(folder or Path.cwd(), arguments, stdin=stdin)
    status = run.wait(600)
    return Outcome(status, run.stdout.read_bytes(), run.said())


def project_arguments(output: str = "out.safetensors", *more: str) -> list[str]:
    """The arguments that repair the small project."""
    return ["project", "model.safetensors", "data", *OPTIONS, "-o", output, *more]


def repaired(project: Project) -> bytes:
    """The bytes of an undisturbed repair."""
    run = start(project.folder, project_arguments())
    assert run.wait() == 0, run.said()
    return (project.folder / "out.safetensors").read_bytes()


def _sap(folder: Path, arguments: list[str], streams: Sequence[Path], prepare: Callable[[], object] | None) -> None:
    os.setpgid(0, 0)
    os.chdir(folder)
    for number, (file, flags) in enumerate(zip(streams, (os.O_RDONLY, *[os.O_WRONLY | os.O_APPEND] * 2), strict=True)):
        os.dup2(os.open(file, flags), number)
    sys.stdin = os.fdopen(0, closefd=False)  # that of the server's children is closed
    # Who starts the tests as a shell's background job has them deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["sap", *arguments]
    # A process of the server takes over its way of starting others, which is not that of `sap`.
    multiprocessing.set_start_method(None, force=True)
    if prepare is not None:
        prepare()
    from sapcli.__main__ import main

    begin(arguments)
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
