"""Every process of a run tells the others that it lives; when one does not any more, all end, and one says which.

`torch.distributed` tells of a dead process by an address, or not at all until a timeout of many minutes. Here each
process has a record in the group's store, which a thread renews every second: on which machine it is, what it would
leave behind, whether it has ended by itself and with which error.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from torch._C._distributed_c10d import Store

from sapcli.errors import ExitStatus, SapError
from sapcli.machine import files, signals
from sapcli.machine.parallel.launch import words_of_death
from sapcli.machine.parallel.membership import LAUNCHED
from sapcli.machine.text import printable

_SECONDS_BETWEEN = 1.0
# A process whose record is as old as this has ended, or its machine has: a thread that writes it gets its turn sooner.
_SILENT_SECONDS = 20.0
# An error on another process is told only when this one has not come to the same by itself.
_GRACE_SECONDS = 3.0
# How long the collective that has failed, or a process that has, waits for the word on who it was.
_EXPLAIN_SECONDS = 25.0
_STORE_TIMEOUT = timedelta(seconds=10)


class State(StrEnum):
    """How a process is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SIGNALLED = "signalled"


@dataclass
class Record:
    """What the others know of a process.

    Attributes:
        rank: Which one it is.
        host: The machine it runs on, as of this boot.
        pid: Its number there.
        born: When that was given to it, which tells it from a later process of the same number.
        state: How it is.
        beats: How often it has said so.
        unfinished: The temporary files and folders that it would leave behind.
        places: The folders where it has made such files.
        error: The message, the hint and the exit status that it ended with.
    """

    rank: int
    host: str
    pid: int
    born: str
    state: State = State.RUNNING
    beats: int = 0
    unfinished: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    error: tuple[str, str, int] | None = None

    def is_gone(self) -> bool:
        """Whether it ran on this machine and does not any more."""
        return self.host == _host() and _born(self.pid) != self.born

    def kill(self) -> None:
        """End it, where it runs on this machine."""
        if self.host == _host() and not self.is_gone():
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def remove_left_behind(self) -> None:
        """Remove what it has left, where it ran on this machine and can no longer do so."""
        if self.state is State.RUNNING and self.is_gone():
            files.remove_unfinished_of(self.pid, self.unfinished, self.places)

    def to_text(self) -> str:
        """For the store."""
        return json.dumps(vars(self))

    @classmethod
    def of(cls, content: bytes) -> Record:
        """What `to_text` wrote."""
        values = json.loads(content)
        return cls(**values | {"state": State(values["state"])})


class Watch:
    """The records of all processes of a run, renewed and read by a thread.

    Args:
        store: A connection to the group's store that nobody else uses: one that waits would hold up the beats.
        rank: Which process this is.
        world: How many there are.
    """

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store = store
        self._world = world
        self._mine = Record(rank, _host(), os.getpid(), _born(os.getpid()))
        self._lock = threading.RLock()
        self._seen: dict[int, tuple[int, float]] = {}
        self._failed_since: float | None = None
        self._ended = False
        self._last: list[Record] = []
        store.set_timeout(_STORE_TIMEOUT)
        self._publish()

    def begin(self) -> None:
        """Watch, from now on; all records have to be there."""
        self._last = self._records()
        signals.before_ending(self._signalled)
        files.tell_of_places(self._publish_new_place)
        threading.Thread(target=self._run, daemon=True).start()

    def explain(self, reason: str) -> SapError:
        """Wait for the word on which process has ended, which ends this one too; else what `reason` says."""
        time.sleep(_EXPLAIN_SECONDS)
        return SapError(
            f"the processes of this run have lost each other: {printable(reason.splitlines()[0] if reason else '')}",
            "look at the network between the machines and at the memory of each; --debug shows the traceback",
        )

    def done(self) -> None:
        """This process has done its part, and will not be missed."""
        self._end_as(State.DONE)

    def failed(self, error: SapError) -> None:
        """This process ends with an error. Of those that are not the first, the first one tells it, if need be."""
        self._end_as(State.FAILED, error)
        if self._mine.rank != 0:
            # Whoever started the processes ends all as soon as one has failed: the word has to be out before.
            deadline = time.monotonic() + _GRACE_SECONDS + 2 * _SECONDS_BETWEEN
            while time.monotonic() < deadline:
                with contextlib.suppress(RuntimeError):
                    if any(record.rank == 0 and _has_ended(record) for record in self._records()):
                        return
                time.sleep(_SECONDS_BETWEEN / 10)

    def _end_as(self, state: State, error: SapError | None = None) -> None:
        with self._lock, contextlib.suppress(RuntimeError):
            self._ended = True
            self._mine.state = state
            if error is not None:
                self._mine.error = error.message, error.hint, int(error.exit_status)
            self._publish()

    def _publish(self) -> None:
        with self._lock:
            self._mine.beats += 1
            self._mine.unfinished, self._mine.places = files.unfinished()
            self._store.set(_key(self._mine.rank), self._mine.to_text())

    def _publish_new_place(self) -> None:
        with contextlib.suppress(RuntimeError):
            if not self._ended:
                self._publish()

    def _records(self) -> list[Record]:
        others = [rank for rank in range(self._world) if rank != self._mine.rank]
        return [Record.of(content) for content in self._store.multi_get([_key(rank) for rank in others])]

    def _run(self) -> None:
        while not self._ended:
            time.sleep(_SECONDS_BETWEEN)
            with self._lock:
                if self._ended:
                    return
                try:
                    self._publish()
                    records = self._records()
                except RuntimeError:
                    # The store is the first process', or that of what has started all of them.
                    if not self._ended:
                        self._end_with(None, self._last, "")
                    return
                self._last = records
                self._judge(records)

    def _judge(self, records: list[Record]) -> None:
        now = time.monotonic()
        dead = []
        for record in records:
            beats, since = self._seen.get(record.rank, (-1, now))
            if beats != record.beats:
                since = now
            self._seen[record.rank] = record.beats, since
            if record.state is State.RUNNING and (record.is_gone() or now - since > _SILENT_SECONDS):
                dead.append(record)
        if dead:
            # Once more: it may have said how it ends between the two looks.
            time.sleep(_SECONDS_BETWEEN / 5)
            with contextlib.suppress(RuntimeError):
                current = {record.rank: record for record in self._records()}
                dead = [record for record in dead if current[record.rank].state is State.RUNNING]
        for record in dead:
            # One that is there and says nothing, stopped or stuck, would not end by itself.
            record.kill()
        if dead:
            self._end_with(dead[0], records, "ended without a word")
        failed = [record for record in records if record.state is State.FAILED]
        if failed:
            self._failed_since = self._failed_since or now
            if now - self._failed_since > _GRACE_SECONDS:
                self._end_with(failed[0], records, "")

    def _end_with(self, record: Record | None, records: list[Record], how: str) -> None:
        """End this process, since that of `record` has ended; `None` where the store is gone with all records."""
        status = int(ExitStatus.ERROR)
        for other in records:
            other.remove_left_behind()
        if record is not None:
            if record.error is not None:
                status = record.error[2]
            speaks = all(
                other.rank > self._mine.rank for other in records if other.rank != record.rank and not _has_ended(other)
            )
            # What has started the processes tells of one that was killed; the first one of its own error itself.
            told = (record.error is None and LAUNCHED in os.environ) or (record.error is not None and record.rank == 0)
            if speaks and not told:
                self._tell(record, how)
        self._ended = True
        signals.end_now(status)

    def _tell(self, record: Record, how: str) -> None:
        if record.error is not None:
            message, hint, _status = record.error
            _say(f"rank {record.rank} of {self._world}: {message}", hint)
        else:
            _say(*words_of_death(record.rank, self._world, f"on {record.host.partition('/')[0]}, {how}"))

    def _signalled(self) -> None:
        """This process was told to end: `torchrun` does so when another one has ended."""
        with self._lock, contextlib.suppress(RuntimeError):
            if self._ended:
                return
            self._ended = True
            self._mine.state = State.SIGNALLED
            self._publish()
            records = self._records()
            dead = [record for record in records if record.state is State.RUNNING and record.is_gone()]
            failed = [record for record in records if record.state is State.FAILED and record.rank != 0]
            for record in dead:
                record.remove_left_behind()
            first = all(other.rank > self._mine.rank for other in records if not _has_ended(other))
            if first and LAUNCHED not in os.environ and (dead or failed):
                self._tell((dead or failed)[0], "ended without a word")


def _say(message: str, hint: str) -> None:
    """The two lines of an error, from a thread: those of `console` may be in the middle of a bar."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"\rerror: {printable(message).removesuffix('.')}\nhint:  {printable(hint)}\n")
        sys.stderr.flush()


def _has_ended(record: Record) -> bool:
    return record.state is not State.RUNNING or record.is_gone()


def _key(rank: int) -> str:
    return f"sap/{rank}"


def _host() -> str:
    """The machine, and its boot: a container may be called like its neighbour, and not see its processes."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Processes are seen from within the same namespace alone.
        boot += f"/{Path('/proc/self/ns/pid').readlink()}"
    return f"{os.uname().nodename}/{boot}" if hasattr(os, "uname") else "this machine"


def _born(pid: int) -> str:
    """When a process of this machine began; empty where there is none, or only what is left of one."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        if Path("/proc/self/stat").exists():
            return ""
        try:
            os.kill(pid, 0)
        except OSError:
            return ""
        return "unknown"
    return "" if state in "ZX" else fields[18]
