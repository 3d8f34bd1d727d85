"""Tests that what other people's code does to the process is undone, and lasts for that code."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from sapcli.machine.process_state import Surroundings


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_CHANGES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "folder": (lambda: os.chdir("/"), Path.cwd),
    "search path": (lambda: sys.path.insert(0, "/nowhere"), lambda: list(sys.path)),
    "arguments": (lambda: sys.argv.append("--lr"), lambda: list(sys.argv)),
    "variable": (lambda: os.environ.update(SAP_TEST="1"), lambda: dict(os.environ)),
    "variable removed": (lambda: os.environ.pop("PATH"), lambda: dict(os.environ)),
    "dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "threads": (lambda: torch.set_num_threads(3), torch.get_num_threads),
    "deterministic": (lambda: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled),
    "precision": (lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision),
    "cuDNN": (lambda: setattr(torch.backends.cudnn, "benchmark", True), lambda: torch.backends.cudnn.benchmark),
    "anomalies": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "attention": (lambda: torch.backends.mha.set_fastpath_enabled(False), torch.backends.mha.get_fastpath_enabled),
    "torch's seed": (lambda: torch.manual_seed(3), lambda: torch.get_rng_state().tolist()),
    "python's seed": (lambda: random.seed(3), random.getstate),
    "numpy's seed": (lambda: np.random.seed(3), lambda: np.random.get_state()[1].tolist()),
    "warnings": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    "stdout": (lambda: setattr(sys, "stdout", None), lambda: sys.stdout),
    "stderr": (lambda: setattr(sys, "stderr", None), lambda: sys.stderr),
    "recursion": (lambda: sys.setrecursionlimit(5000), sys.getrecursionlimit),
    "garbage": (gc.disable, gc.isenabled),
    "interrupts": (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), lambda: signal.getsignal(signal.SIGINT)),
    "damaged images": (
        lambda: setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True),
        lambda: ImageFile.LOAD_TRUNCATED_IMAGES,
    ),
    "permissions": (lambda: os.umask(0o777), _umask),
    "temporary files": (lambda: setattr(tempfile, "tempdir", "/nowhere"), lambda: tempfile.tempdir),
    "large images": (lambda: setattr(Image, "MAX_IMAGE_PIXELS", None), lambda: Image.MAX_IMAGE_PIXELS),
}


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("change", _CHANGES)
def test_the_process_is_as_before(change: str, failing: bool) -> None:
    make, look = _CHANGES[change]
    before = look()
    surroundings = Surroundings()
    try:
        with surroundings.entered(building=True):
            make()
            assert look() != before
            if failing:
                raise SystemExit(3)
    except SystemExit:
        assert failing
    assert look() == before


@pytest.mark.parametrize(
    "change", ["folder", "search path", "arguments", "variable", "variable removed", "dtype", "torch's seed"]
)
def test_the_code_finds_what_it_left(change: str) -> None:
    make, look = _CHANGES[change]
    surroundings = Surroundings()
    with surroundings.entered(building=True):
        make()
        left = look()
    with surroundings.entered(building=True):
        assert look() == left


@pytest.mark.parametrize("often", [False, True])
def test_random_numbers_go_on_where_they_were(often: bool) -> None:
    expected_generator = torch.Generator().manual_seed(5)
    expected = [torch.rand(1, generator=expected_generator).item() for _ in range(4)]
    surroundings = Surroundings()
    with surroundings.entered():
        torch.manual_seed(5)
    found = []
    for _ in range(4):
        with surroundings.entered(often=often):
            found.append(torch.rand(1).item())
        torch.rand(7)
    assert found == expected


def test_random_numbers_without_a_seed_are_the_same_in_every_process() -> None:
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        surroundings = Surroundings()
        with surroundings.entered():
            draws.append((torch.rand(1).item(), random.random(), np.random.rand()))
        assert surroundings.has_seeded
    assert draws[0] == draws[1]


def test_what_is_printed_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Surroundings().entered():
        print("a word")  # noqa: T201
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a word\n")


def test_later_changes_of_the_process_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    surroundings = Surroundings()
    with surroundings.entered():
        os.environ["ITS_OWN"] = "1"
    monkeypatch.setenv("OF_THE_PROCESS", "2")
    monkeypatch.chdir(tmp_path)
    with surroundings.entered():
        assert (os.environ["ITS_OWN"], os.environ["OF_THE_PROCESS"], Path.cwd()) == ("1", "2", tmp_path)
