"""How long the stages of a repair take, beside a textbook implementation and beside what the machine allows.

Run it with `make bench`. Every side runs in a process of its own, so that its peak memory is its own, and the sides
take turns. The textbook keeps the im2col rows of all layers (at most 50,000 a layer), decomposes them with
`torch.linalg.svd` in float32, makes dense projections, and copies and validates the model for each alpha.

The floor of a stage is what it has to compute, at this machine's own rate: the network's operations for a forward pass,
`n d^2` operations for the second moment of `n` rows (its symmetric half), at the rate of a large float32 product.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import resource
import subprocess
import sys
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

ALPHAS = (1000.0, 2000.0, 3000.0, 5000.0, 10000.0)
TEXTBOOK_ROWS = 50_000
TRUSTED = 1000
BATCH = 128


class Stopwatch:
    """The seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time until the context is left to the stage."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


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


def batches(count: int, size: tuple[int, int]) -> list[Tensor]:
    """Generated images, smooth as photographs are, in batches, float32 `[n, 3, H, W]`."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    return [nn.functional.interpolate(part, size, mode="bilinear") for part in coarse.split(BATCH)]


def ours(case: str, device: torch.device, trusted: int, validation: int) -> dict[str, Any]:
    """Our stages on one case."""
    from sapcli.bases import SecondMoments, full_precision
    from sapcli.progress import SilentProgress
    from sapcli.projection import project
    from sapcli.settings import Importance

    module, size = network(case)
    module.to(device)
    watch = Stopwatch()
    images, held_out = batches(trusted, size), batches(validation, size)
    with watch.stage("forward"), torch.inference_mode():
        for batch in images:
            module(batch.to(device))
    moments = SecondMoments(module)
    with watch.stage("second moments"), full_precision(), moments.capture as capture:
        for batch in images:
            capture.forward(batch.to(device))
    with watch.stage("decomposition"):
        pieces = moments.pieces(SilentProgress())
    parameters = dict(module.named_parameters())
    originals = {name: parameters[name].detach().clone() for name in pieces}
    for alpha in ALPHAS:
        with watch.stage("projection"), torch.no_grad():
            for name, of_weight in pieces.items():
                for piece in of_weight:
                    matrices = project(piece.view.matrices(originals[name]), piece.basis, Importance.SAP, alpha)
                    piece.view.replace(parameters[name], matrices)
        with watch.stage("validation"), torch.inference_mode():
            for batch in held_out:
                module(batch.to(device))
    rows = [(p.basis.rows, p.view.groups, p.view.row_length) for of_weight in pieces.values() for p in of_weight]
    return {"seconds": watch.seconds, "rows": rows, "weights": len(pieces)}


def textbook(case: str, device: torch.device, trusted: int, validation: int) -> dict[str, Any]:
    """The same, as a textbook would write it: hooks, kept rows, a full SVD, dense projections, deep copies."""
    module, size = network(case)
    module.to(device)
    watch = Stopwatch()
    images, held_out = batches(trusted, size), batches(validation, size)
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
    spectra = {}
    with watch.stage("decomposition"):
        for name, rows in representation.items():
            _, sigma, right = torch.linalg.svd(rows, full_matrices=False)
            spectra[name] = (sigma, right.mT)
    for alpha in ALPHAS:
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
    return {"seconds": watch.seconds, "weights": len(layers)}


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
    device = torch.device(arguments.device)
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    side = ours if arguments.side == "ours" else textbook
    found = side(arguments.case, device, arguments.trusted, arguments.validation)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(found | {"peak_mib": peak / 1024, "import_mib": baseline / 1024}))


def run_side(side: str, case: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One side of one case, in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--case", case, "--device", arguments.device]
    command += ["--trusted", str(arguments.trusted), "--validation", str(arguments.validation)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def whole_commands(folder: Path) -> dict[str, float]:
    """`sap project` on the shared checkpoint and data: with a cold cache, and with the bases cached and one alpha."""
    subprocess.run(["tar", "-xf", ARCHIVE, "-C", folder], check=True)
    common = [sys.executable, "-m", "sapcli"]
    inputs = [str(CHECKPOINT), str(folder / "cifar10_noisy"), "--arch", f"{FACTORY}:resnet18_half", "--quiet"]
    cached = ["--cache-dir", str(folder / "cache"), "-o", str(folder / "repaired.safetensors"), "--force"]
    seconds = {}
    for name, more in {
        "select": None,
        "project, cold, --alpha auto": [],
        "project, bases cached, one alpha": ["--alpha", "3000", "--batchnorm", "keep"],
    }.items():
        if more is None:
            command = [*common, "select", *inputs, "--cache-dir", str(folder / "other"), "-o", str(folder / "trusted")]
        else:
            command = [*common, "project", *inputs, *cached, *more]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds[name] = time.perf_counter() - started
    return seconds


def report(case: str, found: dict[str, list[dict[str, Any]]], rates: dict[str, float], trusted: int) -> None:
    """Print the table of one case, each stage at the best of its rounds."""

    def best(side: str, stage: str) -> float:
        return min(round_["seconds"].get(stage, math.nan) for round_ in found[side])

    rows = found["ours"][0]["rows"]
    moments = sum(groups * count * length**2 for count, groups, length in rows)
    forward = forward_operations(case, trusted)
    print(f"\n### {case}: {found['ours'][0]['weights']} weights, {trusted} trusted images\n")
    print("| stage | textbook, s | ours, s | times faster | floor, s | ours over floor | GFLOP/s |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for stage, operations in (
        ("forward", forward),
        ("second moments", forward + moments),
        ("decomposition", 0),
        ("projection", 0),
        ("validation", 0),
    ):
        mine = best("ours", stage)
        other = math.nan if stage == "forward" else best("textbook", stage)
        cells = [f"{other:.2f}", f"{mine:.2f}", f"{other / mine:.1f}"]
        floor = operations / rates["float32"] / 1e9
        cells += (
            [f"{floor:.2f}", f"{mine / floor:.1f}", f"{operations / mine / 1e9:.0f}"] if operations else ["", "", ""]
        )
        print(f"| {stage} | {' | '.join(cells)} |")
    for side in ("textbook", "ours"):
        print(f"\npeak memory, {side}: {max(round_['peak_mib'] for round_ in found[side]):.0f} MiB")


def main() -> None:
    """Measure and print, or run one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=["shared", "resnet50", "vit_base_patch16_224"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trusted", type=int, default=TRUSTED)
    parser.add_argument("--validation", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--commands", action="store_true", help="also time whole commands on the shared data")
    parser.add_argument("--json", type=Path, help="write what was measured to this file too")
    parser.add_argument("--side", choices=["ours", "textbook"], help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        worker(arguments)
        return
    rates = machine(torch.device(arguments.device))
    print(", ".join(f"{name} {rate:.0f} {'GB/s' if name == 'memory' else 'GFLOP/s'}" for name, rate in rates.items()))
    measured: dict[str, Any] = {"machine": rates}
    for case in arguments.cases:
        if case == "shared" and not CHECKPOINT.exists():
            print("\nthe shared checkpoint is not there: left out")
            continue
        found: dict[str, list[dict[str, Any]]] = {"ours": [], "textbook": []}
        for _ in range(arguments.rounds):
            for side in found:
                found[side].append(run_side(side, case, arguments))
        report(case, found, rates, arguments.trusted)
        measured[case] = found
    if arguments.commands and ARCHIVE.exists():
        with tempfile.TemporaryDirectory() as folder:
            measured["commands"] = whole_commands(Path(folder))
        for name, seconds in measured["commands"].items():
            print(f"\n{name}: {seconds:.1f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
