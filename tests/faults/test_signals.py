"""SIGINT, SIGTERM and SIGHUP: the end within two seconds, with their own status, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support.processes import OPTIONS, Run, project_arguments, start
from support.small_project import Project
from support.untouched import inputs_untouched

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SECONDS = 2.0

# Networks that do not answer to an exception in time, each in its own way.
STUBBORN = """
import time
from pathlib import Path

import torch
from network import Network, tiny


class Busy(Network):
    def forward(self, images):
        Path("busy").touch()
        self.keep_busy()


class Computing(Busy):
    def keep_busy(self):
        torch.linalg.svd(torch.randn(6000, 6000))


class Deaf(Busy):
    def keep_busy(self):
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass


class Sleeping(Busy):
    def keep_busy(self):
        time.sleep(60)


def computing():
    return Computing(*tiny())


def deaf():
    return Deaf(*tiny())


def sleeping():
    return Sleeping(*tiny())
"""

# Decoding that takes long, in worker processes of the command line itself.
SLOW_DECODING = """
import signal, sys, time
import sapcli.datasets.decoding
from pathlib import Path

decode = sapcli.datasets.decoding.Decoder.__call__


def slowly(self, paths):
    Path(f"decoding-{time.monotonic_ns()}").touch()
    time.sleep(1)
    return decode(self, paths)


sapcli.datasets.decoding.Decoder.__call__ = slowly
sys.argv[0] = "sap"
signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts the tests as a background job has them deaf to it
from sapcli.__main__ import main
main()
"""


def wait_for(folder: Path, pattern: str, count: int = 1) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_end(project: Project, run: Run, number: signal.Signals, sent: float) -> None:
    """The status, the time that it took, and the folder."""
    assert run.wait() == STATUS[number], run.said()
    assert time.monotonic() - sent < SECONDS
    assert "Traceback" not in run.said()
    assert not list(project.folder.rglob(".sap-*.tmp"))
    assert not (project.folder / "out.safetensors").exists()


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("seed", range(8))
def test_at_random_moments(project: Project, seconds: float, number: signal.Signals, seed: int) -> None:
    run = start(project.folder, project_arguments("out.safetensors", "--workers", str(seed % 3)))
    time.sleep(random.Random(seed).uniform(0, 0.9 * seconds))
    sent = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, number) if seed % 2 else os.kill(run.pid, number)
    if (status := run.wait()) == 0:
        pytest.skip("it was done already")
    assert status == STATUS[number], run.said()
    assert time.monotonic() - sent < SECONDS
    assert "Traceback" not in run.said()
    assert not list(project.folder.rglob(".sap-*.tmp"))


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("network", ["computing", "deaf", "sleeping"])
def test_inside_a_long_operation(project: Project, number: signal.Signals, network: str) -> None:
    (project.folder / "stubborn.py").write_text(STUBBORN)
    run = start(project.folder, project_arguments("out.safetensors", "--arch", f"stubborn.py:{network}"))
    wait_for(project.folder, "busy")
    sent = time.monotonic()
    os.kill(run.pid, number)
    check_end(project, run, number, sent)


@pytest.mark.parametrize("second", STATUS)
def test_a_second_signal_does_not_disturb_the_first(project: Project, second: signal.Signals) -> None:
    (project.folder / "stubborn.py").write_text(STUBBORN)
    run = start(project.folder, project_arguments("out.safetensors", "--arch", "stubborn.py:sleeping"))
    wait_for(project.folder, "busy")
    sent = time.monotonic()
    os.kill(run.pid, signal.SIGINT)
    for _ in range(20):
        time.sleep(0.002)
        try:
            os.kill(run.pid, second)
        except ProcessLookupError:
            break
    check_end(project, run, signal.SIGINT, sent)


def ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_a_background_job_does_not_end_by_the_interrupt_of_another(project: Project) -> None:
    (project.folder / "stubborn.py").write_text(STUBBORN)
    arguments = project_arguments("out.safetensors", "--arch", "stubborn.py:sleeping")
    run = start(project.folder, arguments, ignore_interrupts)
    wait_for(project.folder, "busy")
    os.kill(run.pid, signal.SIGINT)
    run.process.join(2 * SECONDS)
    assert run.process.is_alive()
    sent = time.monotonic()
    os.kill(run.pid, signal.SIGTERM)
    check_end(project, run, signal.SIGTERM, sent)


@pytest.mark.parametrize("number", STATUS)
def test_while_workers_decode(project: Project, number: signal.Signals) -> None:
    arguments = ["project", "model.safetensors", "data", *OPTIONS, "-o", "out.safetensors", "--workers", "2"]
    with inputs_untouched(project.folder, arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_DECODING, *arguments],
            cwd=project.folder,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        wait_for(project.folder, "decoding-*", 3)  # the first is this process' own, to see how long it takes
        sent = time.monotonic()
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal does
        said, _ = process.communicate(timeout=60)
        assert process.returncode == STATUS[number], said
        assert time.monotonic() - sent < SECONDS
        assert b"Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("delay", [0.3, 0.8, 1.3, 1.8, 2.3])
def test_while_imports_run(project: Project, number: signal.Signals, delay: float) -> None:
    program = textwrap.dedent("""
        import signal
        from sapcli.__main__ import main
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("ready", flush=True)
        main()
    """)
    with inputs_untouched(project.folder, project_arguments()):
        process = subprocess.Popen(
            [sys.executable, "-c", program, *project_arguments()],
            cwd=project.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        sent = time.monotonic()
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == STATUS[number], said
        assert time.monotonic() - sent < SECONDS
        assert b"Traceback" not in said
    assert not (project.folder / "out.safetensors").exists()
