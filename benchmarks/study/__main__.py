"""Run the study, or write its tables: `python -m benchmarks.study --preset small`."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.study.cells import PRESETS
from benchmarks.study.methods import METHODS
from benchmarks.study.runner import run_cell, run_side_by_side
from benchmarks.study.tables import write_tables
from sapcli.machine.device import resolve_device

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Parse the command line and run what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "study", help="for files and results")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="*", help="a pattern of cells' names")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each in a process of its own")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no cell after so long")
    for name in ("epochs", "images", "batch-size"):
        parser.add_argument(f"--{name}", type=int, help="instead of the preset's")
    parser.add_argument("--methods", default="*", help="a pattern of methods' names")
    parser.add_argument("--tables", type=Path, help="only write the tables of what is there to this file")
    arguments = parser.parse_args()
    folder = arguments.folder / arguments.preset
    preset = PRESETS[arguments.preset]
    changed = {name: value for name in ("epochs", "images", "batch_size") if (value := getattr(arguments, name))}
    preset = replace(preset, **changed)
    if arguments.tables is not None:
        write_tables(preset, folder, arguments.tables)
        return
    folder.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in preset.cells if fnmatch(cell.name, arguments.only)]
    if arguments.jobs > 1:
        shared = ("preset", "folder", "device", "methods", *changed)
        passed = [part for name in shared for part in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
        run_side_by_side(cells, preset, folder, passed, arguments.jobs, arguments.seconds)
        return
    device = resolve_device(arguments.device)
    methods = [method for method in METHODS if fnmatch(method.name, arguments.methods)]
    for cell in cells:
        for name, found in run_cell(cell, preset, folder, device, methods)["methods"].items():
            print(f"{cell.name:48} {name:32} {found}", flush=True)


if __name__ == "__main__":
    main()
