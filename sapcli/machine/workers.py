"""A map over worker processes that keeps the order and ends when its caller ends, however that comes about.

The pools at hand fall short of that. `torch.utils.data.DataLoader` raises a worker's death from a signal handler,
wherever the main thread happens to be, or notices it after five seconds; it moves images through shared memory, which
containers have little of, and when it moves them otherwise, its workers outlive a main process that is killed. So do
those of `concurrent.futures`, and `multiprocessing.Pool` waits for ever for a worker that died.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_TASKS_AHEAD = 2  # per worker: one that it works on, one that waits for it


class WorkerError(Exception):
    """A worker that could not be started or died."""


def map_in_workers(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Call `function` on each task in processes of their own, a few tasks ahead of the consumer.

    Args:
        function: What the workers do; it, the tasks and the results have to be picklable. It must not raise.
        tasks: At least one, each small.
        workers: The number of processes, at least one.

    Yields:
        The results in the order of the tasks.

    Raises:
        WorkerError: If a worker cannot be started or dies.
    """
    processes: list[multiprocessing.Process] = []
    connections: list[Connection] = []
    try:
        for _ in range(min(workers, len(tasks))):
            ours, theirs = multiprocessing.Pipe()
            connections.append(ours)
            with theirs:  # closed here once the worker has it, so that its death ends the connection
                process = multiprocessing.Process(target=_work, args=(function, theirs, connections), daemon=True)
                process.start()
            processes.append(process)
        ahead = len(connections) * _TASKS_AHEAD
        for number, task in enumerate(tasks[:ahead]):
            connections[number % len(connections)].send(task)
        for number in range(len(tasks)):
            connection = connections[number % len(connections)]
            result = connection.recv()
            if number + ahead < len(tasks):
                connection.send(tasks[number + ahead])
            yield result
    except (EOFError, OSError) as error:
        raise WorkerError(str(error) or "it ended without a word") from error
    finally:
        # Nothing that a worker holds needs to be put in order, so none is asked to end.
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        for connection in connections:
            connection.close()


def _work(function: Callable[[Task], Result], tasks: Connection, inherited: Sequence[Connection]) -> None:
    # Ctrl-C reaches all processes of a terminal, and the main one ends its workers; its own handlers are not for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Only the main process may hold the other ends: when it is gone, they close, and the workers end.
    for connection in inherited:
        connection.close()
    while True:
        try:
            tasks.send(function(tasks.recv()))
        except (EOFError, OSError):
            return
