"""Cells are run one by one or side by side; every result is a file, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from benchmarks.study.cells import Cell, Preset
from benchmarks.study.methods import METHODS, Method, run
from benchmarks.study.pictures import open_pictures
from benchmarks.study.tasks import Task
from benchmarks.study.training import logits
from sapcli import __version__

RESULT = "result.json"


def run_cell(
    cell: Cell, preset: Preset, folder: Path, device: torch.device, methods: Sequence[Method] = METHODS
) -> dict[str, Any]:
    """Train a cell's network, run every method on it that has no result yet, and measure what comes out.

    A method that fails leaves the error in its place and the others run.
    """
    task = Task.of(cell, preset, open_pictures(preset.source, folder), folder / cell.name, device)
    file = task.folder / RESULT
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"methods": {}}
    result |= {
        "cell": asdict(cell),
        "epochs": preset.epochs,
        "images": preset.images,
        "wrong labels": round(float(task.wrong.float().mean()), 4),
    }
    result |= {"device": _described(device), "torch": torch.__version__, "sap": __version__}
    if not task.checkpoint.exists():
        started = time.perf_counter()
        task.make_network()
        result["training seconds"] = round(time.perf_counter() - started, 1)
    for method in methods:
        if method.name in result["methods"] or not method.applies(task):
            continue
        try:
            result["methods"][method.name] = _measured(method, task)
        except Exception as error:
            traceback.print_exc()
            result["methods"][method.name] = {"error": f"{type(error).__name__}: {error}"}
        draft = file.with_suffix(".part")
        draft.write_text(json.dumps(result, indent=1))
        draft.rename(file)
    return result


def _measured(method: Method, task: Task) -> dict[str, float]:
    weights, seconds = run(method, task)
    network = task.network(weights)
    pictures = task.pictures
    judged = logits(network, pictures.test_images, task.device)
    images, given = task.images(task.training)
    trained = logits(network, images, task.device)
    validated = logits(network, pictures.images[task.validation], task.device)
    found = {
        "test": _percent(judged.argmax(1) == pictures.test_labels),
        "validation": _percent(validated.argmax(1) == task.given[task.validation]),
        "given labels fitted": _percent(trained.argmax(1) == given),
        "seconds": round(seconds, 1),
    }
    if task.wrong.any():
        losses = functional.cross_entropy(trained, given, reduction="none")
        found["area of suspects"] = round(float(roc_auc_score(task.wrong.numpy(), losses.numpy())), 4)
    if not method.is_ours:
        weights.unlink()
    return found


def _percent(right: torch.Tensor) -> float:
    return round(100 * float(right.float().mean()), 2)


def _described(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}"


def run_side_by_side(
    cells: Sequence[Cell], preset: Preset, folder: Path, arguments: Sequence[str], jobs: int, seconds: float
) -> None:
    """Run every cell in a process of its own, so many at a time; none is begun after so many seconds.

    Args:
        cells: In their order.
        preset: The size of the study.
        folder: For results and logs.
        arguments: Of the command line of each process, but for the cell.
        jobs: Processes at a time.
        seconds: The limit.
    """
    began = time.monotonic()
    open_pictures(preset.source, folder)

    def one(cell: Cell) -> None:
        if time.monotonic() - began > seconds:
            return
        with (folder / f"{cell.name}.log").open("w") as log:
            command = [sys.executable, "-m", "benchmarks.study", *arguments, "--only", cell.name]
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
        print(f"{time.monotonic() - began:6.0f} s  {cell.name}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, cells))
