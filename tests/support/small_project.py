"""A network of a few hundred weights that memorised wrong labels, its data, and the command line run on them."""

from __future__ import annotations

import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from support.command_line import run
from torch import nn

CLASSES = ("blue", "green", "red")
_COLOURS = np.array([[60, 60, 200], [60, 200, 60], [200, 60, 60]])

ARCHITECTURE = """
from torch import nn


class Network(nn.Sequential):
    pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25),
                      "interpolation": "bilinear", "crop_pct": 1.0}


def tiny(num_classes=3):
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, num_classes)]
    return Network(*layers)
"""


@dataclass(frozen=True)
class Project:
    """A folder with `model.safetensors`, `network.py` and `data/`."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The network's checkpoint."""
        return self.folder / "model.safetensors"

    @property
    def data(self) -> Path:
        """The data folder, with `train` and `val`."""
        return self.folder / "data"


def network(num_classes: int = 3) -> nn.Sequential:
    """The network of `ARCHITECTURE`, with its first weights."""
    names: dict[str, object] = {}
    exec(ARCHITECTURE, names)
    torch.manual_seed(0)
    module = names["tiny"](num_classes)  # type: ignore[operator]
    assert isinstance(module, nn.Sequential)
    return module


def make_project(folder: Path) -> Project:
    """Write images of noisy colours, a quarter of the training labels wrong, and train the network on them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "network.py").write_text(ARCHITECTURE)
    generator = np.random.default_rng(0)
    images, labels = [], []
    for split, count in (("train", 40), ("val", 20)):
        for label, name in enumerate(CLASSES):
            place = folder / "data" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                shown = (label + 1) % 3 if split == "train" and number % 4 == 0 else label
                pixels = np.clip(_COLOURS[shown] + generator.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number:02}.png")
                if split == "train":
                    images.append(pixels)
                    labels.append(label)
    module = network()
    inputs = (torch.tensor(np.array(images)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), torch.tensor(labels)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    save_file(module.eval().state_dict(), folder / "model.safetensors")
    return Project(folder)


@dataclass(frozen=True)
class Outcome:
    """What a command line ended with and wrote."""

    status: int
    stdout: bytes
    stderr: str


def run_here(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
    """Run a command line in this process, which spares the seconds of importing PyTorch; its inputs have to stay."""
    streams = sys.stdin, sys.stdout, sys.stderr
    stdout, stderr = io.BytesIO(), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    sys.stdout = io.TextIOWrapper(stdout, encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(stderr, encoding="utf-8", write_through=True)
    try:
        status = run(arguments)
        return Outcome(status, stdout.getvalue(), stderr.getvalue().decode())
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams


@contextmanager
def without_privileges() -> Iterator[None]:
    """Have permissions count for the superuser too, whom they do not stop otherwise (capabilities(7), Linux)."""
    if os.geteuid() != 0:
        yield
        return
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert library.capget(header, sets) == 0
    before = sets[0]
    sets[0] = before & ~0b110  # the effective CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert library.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert library.capset(header, sets) == 0
