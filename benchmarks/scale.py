"""A repair by 1, 2 and 4 processes: whether they give the same, what they hand each other, who does how much of it.

    python -m benchmarks.scale [--images N]
    python -m benchmarks.scale --predict [--rates RATES.json]

The first runs the shared checkpoint on a part of its data in gloo processes of this machine. The second computes what
1, 8 and 64 GPUs would take on 1, 10 and 100 million images, from the rates that `--measure` prints on one, else from
assumed ones.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.stages import CHECKPOINT, FACTORY, SHARED

ROOT = Path(__file__).parents[1]
WORLDS = (1, 2, 4)
# What the table assumes beside the measured rates.
DECODED_A_CORE = 250
"""JPEG files of ImageNet's size that a core decodes and resizes in a second."""
CORES_A_GPU = 16
ASSUMED = {
    "scoring": 2500.0,
    "capturing": 300.0,
    # 2.5e-11 seconds for each of the d^3 of all second moments of a ResNet50, and of its largest.
    "decomposing": 408.1e9 * 2.5e-11,
    "largest": 97.8e9 * 2.5e-11,
    "moments": 997.1e6,
}
"""The rates of an H100 on a ResNet50 at 224 pixels: images a second, and seconds; assumed, until `--measure` says."""
LINK_BYTES = 25e9
"""Bytes a second between two machines; within one it is more."""


def work(data: Path, output: Path) -> None:
    """One process' part of a repair; the first one writes what was found."""
    import torch

    from sapcli.checkpoints.checkpoint import open_checkpoint
    from sapcli.machine.cache import Cache
    from sapcli.machine.parallel.joining import join, leave
    from sapcli.machine.parallel.shared_cache import SharedCache
    from sapcli.machine.progress import SilentProgress
    from sapcli.repairs.pipeline import run_repair
    from sapcli.repairs.session import Session
    from sapcli.settings import DataSource, ModelSource, ProjectionSettings, RunSettings, SelectionSettings

    device = torch.device("cpu")
    ranks, progress = join(device), SilentProgress()
    folder = output / "cache"
    cache = Cache(folder, progress) if ranks.world == 1 else SharedCache(folder, progress, ranks)
    model = ModelSource(f"{FACTORY}:resnet18_half")
    session = Session(
        open_checkpoint(str(CHECKPOINT)), DataSource(data), RunSettings(device), progress, cache, model, ranks=ranks
    )
    began = time.perf_counter()
    with torch.no_grad():
        trusted = session.select(SelectionSettings(300))
        scored = ranks.work["images"]
        samples = session.trusted_samples(trusted)
        bases = session.bases(samples)
        repair, correction = run_repair(session, ProjectionSettings(), bases, samples)
    seconds = time.perf_counter() - began
    weights = sum(piece.view.groups * piece.view.row_length**2 * 8 for of in bases.pieces.values() for piece in of)
    mine = {"scored": scored, "decomposition": ranks.work["decomposition"], "moved": dict(ranks.moved)}
    everyone = ranks.together(lambda: mine)
    if ranks.is_first:
        found = {
            "trusted": trusted.digest,
            "alpha": repair.choice.alpha,
            "seconds": seconds,
            "moments": weights,
            "ranks": everyone,
        }
        (output / "found.json").write_text(json.dumps(found))
        alpha = repair.choice.alpha
        torch.save({} if alpha is None else dict(correction.replacements(alpha)), output / "weights.pt")
    leave()


def run(world: int, data: Path, output: Path) -> dict[str, object]:
    """What so many processes find."""
    output.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        several = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | (several if world > 1 else {})
        command = [sys.executable, "-m", "benchmarks.scale", "--work", str(data), str(output)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    assert not any(process.wait() for process in processes), "a process failed"
    found: dict[str, object] = json.loads((output / "found.json").read_text())
    return found


def compare(images: int) -> None:
    """The table of 1, 2 and 4 processes."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        data = part_of_data(Path(folder) / "data", images)
        print("| processes | trusted, alpha | weights | scored, most over even | decomposed, most over even | moved |")
        print("|---:|---|---:|---:|---:|---:|")
        first: dict[str, object] = {}
        for world in WORLDS:
            output = Path(folder) / str(world)
            found = run(world, data, output)
            first = first or found
            weights = [torch.load(Path(folder) / str(number) / "weights.pt") for number in (1, world)]
            assert weights[0].keys() == weights[1].keys()
            apart = max(
                float((weights[1][name].double() - tensor.double()).norm() / tensor.double().norm().clamp_min(1e-30))
                for name, tensor in weights[0].items()
            )
            same = found["trusted"] == first["trusted"] and found["alpha"] == first["alpha"]
            ranks = found["ranks"]
            assert isinstance(ranks, list)
            over = []
            for what in ("scored", "decomposition"):
                amounts = [rank[what] for rank in ranks]
                over.append(f"{100 * (max(amounts) * world / max(sum(amounts), 1) - 1):.1f}%" if world > 1 else "")
            moved = max(sum(amount for what, amount in rank["moved"].items() if what != "BatchNorm") for rank in ranks)
            share = f"{moved / int(str(found['moments'])):.2f}" if world > 1 else ""
            print(f"| {world} | {'the same' if same else 'others'} | {apart:.1e} | {over[0]} | {over[1]} | {share} |")


def part_of_data(folder: Path, images: int) -> Path:
    """So many training images of the shared data, and a quarter as many to choose alpha on."""
    import tarfile

    wanted = {"train": images, "val": images // 4}
    counts: dict[str, int] = {}
    with tarfile.open(SHARED / "data" / "cifar10_noisy.tar.xz") as archive:
        for member in archive:
            split, _, _ = member.name.removeprefix("cifar10_noisy/").partition("/")
            of_class = member.name.rpartition("/")[0]
            counts[of_class] = counts.get(of_class, 0) + member.isfile()
            if member.isfile() and split in wanted and counts[of_class] <= wanted[split] // 10:
                archive.extract(member, folder, filter="data")
    return folder / "cifar10_noisy"


def measure() -> dict[str, float]:
    """The rates of a GPU on a ResNet50 at 224 pixels: scoring, capturing, decomposing."""
    import timm
    import torch

    from sapcli.activations.bases import SecondMoments
    from sapcli.machine.progress import SilentProgress

    device = torch.device("cuda")
    module = timm.create_model("resnet50").eval().to(device)
    images = torch.randint(0, 256, (256, 3, 224, 224), dtype=torch.uint8).pin_memory()

    def score() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            inputs = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            module(inputs.float() / 255).argmax(dim=1).cpu()

    for _ in range(5):
        score()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(40):
        score()
    torch.cuda.synchronize()
    scoring = 40 * len(images) / (time.perf_counter() - began)
    moments = SecondMoments(module, 1000)
    captured = 0
    for number in range(9):
        if number == 1:  # the first batch makes the sums
            torch.cuda.synchronize()
            began = time.perf_counter()
        with moments.capture:
            moments.forward(torch.rand(64, 3, 224, 224, device=device))
        captured += 64 if number else 0
    torch.cuda.synchronize()
    capturing = captured / (time.perf_counter() - began)
    sizes = [view.groups * view.row_length**2 * 8 for views in moments.views().values() for view in views]
    began = time.perf_counter()
    pieces = moments.pieces(SilentProgress())
    torch.cuda.synchronize()
    decomposing = time.perf_counter() - began
    costs = sum(piece.view.groups * piece.view.row_length**3 for of in pieces.values() for piece in of)
    largest = max(piece.view.row_length**3 for of in pieces.values() for piece in of)
    return {
        "scoring": scoring,
        "capturing": capturing,
        "decomposing": decomposing,
        "largest": decomposing * largest / costs,
        "moments": float(sum(sizes)),
    }


def predict(rates: dict[str, float]) -> None:
    """What a repair, and a list of suspects, of very many images would take; in minutes."""
    print("| images | GPUs | repair, 20 a sample scored | repair, all scored | suspects |")
    print("|---:|---:|---:|---:|---:|")
    for images in (1_000_000, 10_000_000, 100_000_000):
        for gpus in (1, 8, 64):
            rate = min(rates["scoring"], DECODED_A_CORE * CORES_A_GPU) * gpus
            fixed = (
                1000 / rates["capturing"] / min(gpus, 16)
                + max(rates["decomposing"] / gpus, rates["largest"])
                + 1.5 * rates["moments"] / LINK_BYTES * (gpus > 1)
                # 2,000 images for BatchNorm and 5,000 to validate on for the choice, a sixth of it for ten first looks.
                + (7000 + 10 * 1256) / rate
            )
            cells = [(20_000 / rate + fixed) / 60, (images / rate + fixed) / 60, images / rate / 60]
            print(f"| {images:,} | {gpus} | {' | '.join(f'{cell:,.1f}' for cell in cells)} |")


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--rates", type=Path)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--work", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
    elif arguments.measure:
        print(json.dumps(measure()))
    elif arguments.predict:
        predict(ASSUMED if arguments.rates is None else json.loads(arguments.rates.read_text()))
    else:
        compare(arguments.images)


if __name__ == "__main__":
    main()
