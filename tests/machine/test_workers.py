"""Worker processes: the order of the results, and the end of the workers whatever ends their caller."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from sapcli.machine.workers import WorkerError, map_in_workers

LARGE = 1 << 20  # bytes: more than a pipe holds, so that a worker waits until its result is taken


def slow_square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def large_result(number: int) -> bytes:
    return bytes([number]) * LARGE


def die_at_seven(number: int) -> bytes:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return bytes(LARGE)


@pytest.mark.parametrize("workers", [1, 2, 5, 40])
def test_results_keep_the_order(workers: int) -> None:
    assert list(map_in_workers(slow_square, range(30), workers)) == [number**2 for number in range(30)]


def test_large_results() -> None:
    assert [result[0] for result in map_in_workers(large_result, range(20), 2)] == list(range(20))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    context = multiprocessing.get_context(method)
    monkeypatch.setattr(multiprocessing, "Process", context.Process)
    monkeypatch.setattr(multiprocessing, "Pipe", context.Pipe)
    assert [result[0] for result in map_in_workers(large_result, range(5), 2)] == list(range(5))


def test_abandoned_work_ends_its_workers() -> None:
    results = map_in_workers(large_result, range(100), 3)
    next(results)
    assert len(multiprocessing.active_children()) == 3
    results.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("in_thread", [False, True])
def test_death_of_a_worker_is_raised_where_its_result_is_awaited(in_thread: bool) -> None:
    outcome: list[object] = []

    def consume() -> None:
        try:
            for result in map_in_workers(die_at_seven, range(100), 2):
                outcome.append(len(result))
                time.sleep(0.02)  # the death must not surface in the caller's own code
        except WorkerError as error:
            outcome.append(str(error))

    if in_thread:
        thread = threading.Thread(target=consume)
        thread.start()
        thread.join()
    else:
        consume()
    assert outcome[:-1] == [LARGE] * 7
    assert isinstance(outcome[-1], str)
    assert outcome[-1]
    assert not multiprocessing.active_children()


def test_no_process_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_process: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.Process, "start", refuse)
    with pytest.raises(WorkerError, match="temporarily unavailable"):
        list(map_in_workers(slow_square, range(3), 2))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_an_interrupted_process(sign: signal.Signals) -> None:
    script = """
        import multiprocessing, signal, time
        from sapcli.machine.workers import map_in_workers

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started deaf to it
        for number, _ in enumerate(map_in_workers(bytes, [1 << 20] * 100, 3)):
            if number == 3:
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 3
    if sign is signal.SIGINT:
        os.killpg(process.pid, sign)  # as a terminal does: to every process of the group
    else:
        process.send_signal(sign)
    _, errors = process.communicate(timeout=30)
    assert errors.count("Traceback") == (sign is signal.SIGINT)  # the main process's own
    deadline = time.monotonic() + 10
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_running(worker) for worker in workers)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
