"""One card, some eight minutes: the commands on a GPU against the CPU, their times, and the paper's own setting.

Run it with `make gpu`; on a machine without a card, `python -m benchmarks.gpu --device cpu --preset tiny` tries every
step in minutes. Each step stands for itself: one that fails is told and the others run. The figures go to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.study.cells import PRESETS, Cell, Preset
from benchmarks.study.pictures import Pictures, open_pictures
from benchmarks.study.runner import run_cell
from benchmarks.study.tasks import Task
from sapcli.machine.device import resolve_device

ROOT = Path(__file__).resolve().parent.parent
_ALPHA = 3000


class Day:
    """The steps, and what they found.

    Args:
        folder: For files.
        preset: The size.
        device: The card, or the CPU.
        result: Where the figures go after every step.
    """

    def __init__(self, folder: Path, preset: Preset, device: torch.device, result: Path) -> None:
        self.preset, self.device, self._result = preset, device, result
        self.folder = folder
        self.pictures: Pictures = open_pictures(preset.source, folder)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.found: dict[str, Any] = {"device": name, "torch": torch.__version__}

    def step(self, name: str, action: Callable[[], object]) -> None:
        """Run a step; note what it found, or how it failed, and its seconds."""
        print(f"### {name}", flush=True)
        started = time.perf_counter()
        try:
            found = action()
        except Exception as error:
            traceback.print_exc()
            found = f"failed: {type(error).__name__}: {error}"
        self.found[name] = {"found": found, "seconds": round(time.perf_counter() - started, 1)}
        self._result.parent.mkdir(parents=True, exist_ok=True)
        self._result.write_text(json.dumps(self.found, indent=1))
        print(json.dumps(self.found[name]), flush=True)

    def task(self, cell: Cell, preset: Preset) -> Task:
        """A cell with its network trained."""
        task = Task.of(cell, preset, self.pictures, self.folder / cell.name, self.device)
        task.make_network()
        return task


def sap(*words: object) -> tuple[float, str]:
    """Run a command; its seconds and what it wrote to stdout.

    Raises:
        RuntimeError: Its status is not 0.
    """
    started = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "sapcli", *map(str, words)], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"sap {words[0]}: {ended.stderr[-500:]}")
    return round(time.perf_counter() - started, 2), ended.stdout


def equal_to_the_cpu(day: Day, cell: Cell) -> object:
    """One alpha and one trusted set on both: the largest relative difference of a tensor."""
    task = day.task(cell, replace(day.preset, epochs=max(1, day.preset.epochs // 10)))
    common = (task.checkpoint, task.training_file, "--arch", task.architecture, "--force", "--precision", "float32")
    trusted = task.folder / "trusted.jsonl"
    sap("select", *common, "--device", day.device, "-n", day.preset.trusted, "-o", trusted)
    outputs = {name: task.folder / f"{name}.safetensors" for name in ("card", "cpu")}
    seconds = {}
    for name, device in (("card", day.device), ("cpu", "cpu")):
        options = ("--device", device, "--trusted", trusted, "--alpha", _ALPHA, "-o", outputs[name])
        seconds[name], _ = sap("project", *common, *options)
    ours, theirs = load_file(outputs["card"]), load_file(outputs["cpu"])
    worst = max(
        float((ours[name] - tensor).norm() / tensor.norm().clamp(min=1e-12))
        for name, tensor in theirs.items()
        if tensor.is_floating_point()
    )
    if worst > 1e-3:
        raise ValueError(f"weights differ by {worst:.1e}, relatively")
    return {"worst relative difference": worst, "seconds": seconds}


def paper_setting(day: Day, cell: Cell) -> object:
    """Trained, repaired by every method, measured on the test images."""
    return run_cell(cell, day.preset, day.folder, day.device)["methods"]


def whole_commands(day: Day, cell: Cell) -> object:
    """The seconds of each command on the trained network: cold, and with artifacts in the cache."""
    task = day.task(cell, day.preset)
    cache = task.folder / "commands"
    place = (task.checkpoint, task.training_file, "--arch", task.architecture, "--device", day.device)
    common = (*place, "--force", "--cache-dir", cache, "-n", day.preset.trusted)
    output = task.folder / "commands.safetensors"
    seconds = {}
    validated = ("--val", task.validation_file, "-o", output)
    seconds["project, cold"], _ = sap("project", *common, *validated)
    seconds["project, another alpha"], _ = sap("project", *common, *validated, "--alpha", _ALPHA)
    seconds["project, float32 alone"], _ = sap("project", *common, *validated, "--precision", "float32")
    seconds["select"], _ = sap("select", *common, "-o", task.folder / "again.jsonl", "--seed", 1)
    seconds["activations"], _ = sap("activations", *common, "-o", task.folder / "bases.safetensors")
    judged = ("--arch", task.architecture, "--device", day.device, "--format", "json")
    seconds["eval"], _ = sap("eval", output, day.pictures.test / "images", *judged)
    listed = ("--cache-dir", cache, "--force", "-o", task.folder / "suspects.jsonl", "--device", day.device)
    seconds["suspects"], _ = sap("suspects", output, task.training_file, "--arch", task.architecture, *listed)
    return seconds


def too_little_memory(day: Day, cell: Cell) -> object:
    """A batch that does not fit on the card is halved, and the result is the same."""
    if day.device.type != "cuda":
        return "only on a card"
    task = day.task(cell, day.preset)
    program = (
        "import sys, torch; torch.cuda.set_per_process_memory_fraction(0.02);"
        " from sapcli.__main__ import main; sys.argv[0] = 'sap'; main()"
    )
    words = ["eval", task.checkpoint, day.pictures.test / "images", "--arch", task.architecture]
    words += ["--device", day.device, "--format", "json"]
    tops = []
    for size in (256, 10000):
        command = [sys.executable, "-c", program, *map(str, words), "--batch-size", str(size)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        tops.append(json.loads(ended.stdout)["top1"])
    return {"top1 in batches of 256": tops[0], "in batches of 10,000, halved": tops[1], "said": ended.stderr[-300:]}


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", choices=PRESETS, default="paper")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--result", type=Path, default=ROOT / "build" / "gpu.json")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve() / arguments.preset
    folder.mkdir(parents=True, exist_ok=True)
    preset = PRESETS[arguments.preset]
    day = Day(folder, preset, resolve_device(arguments.device), arguments.result)
    network = preset.cells[0].network
    compared = Cell("symmetric-10", "resnet18_half" if preset.source == "cifar10" else network, seed=1)
    measured = Cell("symmetric-25", network)
    day.step("equal to the CPU", lambda: equal_to_the_cpu(day, compared))
    day.step("the paper's setting", lambda: paper_setting(day, measured))
    day.step("whole commands", lambda: whole_commands(day, measured))
    day.step("too little memory", lambda: too_little_memory(day, measured))
    failed = [name for name, found in day.found.items() if "failed" in str(found)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
