"""`sap select` on a folder of a million images beside one of twenty thousand: seconds, memory, and how pure it is.

    python -m benchmarks.million DATA [--truth CSV] [--images 1000000] [--folder /tmp/million]

DATA has the images, in class folders below train/; the million are hard links to them, so that each is there many
times over. The network is the shared checkpoint. With the right labels in a CSV (path, given, true), the share of
trusted samples with right labels is printed too, of the default candidates and of all.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stages import CHECKPOINT, FACTORY

ROOT = Path(__file__).parents[1]
_FEW = 20_000


@dataclass(frozen=True)
class Selection:
    """One run of `sap select`.

    Attributes:
        started: Seconds until its first image was scored.
        seconds: Until it had ended.
        peak: The largest resident memory of the process and of its workers, each by itself, in MiB.
        trusted: The paths that it wrote.
    """

    started: float
    seconds: float
    peak: float
    trusted: tuple[str, ...]


def make_links(data: Path, folder: Path, count: int) -> None:
    """Links to the training images of `data` in class folders below `folder`, `count` in all."""
    images = sorted(path for path in (data / "train").rglob("*") if path.is_file())
    times = math.ceil(count / len(images))
    for number, image in enumerate(images):
        place = folder / "train" / image.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for copy in range(times):
            if number * times + copy < count:
                os.link(image, place / f"{image.stem}-{copy:03}{image.suffix}")


def select(data: Path, cache: Path, output: Path, *options: str) -> Selection:
    """Run the command and watch it."""
    reading, writing = os.pipe()
    began, started, peak = time.perf_counter(), math.nan, 0.0
    command = [sys.executable, "-P", "-m", "sapcli", "select", str(CHECKPOINT), str(data)]
    command += ["--arch", f"{FACTORY}:resnet18_half", "--cache-dir", str(cache), "-o", str(output), "--force"]
    command += ["--quiet", "--progress-json", str(writing), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, pass_fds=(writing,), env=environment)
    os.close(writing)

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, *map(_peak_of, _family(process.pid)), 0.0)
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with os.fdopen(reading) as events:
        for line in events:
            event = json.loads(line)
            if event["event"] == "progress" and event["name"].startswith("scoring") and math.isnan(started):
                started = time.perf_counter() - began
    watcher.join()
    if process.returncode:
        raise SystemExit(f"sap select ended with {process.returncode}")
    seconds = time.perf_counter() - began
    paths = tuple(json.loads(line)["path"] for line in output.read_text().splitlines())
    return Selection(started, seconds, peak, paths)


def _family(process: int) -> list[int]:
    """A process and those that it started."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return [process]
    return [process, *(member for child in children for member in _family(int(child)))]


def _peak_of(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0.0)


def purity(paths: tuple[str, ...], wrong: frozenset[tuple[str, str]]) -> float:
    """The share of samples whose folder is that of their right class; `wrong` has folders and stems of the others."""
    found = [(Path(path).parts[-2], Path(path).stem.rpartition("-")[0]) for path in paths]
    return sum(each not in wrong for each in found) / len(found)


def wrongly_labelled(truth: Path) -> frozenset[tuple[str, str]]:
    """Folder and stem of the training images whose given label is not the true one."""
    with truth.open() as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith("train/")]
    return frozenset((row["given"], Path(row["path"]).stem) for row in rows if row["given"] != row["true"])


def main() -> None:
    """Measure, and print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--truth", type=Path, help="a CSV with path, given and true")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "million")
    arguments = parser.parse_args()
    folder, small = arguments.folder / "large", arguments.folder / "small"
    few = min(_FEW, arguments.images)
    if not folder.exists():
        began = time.perf_counter()
        make_links(arguments.data, folder, arguments.images)
        make_links(arguments.data, small, few)
        print(f"{arguments.images:,} links in {time.perf_counter() - began:.0f} s", flush=True)
    wrong = None if arguments.truth is None else wrongly_labelled(arguments.truth)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        place = Path(scratch)
        runs = (
            (f"{few:,} images", small, "small", ()),
            (f"{arguments.images:,} images", folder, "large", ()),
            ("the same, listed before, others trusted", folder, "large", ("-n", "900")),
            (f"{few:,} images, all scored", small, "all", ("--candidates", "all")),
        )
        for name, data, cache, options in runs:
            found = select(data, place / cache, place / "trusted.jsonl", *options)
            times = f"scoring after {found.started:.1f} s, ended after {found.seconds:.1f} s"
            pure = "" if wrong is None else f", {purity(found.trusted, wrong):.1%} right"
            print(f"{name}: {times}, peak {found.peak:,.0f} MiB, {len(found.trusted):,} trusted{pure}", flush=True)


if __name__ == "__main__":
    main()
