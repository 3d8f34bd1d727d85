"""How long the stages of a repair take, beside a textbook implementation and beside what the machine allows.

Run it with `make bench`. Both sides (see `benchmarks/stages.py`) run in processes of their own, in turns, and the
median of several rounds counts.

The floor of a stage is what it has to compute or move at this machine's own rate: the network's operations for a
forward pass, `n d^2` for the second moment of `n` rows (the symmetric half of all of them), `9 d^3` for a
decomposition, two products of the weight and its basis for a projection, at the rate of a large product of the same
type, or the bases' bytes at the memory's. Sampling rows and sharing work between neighbouring patches can go below it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stages import ALPHAS, CHECKPOINT, FACTORY, SHARED, network

ARCHIVE = SHARED / "data" / "cifar10_noisy.tar.xz"
ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "build" / "speed.json"

TRUSTED = {"shared": 1000}
TRUSTED_AT_224_PIXELS = 16  # of more of them the textbook's decompositions take an hour
OURS_ALONE = {"resnet50": 1000, "vit_base_patch16_224": 200}
GROWING = (250, 500, 1000, 2000)
VALIDATION = 256

Round = dict[str, Any]


def machine(device: torch.device) -> dict[str, float]:
    """The rate of a large product in GFLOP/s, by type, and the memory's in GB/s: the best of several."""

    def best(action: Callable[[], object], amount: float) -> float:
        rate = 0.0
        for _ in range(5):
            started = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize()
            rate = max(rate, amount / (time.perf_counter() - started) / 1e9)
        return rate

    side = 2048 if device.type == "cpu" else 8192
    single = torch.randn(side, side, device=device)
    factors = {"float32": single, "float64": single.double(), "bfloat16": single.bfloat16()}
    block = torch.empty(1 << 26, device=device)
    rates = {name: best(lambda factor=factor: factor @ factor, 2.0 * side**3) for name, factor in factors.items()}
    return rates | {"memory": best(lambda: block.add_(1.0), 2.0 * block.nbytes)}


def run_side(side: str, case: str, device: str, trusted: int, validation: int) -> Round:
    """One side of one case, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.stages", side, case, "--device", device]
    command += ["--trusted", str(trusted), "--validation", str(validation)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    found: Round = json.loads(finished.stdout.splitlines()[-1])
    return found


def medians(rounds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each value over the rounds."""
    values: dict[str, list[float]] = defaultdict(list)
    for found in rounds:
        for name, value in found.items():
            values[name].append(value)
    return {name: statistics.median(several) for name, several in values.items()}


def floors(case: str, ours: Round, trusted: int, rates: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Per stage, its operations and the seconds that it cannot do without."""
    module, size = network(case)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, *size))
    forward = float(counter.get_total_flops())
    sizes = [(groups, rows, outputs, length, min(rows, length)) for rows, groups, outputs, length in ours["sizes"]]
    moments = sum(groups * rows * length**2 for groups, rows, _, length, _ in sizes)
    decompositions = sum(9.0 * groups * rank**3 for groups, _, _, _, rank in sizes)
    product = sum(2.0 * groups * outputs * length * rank for groups, _, outputs, length, rank in sizes)
    moved = sum(4.0 * groups * length * rank for groups, _, _, length, rank in sizes)
    fast = rates[ours["fast"].removeprefix("torch.")]
    single = rates["float32"]
    products = len(ALPHAS) + 1
    return {
        "scoring": (forward * trusted, forward * trusted / fast / 1e9),
        "second moments": (forward * trusted + moments, (forward * trusted + moments) / single / 1e9),
        "decomposition": (decompositions, decompositions / rates["float64"] / 1e9),
        "projection": (product * products, products * max(product / single, moved / rates["memory"]) / 1e9),
        "validation": (forward * VALIDATION * len(ALPHAS), forward * VALIDATION * len(ALPHAS) / fast / 1e9),
    }


def report(case: str, found: Mapping[str, Sequence[Round]], rates: Mapping[str, float], trusted: int) -> None:
    """Print the table of one case, each stage at the median of its rounds."""
    seconds = {side: medians(each["seconds"] for each in rounds) for side, rounds in found.items()}
    peaks = {side: medians(each["peaks"] for each in rounds) for side, rounds in found.items()}
    ours = found["ours"][0]
    print(f"\n### {case}: {ours['weights']} weights, {trusted} trusted images\n")
    print("| stage | textbook, s | ours, s | times faster | floor, s | ours over floor | GFLOP/s | peak so far, MiB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for stage, (operations, floor) in floors(case, ours, trusted, rates).items():
        if stage not in seconds["ours"]:
            continue
        mine = seconds["ours"][stage]
        cells = ["", f"{mine:.2f}", "", f"{floor:.2f}", f"{mine / floor:.1f}", f"{operations / mine / 1e9:.0f}"]
        if found["textbook"]:
            other = seconds["textbook"][stage]
            cells[0], cells[2] = f"{other:.2f}", f"{other / mine:.1f}"
        cells.append(" / ".join(f"{peaks[side][stage]:.0f}" for side in found if found[side]))
        print(f"| {stage} | {' | '.join(cells)} |")
    mine = seconds["ours"]["second moments"] + seconds["ours"]["decomposition"]
    print(f"\nbases: {mine:.1f} s")
    if found["textbook"]:
        of_rows = seconds["textbook"]["second moments"]
        for stage in ("decomposition", "decomposition of the transposed"):
            other = of_rows + seconds["textbook"][stage]
            print(f"- {other / mine:.1f} times faster than the textbook with its {stage} ({other:.1f} s)")


def growth(device: str) -> list[dict[str, float]]:
    """The seconds and the peak memory of the bases of the shared checkpoint, for four numbers of trusted images."""
    print("\n### shared: more trusted images\n")
    print("| images | second moments, s | decomposition, s | peak, MiB |\n|---:|---:|---:|---:|")
    table = []
    for trusted in GROWING:
        found = run_side("ours", "shared", device, trusted, 0)
        seconds, peak = found["seconds"], found["peaks"]["decomposition"]
        table.append({"images": trusted, **seconds, "peak_mib": peak})
        print(f"| {trusted} | {seconds['second moments']:.2f} | {seconds['decomposition']:.2f} | {peak:.0f} |")
    return table


@contextmanager
def shared_data() -> Iterator[Path]:
    """The shared images as a folder, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as name:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(name, filter="data")
        yield Path(name) / "cifar10_noisy"


def scoring_from_files(data: Path, device: str) -> dict[str, float]:
    """Images a second of the shared data: only decoded, only run, and both as `sap select` does, on 4,000 images.

    And decoded by Pillow alone, in as many processes as there are cores, without ours around it: `Pillow` is the rate
    of one, which is the floor's.
    """
    from sapcli.api import open_session
    from sapcli.datasets.images import Batch
    from sapcli.machine.heap import keep_freed_memory

    keep_freed_memory()
    workers = os.cpu_count() or 1
    session = open_session(CHECKPOINT, data, arch=f"{FACTORY}:resnet18_half", device=device, workers=workers)
    chosen = range(0, len(session.training.paths), max(len(session.training.paths) // 4000, 1))
    files = [session.training.root / session.training.paths[index] for index in chosen]
    classifier = session.classifier
    rates: dict[str, list[float]] = defaultdict(list)

    def rate(name: str, action: Callable[[], object]) -> None:
        started = time.perf_counter()
        action()
        rates[name].append(len(chosen) / (time.perf_counter() - started))

    for _ in range(3):
        decoded: list[Batch] = []
        rate("Pillow", lambda: [np.asarray(Image.open(file).convert("RGB")) for file in files])
        rate("decoding", lambda decoded=decoded: decoded.extend(session.images(session.training).batches(chosen)))
        rate("network", lambda decoded=decoded: [classifier.logits(b.images, exact=False) for b in decoded])
        rate("both", lambda: session.score(session.images(session.training), "", chosen, exact=False))
    return {name: statistics.median(several) for name, several in rates.items()}


def whole_commands(data: Path, device: str) -> dict[str, float]:
    """Seconds of `sap project` on the shared checkpoint and data: with a cold cache, and with the bases cached."""
    inputs = [str(CHECKPOINT), str(data), "--arch", f"{FACTORY}:resnet18_half", "--quiet", "--device", device]
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        kept = ["--cache-dir", f"{folder}/cache", "-o", f"{folder}/repaired.safetensors", "--force"]
        for name, more in {
            "cold, --alpha auto": [],
            "bases cached, --alpha 3000": ["--alpha", "3000"],
            "bases cached, --alpha 3000 --batchnorm keep": ["--alpha", "3000", "--batchnorm", "keep"],
        }.items():
            started = time.perf_counter()
            command = [sys.executable, "-m", "sapcli", "project", *inputs, *kept, *more]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name] = time.perf_counter() - started
    return seconds


def report_files(
    rates: Mapping[str, float],
    commands: Mapping[str, float],
    textbook: Mapping[str, float],
    counts: Mapping[str, int],
) -> dict[str, float]:
    """Print how commands compare with the textbook's stages, with the same decoding; return the textbook's seconds."""
    slower = min(rates["decoding"], rates["network"])
    print("\n### shared: scoring from files\n")
    print(", ".join(f"{part} {rate:.0f} images/s" for part, rate in rates.items()))
    print(f"both take {slower / rates['both']:.2f} times as long as the slower one alone")
    rest = sum(counts.values()) / rates["decoding"] + textbook["second moments"] + textbook["projection"]
    rest += counts["train"] * textbook["scoring"] / TRUSTED["shared"]
    rest += counts["val"] * textbook["validation"] / VALIDATION
    stages = ("decomposition", "decomposition of the transposed")
    wholes = {stage: rest + textbook[stage] for stage in stages}
    print("\n### shared: whole commands\n")
    print("| command | s | " + " | ".join(f"times faster, {stage} ({wholes[stage]:.0f} s)" for stage in stages) + " |")
    print("|---|---:|---:|---:|")
    for command, seconds in commands.items():
        print(f"| {command} | {seconds:.1f} | " + " | ".join(f"{wholes[s] / seconds:.1f}" for s in stages) + " |")
    return wholes


def measure_shared(arguments: argparse.Namespace, rates: Mapping[str, float]) -> dict[str, Any]:
    """The shared checkpoint: both sides and the whole commands in turns."""
    trusted = TRUSTED["shared"]
    found: dict[str, list[Round]] = {"textbook": [], "ours": []}
    commands: list[dict[str, float]] = []
    with shared_data() as data:
        for _ in range(arguments.rounds):
            for side in found:
                found[side].append(run_side(side, "shared", arguments.device, trusted, VALIDATION))
            if not arguments.parts:
                commands.append(whole_commands(data, arguments.device))
        report("shared", found, rates, trusted)
        measured: dict[str, Any] = {"stages": found}
        if not arguments.parts:
            counts = {split: len(list((data / split).glob("*/*"))) for split in ("train", "val")}
            scoring = scoring_from_files(data, arguments.device)
            textbook = medians(each["seconds"] for each in found["textbook"])
            measured |= {"commands": commands, "scoring": scoring}
            measured["textbook"] = report_files(scoring, medians(commands), textbook, counts)
            measured["growth"] = growth(arguments.device)
    return measured


def measure_at_224_pixels(case: str, arguments: argparse.Namespace, rates: Mapping[str, float]) -> dict[str, Any]:
    """A timm model: both sides on a few images, and ours alone on many."""
    found = {side: [run_side(side, case, arguments.device, TRUSTED_AT_224_PIXELS, 0)] for side in ("textbook", "ours")}
    report(case, found, rates, TRUSTED_AT_224_PIXELS)
    many = OURS_ALONE.get(case, TRUSTED_AT_224_PIXELS)
    alone = {"textbook": [], "ours": [run_side("ours", case, arguments.device, many, 0)]}
    report(case, alone, rates, many)
    return {"stages": found, "ours alone": alone["ours"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=["shared", *OURS_ALONE], help="shared, or names of timm models")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="of the shared checkpoint")
    parser.add_argument("--parts", action="store_true", help="of it, only the table of stages, no whole commands")
    parser.add_argument("--json", type=Path, default=RESULT, help="where to write what was measured")
    arguments = parser.parse_args()
    rates = machine(torch.device(arguments.device))
    print(", ".join(f"{name} {rate:.0f} {'GB/s' if name == 'memory' else 'GFLOP/s'}" for name, rate in rates.items()))
    measured: dict[str, Any] = {"machine": rates, "torch": torch.__version__, "threads": torch.get_num_threads()}
    for case in arguments.cases:
        if case == "shared" and not CHECKPOINT.exists():
            print("\nthe shared checkpoint is not there: left out")
            continue
        measure = (
            measure_shared(arguments, rates) if case == "shared" else measure_at_224_pixels(case, arguments, rates)
        )
        measured[case] = measure
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
