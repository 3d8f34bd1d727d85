"""Every kind of network that timm and torchvision have: which weights a repair projects, and that it works.

One network of every timm family, the smallest but for timm's own test models, and every classification builder of
torchvision, with random weights, on a few random images as small as the network takes. For each:

- the share of its weights of two or more dimensions that are projected, and why the others are not;
- with all directions kept, the outputs are as before;
- with alpha 100, the corrected file loads strictly and differs.

    python -m benchmarks.architectures

Progress is kept in `build/architectures.json`, so that an interrupted run goes on where it was; the table goes to
`docs/architectures.md`. The exit status is 1 if a network fails, or too few weights are projected.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn

from sapcli.activations.bases import Bases, SecondMoments
from sapcli.activations.scoring import Classifier
from sapcli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sapcli.checkpoints.saving import write_checkpoint, write_safetensors
from sapcli.errors import ArchitectureError
from sapcli.machine.device import full_precision
from sapcli.machine.progress import SilentProgress
from sapcli.networks.architecture import Architecture, load_model, resolve_architecture
from sapcli.networks.factories import find_factory
from sapcli.repairs.correction import Correction
from sapcli.repairs.layer_plan import LayerPlan
from sapcli.repairs.projected_weights import ProjectedWeights
from sapcli.settings import Importance, PreprocessingOverrides

ROOT = Path(__file__).parent.parent
FAMILIES = Path(__file__).with_name("families.json")
PROGRESS = ROOT / "build" / "architectures.json"
TABLE = ROOT / "docs" / "architectures.md"

# Some networks need a certain size, or one that all their strides divide.
SIDES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448)
IMAGES = 4
CLASSES = 10
SECONDS_A_NETWORK = 1500
NETWORKS_A_PROCESS = 8
# Of the outputs' largest value; float32 has seven digits, and a deep network loses some of them.
TOLERANCE = 1e-3
REQUIRED_SHARE = 0.99
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Result:
    """What became of one network.

    Attributes:
        name: Its architecture.
        side: The height and width of its images.
        parameters: The number of its parameters.
        projected: How many weights of two or more dimensions are projected.
        others: For each reason, the weights of two or more dimensions that are not.
        missed: Of those, the weights that multiply activations as they are stored.
        transformed: Of those, the weights of which something else is made first, which then multiplies activations.
        kept_error: How far the outputs are from before when all directions are kept, of their largest value.
        change: How far the outputs of the corrected file are from before.
        problem: What failed; None where all went well.
    """

    name: str
    side: int = 0
    parameters: int = 0
    projected: int = 0
    others: Mapping[str, Sequence[str]] | None = None
    missed: Sequence[str] = ()
    transformed: Sequence[str] = ()
    kept_error: float = 0.0
    change: float = 0.0
    problem: str | None = None


def measure(name: str) -> Result:
    """Put one architecture through both checks.

    Raises:
        Exception: Whatever goes wrong.
    """
    network, arguments, side = build(name)
    images = correlated_images(IMAGES, side)
    with tempfile.TemporaryDirectory() as folder:
        path, corrected = Path(folder) / "model.safetensors", Path(folder) / "corrected.safetensors"
        write_safetensors(path, network.state_dict())
        del network
        checkpoint = open_checkpoint(path)
        overrides = PreprocessingOverrides(input_size=(3, side, side), mean=(0.5,), std=(0.5,))
        architecture = resolve_architecture(checkpoint, name, arguments, overrides)
        classifier = Classifier(load_model(checkpoint, architecture, CPU), architecture, CPU)
        before = outputs(classifier, images)

        moments = SecondMoments(classifier.module)
        with full_precision(), moments.capture as capture:
            watched = capture.forward(images)
        require_close(watched, before, "watching the network changes its outputs")
        skipped = moments.skipped()
        transformed = [weight for weight in skipped if capture.usages[weight].transformed_by]
        missed = [weight for weight in moments.counts() if weight in skipped and weight not in transformed]
        bases = Bases(moments.pieces(SilentProgress()), skipped, checkpoint="", samples="")
        plan = LayerPlan(tuple(bases.pieces), skipped)

        # The fraction 1 of the energy: every direction that the images have is kept whole.
        names = classifier.loaded.entry_names
        every = ProjectedWeights(checkpoint, names, bases, Importance.GPM, CPU)
        Correction(classifier, every, plan).apply(1.0)
        kept_error = require_close(outputs(classifier, images), before, "keeping all directions changes the outputs")
        correction = Correction(classifier, ProjectedWeights(checkpoint, names, bases, Importance.SAP, CPU), plan)
        correction.apply(100.0)
        repaired = outputs(classifier, images)
        write_checkpoint(checkpoint, corrected, correction.replacements(100.0), {})
        del classifier, correction, moments, capture, bases
        reloaded = load_strictly(corrected, architecture)
        again = outputs(reloaded, images)
        require_close(again, repaired, "the corrected file is not the network that was tried")
        require_difference(checkpoint, open_checkpoint(corrected))

    reasons: dict[str, list[str]] = {}
    for weight, reason in skipped.items():
        reasons.setdefault(reason, []).append(weight)
    return Result(
        name,
        side,
        sum(parameter.numel() for parameter in reloaded.module.parameters()),
        len(plan.projected),
        reasons,
        missed,
        transformed,
        kept_error,
        distance(again, before),
    )


def build(name: str) -> tuple[nn.Module, dict[str, object], int]:
    """The network with random weights, its factory's arguments, and the smallest side of images that it takes."""
    factory = find_factory(name)
    classes: dict[str, object] = {"num_classes": CLASSES}  # some have no classifier unless they are told
    network = factory.build(classes)
    size_option = next((option for option in ("img_size", "image_size") if option in factory.options_of(network)), None)
    problem: Exception | None = None
    for side in SIDES:
        attempts: list[dict[str, object]] = [{size_option: side}, {}] if size_option else [{}]
        for arguments in attempts:
            try:
                if arguments:
                    network = factory.build(classes | arguments)
                with torch.inference_mode():
                    network(correlated_images(2, side))
            except Exception as error:  # what a network raises for images that it does not take, nobody can foresee
                problem = error
                continue
            randomise(network)
            return network, arguments, side
        if size_option:
            network = factory.build(classes)
    raise RuntimeError(f"no image size from {SIDES[0]} to {SIDES[-1]} fits") from problem


def randomise(network: nn.Module) -> None:
    """Random values in every tensor, so scaled that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if tensor.dim() >= 2:
            bound = (3 * tensor.shape[0] / tensor.numel()) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
        elif name.endswith(("weight", "running_var")) or tensor.any():
            # Scales: some begin as nearly nothing, and would hide what comes before them.
            tensor.normal_(1.0, 0.1, generator=generator).abs_()
        else:
            tensor.normal_(0.0, 0.02, generator=generator)


def correlated_images(count: int, side: int) -> Tensor:
    """Smooth random images `[count, 3, side, side]` with some noise: few directions hold most of their energy."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return smooth + 0.1 * torch.randn(smooth.shape, generator=generator)


def outputs(classifier: Classifier, images: Tensor) -> Tensor:
    """The network's logits."""
    with torch.inference_mode():
        return classifier.check_output(classifier.module(images), len(images))


def load_strictly(path: Path, architecture: Architecture) -> Classifier:
    """The network of a file, every tensor of which must fit."""
    return Classifier(load_model(open_checkpoint(path), architecture, CPU), architecture, CPU)


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


def require_close(found: Tensor, expected: Tensor, problem: str) -> float:
    """The distance, which must be within the tolerance."""
    error = distance(found, expected)
    if not error <= TOLERANCE:
        raise RuntimeError(f"{problem}: by {error:.1e}")
    return error


def require_difference(before: Checkpoint, after: Checkpoint) -> None:
    """Make sure that two files have the same tensors with other values."""
    if list(before.entries.values()) != list(after.entries.values()):
        raise RuntimeError("the corrected file has other tensors")
    if all(torch.equal(before.read(name), after.read(name)) for name in before.entries):
        raise RuntimeError("the corrected file does not differ")


def smallest_of_families() -> dict[str, str]:
    """The architecture of every timm family with the fewest parameters; looked for anew for another timm."""
    if FAMILIES.exists():
        known = json.loads(FAMILIES.read_text())
        if known["timm"] == timm.__version__:
            return dict(known["families"])
    families = {}
    for family in sorted(timm.list_modules()):
        sizes = {}
        for name in timm.list_models(module=family):
            if not name.startswith("test_"):
                network = find_factory(f"timm:{name}").outline({})
                sizes[name] = sum(parameter.numel() for parameter in network.parameters())
        if sizes:
            families[family] = f"timm:{min(sizes, key=lambda name: (sizes[name], name))}"
            sys.stderr.write(f"{family}: {families[family]} of {len(sizes)}\n")
    FAMILIES.write_text(json.dumps({"timm": timm.__version__, "families": families}, indent=2) + "\n")
    return families


def torchvision_builders() -> list[str]:
    """Every classification builder of torchvision."""
    return [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError when the block takes longer, in seconds of the processor, however busy it is otherwise."""

    def stop(_number: int, _frame: object) -> None:
        raise TimeoutError(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def measured_or_failed(name: str) -> tuple[Result, float]:
    """The result, and how many seconds it took; a failure is one too."""
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    try:
        with time_limit(SECONDS_A_NETWORK):
            result = measure(name)
    except ArchitectureError as error:
        result = Result(name, problem=error.message)
    except Exception as error:  # one network's failure is a row of the table and must not end the run
        result = Result(name, problem=f"{type(error).__name__}: {error}")
    return result, time.perf_counter() - started


def in_other_processes(names: Sequence[str]) -> Iterator[tuple[Result, float]]:
    """The result of each, a few from the same process: what PyTorch keeps of a network grows to gigabytes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "torchvision"])
    with context.Pool(1, maxtasksperchild=NETWORKS_A_PROCESS) as pool:
        yield from pool.imap(measured_or_failed, names)


def render(families: Mapping[str, str], results: Mapping[str, Result]) -> str:
    """The table as Markdown."""
    ordered = [results[name] for name in (*families.values(), *torchvision_builders())]
    builders = len(ordered) - len(families)
    projected, missed, transformed = totals(ordered)
    met = projected + missed
    untouched = sum(len(names) for result in ordered for names in (result.others or {}).values()) - missed - transformed
    failed = ", ".join(result.name for result in ordered if result.problem) or "none"
    lines = [
        f"""\
# Which weights are projected, architecture by architecture

`make architectures` makes this table: one network of every timm family, the smallest, and every classification
builder of torchvision, with random weights, on {IMAGES} random images as small as the network takes. Here it is
timm {timm.__version__} with {len(families)} families, torchvision {torchvision.__version__} with {builders} builders,
and PyTorch {torch.__version__}.

- {projected:,} of the {met:,} weights of two or more dimensions that multiply activations are projected,
  {projected / max(met, 1):.2%}.
- {transformed:,} are made into something else, which then multiplies activations; they stay as they are.
- {untouched:,} multiply no activations (position tables, class tokens, layer scales); they stay as they are.
- Failed: {failed}.
- Kept: the largest change of an output, as a part of the largest output, when every direction of the images is
  kept; up to {TOLERANCE:g} passes.
- Changed: the same for the file that was written with alpha 100 and then loaded strictly.

| family | architecture | image | projected | kept | changed | not projected |
|---|---|---:|---:|---:|---:|---|"""
    ]
    kinds = [*families, *["torchvision"] * len(torchvision_builders())]
    for family, result in zip(kinds, ordered, strict=True):
        total = result.projected + sum(len(names) for names in (result.others or {}).values())
        reasons = "; ".join(
            f"{len(names)} {reason}: {', '.join(sorted(kinds_of(names)))}"
            for reason, names in (result.others or {}).items()
        )
        lines.append(
            f"| {family} | {result.name} | {result.side} | {result.projected}/{total} | {result.kept_error:.0e} |"
            f" {result.change:.2f} | {result.problem or reasons} |"
        )
    return "\n".join(lines) + "\n"


def totals(results: Iterable[Result]) -> tuple[int, int, int]:
    """How many weights are projected, missed, and transformed, of all results."""
    counts = [(result.projected, len(result.missed), len(result.transformed)) for result in results]
    projected, missed, transformed = (sum(column) for column in zip(*counts, strict=True))
    return projected, missed, transformed


def kinds_of(names: Sequence[str]) -> list[str]:
    """The names with their numbers replaced, each once: `blocks.0.gamma` and `blocks.1.gamma` are `blocks.*.gamma`."""
    return list(Counter(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names))


def main() -> int:
    """Measure what has not been measured yet, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these, on the terminal instead of in the table")
    parser.add_argument("--anew", action="store_true", help="forget what was measured before")
    chosen = parser.parse_args()
    families = smallest_of_families()
    versions = f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}"
    done: dict[str, dict[str, object]] = {}
    if PROGRESS.exists() and not chosen.anew and not chosen.names:
        kept = json.loads(PROGRESS.read_text())
        done = kept["results"] if kept["versions"] == versions else {}
    waiting = [name for name in chosen.names or (*families.values(), *torchvision_builders()) if name not in done]
    for result, seconds in in_other_processes(waiting):
        done[result.name] = asdict(result)
        sys.stderr.write(f"{result.name}: {result.problem or result.projected} ({seconds:.1f} s)\n")
        if chosen.names:
            sys.stderr.write(json.dumps(asdict(result), indent=2) + "\n")
            continue
        PROGRESS.parent.mkdir(exist_ok=True)
        PROGRESS.write_text(json.dumps({"versions": versions, "results": done}, indent=1))
    results = {name: Result(**values) for name, values in done.items()}  # type: ignore[arg-type]
    if not chosen.names:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(render(families, results))
    projected, missed, _ = totals(results.values())
    failed = any(result.problem for result in results.values())
    return int(failed or projected < REQUIRED_SHARE * (projected + missed))


if __name__ == "__main__":
    sys.exit(main())
