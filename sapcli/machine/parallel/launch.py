"""`sap --devices N`: the same command line in N processes of this machine, as `torchrun` starts them.

`torchrun` ends with status 1 whatever the command ended with, and with a page of its own about every error. Here the
status and the two lines are the command's. For several machines it is `torchrun` that finds them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from sapcli.errors import SapError
from sapcli.machine import signals
from sapcli.machine.parallel.membership import LAUNCHED

_SECONDS_BETWEEN = 0.05
# So long the others may take to end by themselves once one has failed or was told to end, and then once more.
_SECONDS_TO_END = 10.0
_SECONDS_AFTER_DEATH = 3.0
_SECONDS_ONCE_TOLD = 1.0


def launch(devices: int) -> int:
    """Run this process' command line in so many processes, and return the status that it ends with.

    Raises:
        SapError: One of them was killed.
    """
    address = "127.0.0.1"
    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = os.environ | {
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(cores // devices, 1))),
        LAUNCHED: "1",
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(devices):
            first = rank == 0
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "sapcli", *sys.argv[1:]],
                    env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=None if first else subprocess.DEVNULL,
                    stdout=None if first else subprocess.DEVNULL,
                    # Whoever asked for progress on a descriptor opened it for the command.
                    close_fds=not first,
                )
            )
        return _wait(processes)
    finally:
        _end(processes)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended, or one has failed.

    Raises:
        SapError: One was killed.
    """
    while True:
        statuses = [process.poll() for process in processes]
        killed = [(rank, status) for rank, status in enumerate(statuses) if status is not None and status < 0]
        if killed:
            rank, status = killed[0]
            _wait_for_others(processes, _SECONDS_AFTER_DEATH)
            with contextlib.suppress(ValueError):
                how = f"process {processes[rank].pid}, {signal.Signals(-status).name}"
            raise SapError(*words_of_death(rank, len(processes), how))
        failed = [status for status in statuses if status]
        if failed:
            # Where the first process has told what is wrong, the others need not, and its status is the command's.
            _wait_for_others(processes, _SECONDS_ONCE_TOLD if statuses[0] else _SECONDS_TO_END)
            return processes[0].poll() or failed[0]
        if None not in statuses:
            return 0
        time.sleep(_SECONDS_BETWEEN)


def _wait_for_others(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(_SECONDS_BETWEEN)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that still run: first they are asked to."""
    ended_by = signals.status_of_signal()
    for process in processes:
        if process.poll() is None:
            # From a terminal, Ctrl-C has reached them already; a second signal changes nothing.
            process.terminate()
    if any(process.poll() is None for process in processes):
        _wait_for_others(processes, _SECONDS_AFTER_DEATH if ended_by is None else _SECONDS_TO_END)
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def words_of_death(rank: int, world: int, how: str) -> tuple[str, str]:
    """The two lines about a process that has ended without an error of its own."""
    return (
        f"rank {rank} of {world} has died ({how}), and the run with it",
        "look for lack of memory there (`dmesg`); fewer processes on a machine need less; what was finished is kept",
    )
