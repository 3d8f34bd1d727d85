"""How long the stages of a repair take, beside a textbook implementation and beside what the machine allows.

Run it with `make bench`. Every side runs in a process of its own, so that its peak memory is its own, and the sides
take turns. The textbook keeps the im2col rows of all layers (at most 50,000 a layer), decomposes them with
`torch.linalg.svd` in float32, makes dense projections, and copies and validates the model for each alpha.

The floor of a stage is what it has to compute at this machine's own rate: the network's operations for a forward pass,
`n d^2` for the second moment of `n` rows (the symmetric half of all of them), `9 d^3` for a decomposition, at the rate
of a large product. Sampling rows and sharing work between neighbouring patches can go below it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

SHARED = Path(__file__).resolve().parent.parent / ".." / "shared"
CHECKPOINT = SHARED / "checkpoints" / "cifar10_resnet18_half_noisy25.safetensors"
FACTORY = SHARED / "checkpoints" / "cifar_resnet.py"
ARCHIVE = SHARED / "data" / "cifar10_noisy.tar.xz"

RESULT = Path(__file__).resolve().parent.parent / "build" / "speed.json"

ALPHAS = (1000.0, 2000.0, 3000.0, 5000.0, 10000.0)
TEXTBOOK_ROWS = 50_000
TRUSTED = {"shared": 1000}
TRUSTED_AT_224_PIXELS = 64  # of which the textbook's decompositions take minutes


class Stopwatch:
    """The seconds of named stages, and the peak of the process' memory at the end of each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def found(self) -> dict[str, Any]:
        """What was measured, in seconds and MiB."""
        return {"seconds": self.seconds, "peaks": self.peaks}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time until the context is left to the stage."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.peaks[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def network(case: str) -> tuple[nn.Module, tuple[int, int]]:
    """The case's network and its input's size; with random weights but for the shared checkpoint."""
    if case == "shared":
        from safetensors.torch import load_file

        sys.path.insert(0, str(FACTORY.parent))
        import cifar_resnet  # type: ignore[import-not-found]

        module: nn.Module = cifar_resnet.resnet18_half()
        module.load_state_dict(load_file(CHECKPOINT))
        return module.eval(), (32, 32)
    import timm

    torch.manual_seed(0)
    return timm.create_model(case, num_classes=10).eval(), (224, 224)


def batches(count: int, size: tuple[int, int], device: torch.device) -> list[Tensor]:
    """Generated images, smooth as photographs are, in batches of the usual size, float32 `[n, 3, H, W]`."""
    from sapcli.device import usual_batch_size

    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    return [
        nn.functional.interpolate(part, size, mode="bilinear") for part in coarse.split(usual_batch_size(device, *size))
    ]


def ours(case: str, device: torch.device, trusted: int, validation: int) -> dict[str, Any]:
    """Our stages on one case."""
    from sapcli.bases import SecondMoments, full_precision
    from sapcli.device import fast_dtype
    from sapcli.heap import keep_freed_memory
    from sapcli.progress import SilentProgress
    from sapcli.projection import project
    from sapcli.settings import Importance, Precision

    keep_freed_memory()
    module, size = network(case)
    module.to(device)
    dtype = fast_dtype(device, Precision.AUTO, sum(parameter.numel() for parameter in module.parameters()))
    watch = Stopwatch()
    images, held_out = batches(trusted, size, device), batches(validation, size, device)

    def run(images: list[Tensor]) -> None:
        # As `Classifier.forward` does where the outputs need not be exact.
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            for batch in images:
                module(batch.to(device).contiguous(memory_format=torch.channels_last))

    with watch.stage("scoring"):
        run(images)
    moments = SecondMoments(module, trusted)
    with watch.stage("second moments"), full_precision(), moments.capture:
        for batch in images:
            moments.forward(batch.to(device).contiguous(memory_format=torch.channels_last))
    del images, batch  # of which a repair keeps the bytes alone
    with watch.stage("decomposition"):
        pieces = moments.pieces(SilentProgress())
    parameters = dict(module.named_parameters())
    originals = {name: parameters[name].detach().clone() for name in pieces}
    for alpha in ALPHAS[: 5 if validation else 0]:
        with watch.stage("projection"), torch.no_grad():
            for name, of_weight in pieces.items():
                for piece in of_weight:
                    matrices = project(piece.view.matrices(originals[name]), piece.basis, Importance.SAP, alpha)
                    piece.view.replace(parameters[name], matrices)
        with watch.stage("validation"):
            run(held_out)
    rows = [(p.basis.rows, p.view.groups, p.view.row_length) for of_weight in pieces.values() for p in of_weight]
    return watch.found() | {"rows": rows, "weights": len(pieces)}


def textbook(case: str, device: torch.device, trusted: int, validation: int) -> dict[str, Any]:
    """The same, as a textbook would write it: hooks, kept rows, a full SVD, dense projections, deep copies."""
    module, size = network(case)
    module.to(device)
    watch = Stopwatch()
    images, held_out = batches(trusted, size, device), batches(validation, size, device)
    kept: dict[str, list[Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }

    def hook(name: str) -> Callable[..., None]:
        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            (entering,) = inputs
            if isinstance(layer, nn.Conv2d):
                unfolded = nn.functional.unfold(
                    entering,
                    layer.kernel_size,
                    layer.dilation,
                    layer.padding,
                    layer.stride,  # type: ignore[arg-type]
                )
                rows = unfolded.mT.reshape(-1, unfolded.shape[1])
            else:
                rows = entering.reshape(-1, entering.shape[-1])
            share = math.ceil(TEXTBOOK_ROWS * len(entering) / trusted)
            chosen = torch.randperm(len(rows), generator=generator)[:share].to(device)
            kept.setdefault(name, []).append(rows[chosen])

        return keep

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    with watch.stage("second moments"), torch.no_grad():
        for batch in images:
            module(batch.to(device))
        representation = {name: torch.cat(rows) for name, rows in kept.items()}
        kept.clear()
    for handle in hooks:
        handle.remove()
    with watch.stage("scoring"), torch.no_grad():
        for batch in images:
            module(batch.to(device))
    spectra = {}
    with watch.stage("decomposition"):
        for name, rows in representation.items():
            _, sigma, right = torch.linalg.svd(rows, full_matrices=False)
            spectra[name] = (sigma, right.mT)
    for alpha in ALPHAS[: 5 if validation else 0]:
        with watch.stage("projection"), torch.no_grad():
            repaired = copy.deepcopy(module)
            for name, (sigma, vectors) in spectra.items():
                share = sigma.square() / sigma.square().sum()
                dense = (vectors * (alpha * share / ((alpha - 1) * share + 1))) @ vectors.mT
                weight = repaired.get_submodule(name).weight
                weight.copy_((weight.flatten(1) @ dense.mT).view_as(weight))  # type: ignore[operator, arg-type]
        with watch.stage("validation"), torch.no_grad():
            for batch in held_out:
                repaired(batch.to(device))
    return watch.found() | {"weights": len(layers)}


def machine(device: torch.device) -> dict[str, float]:
    """The rate of a large float32 product in GFLOP/s, of float64, and the memory's in GB/s: the best of several."""

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
    double = single.double()
    block = torch.empty(1 << 26, device=device)
    return {
        "float32": best(lambda: single @ single, 2.0 * side**3),
        "float64": best(lambda: double @ double, 2.0 * side**3),
        "memory": best(lambda: block.add_(1.0), 2.0 * block.nbytes),
    }


def forward_operations(case: str, count: int) -> int:
    """The network's own operations for `count` images."""
    module, size = network(case)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, *size))
    return int(counter.get_total_flops() * count)


def worker(arguments: argparse.Namespace) -> None:
    """One side of one case, in this process; prints JSON."""
    side = ours if arguments.side == "ours" else textbook
    print(json.dumps(side(arguments.case, torch.device(arguments.device), arguments.trusted, arguments.validation)))


def run_side(side: str, case: str, arguments: argparse.Namespace, trusted: int, validation: int) -> dict[str, Any]:
    """One side of one case, in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--case", case, "--device", arguments.device]
    command += ["--trusted", str(trusted), "--validation", str(validation)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def scoring_from_files(data: Path, device: str) -> dict[str, float]:
    """Images a second of the shared data: only decoded, only run, and both as `sap select` does, on 4,000 images."""
    from sapcli.api import open_session
    from sapcli.heap import keep_freed_memory
    from sapcli.images import Batch

    keep_freed_memory()
    workers = os.cpu_count() or 1
    session = open_session(CHECKPOINT, data, arch=f"{FACTORY}:resnet18_half", device=device, workers=workers)
    chosen = range(0, len(session.training.paths), max(len(session.training.paths) // 4000, 1))
    classifier = session.classifier
    rates: dict[str, float] = {}

    def rate(name: str, action: Callable[[], object]) -> None:
        started = time.perf_counter()
        action()
        rates[name] = max(rates.get(name, 0.0), len(chosen) / (time.perf_counter() - started))

    for _ in range(3):
        decoded: list[Batch] = []
        rate("decoding", lambda decoded=decoded: decoded.extend(session.images(session.training).batches(chosen)))
        rate("network", lambda decoded=decoded: [classifier.logits(b.images, exact=False) for b in decoded])
        rate("both", lambda: session.score(session.images(session.training), "", chosen, exact=False))
    return rates


def whole_commands(data: Path, folder: Path, device: str) -> dict[str, float]:
    """Seconds of `sap project` on the shared checkpoint and data: with a cold cache, and with the bases cached."""
    inputs = [str(CHECKPOINT), str(data), "--arch", f"{FACTORY}:resnet18_half", "--quiet", "--device", device]
    kept = ["--cache-dir", str(folder / "cache"), "-o", str(folder / "repaired.safetensors"), "--force"]
    seconds = {}
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


def report(case: str, found: dict[str, list[dict[str, Any]]], rates: dict[str, float], trusted: int) -> None:
    """Print the table of one case, each stage at the best of its rounds."""

    def best(side: str, stage: str) -> float:
        return min((round_["seconds"].get(stage, math.nan) for round_ in found[side]), default=math.nan)

    rows = found["ours"][0]["rows"]
    moments = sum(groups * count * length**2 for count, groups, length in rows)
    decompositions = sum(9.0 * groups * min(count, length) ** 3 for count, groups, length in rows)
    forward = forward_operations(case, trusted)
    print(f"\n### {case}: {found['ours'][0]['weights']} weights, {trusted} trusted images\n")
    print("| stage | textbook, s | ours, s | times faster | floor, s | ours over floor | GFLOP/s | peak so far, MiB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for stage, operations, rate in (
        ("scoring", forward, rates["float32"]),
        ("second moments", forward + moments, rates["float32"]),
        ("decomposition", decompositions, rates["float64"]),
        ("projection", 0, 1.0),
        ("validation", 0, 1.0),
    ):
        mine, other = best("ours", stage), best("textbook", stage)
        if math.isnan(mine):
            continue
        floor = operations / rate / 1e9
        cells = [f"{other:.2f}", f"{mine:.2f}", f"{other / mine:.1f}"]
        cells += (
            [f"{floor:.2f}", f"{mine / floor:.1f}", f"{operations / mine / 1e9:.0f}"] if operations else ["", "", ""]
        )
        peaks = [max(round_["peaks"].get(stage, 0.0) for round_ in found[side]) for side in found if found[side]]
        print(f"| {stage} | {' | '.join(cells)} | {' / '.join(f'{peak:.0f}' for peak in peaks)} |")
    bases = {side: best(side, "second moments") + best(side, "decomposition") for side in found}
    print(f"\nbases: {bases['ours']:.1f} s, {bases['textbook'] / bases['ours']:.1f} times faster than the textbook")


def growth(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """The seconds and the peak memory of the bases of the shared checkpoint, for four numbers of trusted images."""
    print("\n### shared: more trusted images\n")
    print("| images | second moments, s | decomposition, s | peak, MiB |\n|---:|---:|---:|---:|")
    table = []
    for trusted in (250, 500, 1000, 2000):
        found = run_side("ours", "shared", arguments, trusted, 0)
        seconds, peak = found["seconds"], found["peaks"]["decomposition"]
        table.append({"images": trusted, **seconds, "peak_mib": peak})
        print(f"| {trusted} | {seconds['second moments']:.2f} | {seconds['decomposition']:.2f} | {peak:.0f} |")
    return table


def from_files(arguments: argparse.Namespace, trusted: int, textbook_seconds: dict[str, float]) -> dict[str, Any]:
    """Whole commands on the shared data, beside the textbook's stages with the same decoding."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        data = folder / "cifar10_noisy"
        rates = scoring_from_files(data, arguments.device)
        slower = min(rates["decoding"], rates["network"])
        print("\n### shared: scoring from files\n")
        print(", ".join(f"{part} {rate:.0f} images/s" for part, rate in rates.items()))
        print(f"both take {slower / rates['both']:.2f} times as long as the slower one alone")
        commands = whole_commands(data, folder, arguments.device)
        counted = {split: len(list((data / split).glob("*/*"))) for split in ("train", "val")}
    whole = sum(counted.values()) / rates["decoding"] + sum(
        textbook_seconds[stage] for stage in ("second moments", "decomposition", "projection")
    )
    whole += counted["train"] * textbook_seconds["scoring"] / trusted
    whole += counted["val"] * textbook_seconds["validation"] / arguments.validation
    print(f"\n### shared: whole commands\n\nthe textbook's stages, with our decoding: {whole:.1f} s\n")
    for command, seconds in commands.items():
        print(f"- {command}: {seconds:.1f} s, {whole / seconds:.1f} times faster")
    return {"scoring": rates, "commands": commands, "textbook": whole}


def main() -> None:
    """Measure and print, or run one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=["shared", "resnet50", "vit_base_patch16_224"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trusted", type=int, help="1000 of the shared images and 64 of others by default")
    parser.add_argument("--validation", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ours-only", action="store_true", help="leave out the textbook, which takes long")
    parser.add_argument("--parts", action="store_true", help="only the tables of stages, no whole commands")
    parser.add_argument("--json", type=Path, default=RESULT, help="where to write what was measured")
    parser.add_argument("--side", choices=["ours", "textbook"], help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        worker(arguments)
        return
    rates = machine(torch.device(arguments.device))
    print(", ".join(f"{name} {rate:.0f} {'GB/s' if name == 'memory' else 'GFLOP/s'}" for name, rate in rates.items()))
    measured: dict[str, Any] = {"machine": rates, "torch": torch.__version__, "threads": torch.get_num_threads()}
    for case in arguments.cases:
        if case == "shared" and not CHECKPOINT.exists():
            print("\nthe shared checkpoint is not there: left out")
            continue
        found: dict[str, list[dict[str, Any]]] = {"textbook": [], "ours": []}
        trusted = arguments.trusted or TRUSTED.get(case, TRUSTED_AT_224_PIXELS)
        for _ in range(arguments.rounds):
            for side in found:
                if side == "ours" or not arguments.ours_only:
                    found[side].append(run_side(side, case, arguments, trusted, arguments.validation))
        report(case, found, rates, trusted)
        measured[case] = found
        if case == "shared" and not arguments.parts:
            measured["growth"] = growth(arguments)
            if found["textbook"]:
                measured["files"] = from_files(arguments, trusted, found["textbook"][0]["seconds"])
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
