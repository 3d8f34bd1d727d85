"""The stages of a repair on one network, ours and a textbook's: a process that measures one side and prints JSON.

The textbook does what the paper writes and published code does: it keeps the im2col rows of all layers, at most 50,000
a layer, puts them side by side as columns, decomposes that matrix with `torch.linalg.svd` in float32, makes dense
projections, and copies and validates the model for each alpha. LAPACK takes three times as long for a wide matrix as
for the same one upright, so the upright ones are decomposed too, and timed apart: a careful reader would do that.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHARED = Path(__file__).resolve().parent.parent / ".." / "shared"
CHECKPOINT = SHARED / "checkpoints" / "cifar10_resnet18_half_noisy25.safetensors"
FACTORY = SHARED / "checkpoints" / "cifar_resnet.py"

ALPHAS = (1000.0, 2000.0, 3000.0, 5000.0, 10000.0)
TEXTBOOK_ROWS = 50_000


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
    from sapcli.machine.device import usual_batch_size

    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    return [
        nn.functional.interpolate(part, size, mode="bilinear") for part in coarse.split(usual_batch_size(device, *size))
    ]


def ours(case: str, device: torch.device, trusted: int, validation: int) -> dict[str, Any]:
    """Our stages on one case."""
    from sapcli.activations.bases import Bases, SecondMoments
    from sapcli.machine.device import fast_dtype, full_precision
    from sapcli.machine.heap import keep_freed_memory
    from sapcli.machine.progress import SilentProgress
    from sapcli.repairs.projected_weights import KeptTensors, projected_weight
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
            for half in batch.chunk(2):
                moments.forward(half.to(device).contiguous(memory_format=torch.channels_last))
    del images, batch, half  # of which a repair keeps the bytes alone
    with watch.stage("decomposition"):
        bases = Bases(moments.pieces(SilentProgress()), {}, "", "")
    parameters = dict(module.named_parameters())
    originals = {name: parameters[name].detach().clone() for name in bases.pieces}
    coordinates = KeptTensors(1 << 30)
    for alpha in ALPHAS[: 5 if validation else 0]:
        with watch.stage("projection"), torch.no_grad():
            for name, original in originals.items():
                repaired = projected_weight(
                    name, original.clone(), bases, Importance.SAP, alpha, kept_coordinates=coordinates
                )
                parameters[name].copy_(repaired)
        with watch.stage("validation"):
            run(held_out)
    sizes = [
        (piece.basis.rows, piece.view.groups, piece.view.outputs, piece.view.row_length)
        for of_weight in bases.pieces.values()
        for piece in of_weight
    ]
    return watch.found() | {"sizes": sizes, "weights": len(bases.pieces), "fast": str(dtype or torch.float32)}


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
        representation = {name: torch.cat(rows).mT for name, rows in kept.items()}
        kept.clear()
    for handle in hooks:
        handle.remove()
    with watch.stage("scoring"), torch.no_grad():
        for batch in images:
            module(batch.to(device))
    spectra = {}
    with watch.stage("decomposition"):
        for name, columns in representation.items():
            vectors, sigma, _ = torch.linalg.svd(columns, full_matrices=False)
            spectra[name] = (sigma, vectors)
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
    with watch.stage("decomposition of the transposed"):
        for columns in representation.values():
            torch.linalg.svd(columns.mT, full_matrices=False)
    return watch.found() | {"weights": len(layers)}


SIDES = {"textbook": textbook, "ours": ours}


def main() -> None:
    """Measure one side of one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("case", help="shared, or the name of a timm model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trusted", type=int, default=1000, help="how many images the bases are made of")
    parser.add_argument("--validation", type=int, default=256, help="how many each of five alphas is validated on")
    arguments = parser.parse_args()
    measure = SIDES[arguments.side]
    found = measure(arguments.case, torch.device(arguments.device), arguments.trusted, arguments.validation)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
