"""Named pipes and devices in the place of a checkpoint's files: read where that makes sense, and never waited for."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.errors import SapError

if TYPE_CHECKING:
    from pathlib import Path


def sharded(folder: Path) -> Path:
    for number in range(2):
        save_file({f"w{number}": torch.ones(2)}, folder / f"{number}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{number}": f"{number}.safetensors" for number in range(2)}}))
    return index


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.safetensors.index.json"])
def test_a_pipe_that_nobody_writes_to(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(SapError, match="nobody writes to"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["0.safetensors", "1.safetensors"])
def test_a_shard_that_is_a_pipe(tmp_path: Path, name: str) -> None:
    index = sharded(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(SapError, match="1 are missing"):
        open_checkpoint(index)


def test_a_pipe_beside_the_checkpoint_is_not_opened(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "config.json")
    assert open_checkpoint(tmp_path / "model.safetensors").config is None


def test_a_folder_of_pipes_holds_no_checkpoint(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.safetensors.index.json", "a.pth"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(SapError, match="folder without"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full"])
def test_devices(tmp_path: Path, device: str) -> None:
    (tmp_path / "model.safetensors").symlink_to(device)
    with pytest.raises(SapError, match="device"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_a_pipe_with_a_writer_is_read(tmp_path: Path) -> None:
    save_file({"w": torch.arange(5.0)}, tmp_path / "file.safetensors")
    os.mkfifo(tmp_path / "pipe")
    content = (tmp_path / "file.safetensors").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    assert torch.equal(open_checkpoint(tmp_path / "pipe").read("w"), torch.arange(5.0))
    writer.join()
