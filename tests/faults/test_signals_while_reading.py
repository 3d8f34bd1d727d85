"""SIGINT and SIGTERM while a checkpoint is read that takes its time: the end within two seconds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import test_peaks as bombs
from support.processes import start

SECONDS = 2.0
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}

SLOW: dict[str, bombs.Bomb] = {
    "many entries": bombs.header(bombs.many_entries(15 * bombs.MIB)),
    "many values": bombs.header(bombs.repeated(b'{"a":[', b'{"a":0},', b"0]}", 7 * bombs.MIB)),
    "an index": bombs.index(bombs.repeated(b'{"weight_map":{"a":[', b'"ab",', b"0]}}", 9 * bombs.MIB)),
    "millions of dictionaries": bombs.legacy(bombs.whole(bombs.PICKLES["millions of dictionaries"])),
    "millions of keys": bombs.member(bombs.whole(bombs.PICKLES["millions of keys"])),
    "many records": bombs.many_members,
}


def begin_slowly() -> None:
    """Tell in the folder when the checkpoint is opened."""
    import sapcli.checkpoints.checkpoint as module

    opened = module._open_path

    def open_path(*arguments: object) -> object:
        Path("begun").touch()
        return opened(*arguments)

    module._open_path = open_path  # type: ignore[assignment]


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("delay", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("make", SLOW.values(), ids=SLOW.keys())
def test_while_a_checkpoint_is_read(
    tmp_path: Path, make: Callable[[Path], object], delay: float, number: signal.Signals
) -> None:
    make(tmp_path)
    run = start(tmp_path, ["inspect", ".", "--arch", "resnet18"], begin_slowly)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    sent = time.monotonic()
    try:
        os.kill(run.pid, number)
    except ProcessLookupError:
        pytest.skip("it was done already")
    if (status := run.wait()) == 1:
        pytest.skip("it was done already")
    assert status == STATUS[number], run.said()
    assert time.monotonic() - sent < SECONDS
    assert "Traceback" not in run.said()


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_while_a_writer_keeps_a_pipe_open(tmp_path: Path, name: str, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / name)
    writer = os.open(tmp_path / name, os.O_RDWR)
    try:
        run = start(tmp_path, ["inspect", name, "--arch", "resnet18"], begin_slowly)
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(3)  # longer than a pipe without a writer is waited for
        sent = time.monotonic()
        os.kill(run.pid, number)
        assert run.wait() == STATUS[number], run.said()
        assert time.monotonic() - sent < SECONDS
    finally:
        os.close(writer)
