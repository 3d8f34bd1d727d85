"""How long a repair takes and how much memory it needs: operations counted on one small batch, rates measured here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701
from torch.utils._pytree import tree_leaves  # noqa: PLC2701
from torch.utils.flop_counter import FlopCounterMode

from sapcli.activations.moments import is_decomposed_in_float32, sampled_share
from sapcli.activations.rows import WeightView
from sapcli.activations.scoring import Classifier
from sapcli.machine.device import float64_device, usual_batch_size
from sapcli.repairs.alpha_search import FIRST_LOOK
from sapcli.repairs.batchnorm import FEW_BATCHNORM_IMAGES

# A symmetric eigendecomposition with vectors takes about 9 d^3 operations (Golub and Van Loan, section 8.3).
_EIGH_OPERATIONS = 9
# A rate is that of a batch with so many operations, or else of a full one.
_OPERATIONS_THAT_KEEP_BUSY = {"cpu": 4e9, "gpu": 4e11}
_RUNS = 2, 10
_ENOUGH_SECONDS = 0.5
_PRODUCT_SIDE = 1024
_EIGH_SIDE, _LARGE_EIGH_SIDE = 512, 1024


@dataclass(frozen=True)
class Workload:
    """What a repair runs, in numbers of images and of weights that are tried.

    Attributes:
        scored: Images that the trusted samples are chosen from; 0 where they are given.
        trusted: Trusted images.
        captured: Whether their activations are captured; not where the bases are given.
        judged: Images that every trial is judged on.
        trials: Values of alpha that are judged on all of these.
        batchnorm: Images that BatchNorm is re-estimated on in every trial.
        batch_size: Images at a time; as many as usual where `None`.
        looks: Values of alpha that a part of the images takes a first look at.
        all_rows: Whether all rows are summed, also where a part of them is enough.
        compared: Images on which the repaired network is compared with the one as it was, without validation images.
    """

    scored: int
    trusted: int
    captured: bool
    judged: int
    trials: int
    batchnorm: int
    batch_size: int | None
    looks: int = 0
    all_rows: bool = False
    compared: int = 0

    @property
    def judging(self) -> int:
        """The images that run in order to choose alpha, the unchanged model's too."""
        looked_at = self.looks * (FIRST_LOOK + min(self.batchnorm, FEW_BATCHNORM_IMAGES))
        return looked_at + (self.trials + 1) * self.judged + self.trials * self.batchnorm + self.compared


@dataclass(frozen=True)
class Rates:
    """What this machine does a second, measured just now.

    Attributes:
        forward: Operations of the network's own forward pass.
        products: Operations of a float32 matrix product.
        decompositions: Operations of a float64 eigendecomposition.
        large_decompositions: Operations of a float32 one of a large matrix; 0 where there are none.
    """

    forward: float
    products: float
    decompositions: float
    large_decompositions: float

    @property
    def measured(self) -> dict[str, float]:
        """Those that were needed, by what they are of."""
        return {name.replace("_", " "): rate for name, rate in asdict(self).items() if rate}


@dataclass(frozen=True)
class Network:
    """What one image costs in a network.

    Attributes:
        operations: Multiplications and additions of a forward pass.
        activation_bytes: The inputs and outputs of the operator that has the most of them.
        parameter_bytes: All parameters and buffers; no image's.
    """

    operations: int
    activation_bytes: int
    parameter_bytes: int


@dataclass(frozen=True)
class Stage:
    """A part of the repair: its operations, and the seconds that they take at the measured rate."""

    name: str
    operations: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a repair takes; reading and decoding images comes on top.

    Attributes:
        device: Where it runs.
        workload: What was assumed to be run.
        rates: What the operations were divided by.
        stages: The parts in order.
        memory_bytes: The most that is in memory at a time, on the device, of tensors that can be counted in advance.
    """

    device: str
    workload: Workload
    rates: Rates
    stages: tuple[Stage, ...]
    memory_bytes: int

    @property
    def seconds(self) -> float:
        """All stages together."""
        return sum(stage.seconds for stage in self.stages)


def estimate(
    classifier: Classifier, rows: Mapping[str, Mapping[WeightView, float]], images: Tensor, workload: Workload
) -> Estimate:
    """Estimate a repair.

    Args:
        classifier: The network.
        rows: Of every projected weight, the rows that each of its windows multiplies per image, in each group.
        images: One or a few normalised images `[n, C, H, W]` on the network's device.
        workload: What is to be run.
    """
    network = _measure_network(classifier, images)
    batch_size = workload.batch_size or usual_batch_size(classifier.device, *images.shape[-2:])
    sizes = [
        (view, max(1, round(per_image * workload.trusted)))
        for views in rows.values()
        for view, per_image in views.items()
    ]
    large = [(view, count) for view, count in sizes if is_decomposed_in_float32(view.row_length, count)]
    rates = _measure_rates(classifier, network, images, batch_size, large=bool(large))
    forward = _stage_at(rates.forward)
    products = _stage_at(rates.products)
    stages = [
        forward("scoring training images", workload.scored * network.operations),
    ]
    if workload.captured:
        stages += [
            forward("running trusted images", workload.trusted * network.operations),
            products("second moments", sum(_moment_operations(*size, workload) for size in sizes)),
            _stage_at(rates.decompositions)(
                "decompositions", sum(_basis_operations(*size) for size in sizes if size not in large)
            ),
        ]
        if large:
            decompositions = _stage_at(rates.large_decompositions)
            stages.append(decompositions("large decompositions", sum(_basis_operations(*size) for size in large)))
    # Beside the trials, the chosen weights are made once more for the report and once for the file.
    projections = workload.looks + workload.trials + 2
    stages += [
        products("projections", projections * sum(_projection_operations(*size) for size in sizes)),
        forward(
            f"judging {max(workload.looks, workload.trials)} values of alpha",
            workload.judging * network.operations,
        ),
    ]
    activations = network.activation_bytes * batch_size
    moments = sum(_moment_bytes(*size) for size in sizes)
    workspace = max((_workspace_bytes(*size) for size in sizes), default=0)
    bases = sum(_basis_bytes(*size) for size in sizes)
    memory = network.parameter_bytes + max(moments + max(activations, workspace), bases + activations)
    return Estimate(str(classifier.device), workload, rates, tuple(stages), memory)


def _stage_at(rate: float) -> Callable[[str, float], Stage]:
    return lambda name, operations: Stage(name, operations, operations / rate)


def _moment_operations(view: WeightView, rows: int, workload: Workload) -> float:
    """`R^T R` or `R R^T`, the smaller one, of which symmetry saves half.

    What neighbouring patches of a convolution share, which is computed once, is not taken into account.
    """
    share = 1.0 if workload.all_rows else sampled_share(rows, view.row_length, workload.trusted)
    smaller, larger = sorted((view.row_length, rows * share))
    return float(view.groups) * smaller**2 * larger


def _basis_operations(view: WeightView, rows: int) -> float:
    """The decomposition, and where the rows are fewer the way back from their side: `U = R^T V / sigma`."""
    side = min(view.row_length, rows)
    back = 2.0 * rows**2 * view.row_length if rows < view.row_length else 0.0
    return view.groups * (_EIGH_OPERATIONS * float(side) ** 3 + back)


def _projection_operations(view: WeightView, rows: int) -> float:
    """`(W U diag(lambda)) U^T`."""
    return 4.0 * view.groups * view.outputs * view.row_length * min(view.row_length, rows)


def _moment_bytes(view: WeightView, rows: int) -> int:
    """The rows in float32 as long as they are fewer than `d`, else their sum in float64."""
    if rows < view.row_length:
        return view.groups * rows * view.row_length * 4
    return view.groups * view.row_length**2 * 8


def _basis_bytes(view: WeightView, rows: int) -> int:
    kept = min(view.row_length, rows)
    return view.groups * kept * (view.row_length * 4 + 8)


def _workspace_bytes(view: WeightView, rows: int) -> int:
    """The eigenvectors and the decomposition's own copies."""
    side = min(view.row_length, rows)
    width = 4 if is_decomposed_in_float32(view.row_length, rows) else 8
    return view.groups * (3 * side**2 + side * view.row_length) * width


def _measure_network(classifier: Classifier, images: Tensor) -> Network:
    """Count the operations and the memory of one forward pass, per image."""
    module = classifier.module
    held = [*module.parameters(), *module.buffers()]
    counter = FlopCounterMode(display=False)
    footprint = _Footprint(held)
    with classifier.running(), torch.no_grad(), counter, footprint:
        module(images)
    return Network(
        max(1, counter.get_total_flops() // len(images)),
        footprint.largest // len(images),
        sum(tensor.nbytes for tensor in held),
    )


class _Footprint(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that one operator has as its inputs and outputs, parameters left out."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held = {tensor.untyped_storage().data_ptr() for tensor in held}
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        storages = {
            leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
            for leaf in tree_leaves((args, kwargs, result))
            if isinstance(leaf, Tensor)
        }
        total = sum(size for address, size in storages.items() if address not in self._held)
        self.largest = max(self.largest, total)
        return result


def rates_of(device: torch.device) -> dict[str, int]:
    """Operations that a device does a second: of a float32 matrix product and of a float64 eigendecomposition."""
    square = torch.ones(_PRODUCT_SIDE, _PRODUCT_SIDE, device=device)
    return {
        "products": round(2 * _PRODUCT_SIDE**3 / _seconds(lambda: square @ square, device)),
        "decompositions": round(_decomposition_rate(_EIGH_SIDE, torch.float64, float64_device(device))),
    }


def _measure_rates(classifier: Classifier, network: Network, images: Tensor, batch_size: int, *, large: bool) -> Rates:
    """Time the network on copies of `images`, a matrix product, and decompositions."""
    device = classifier.device
    busy = _OPERATIONS_THAT_KEEP_BUSY["cpu" if device.type == "cpu" else "gpu"]
    count = min(batch_size, max(len(images), math.ceil(busy / network.operations)))
    batch = images.repeat(math.ceil(count / len(images)), 1, 1, 1)[:count]
    square = torch.ones(_PRODUCT_SIDE, _PRODUCT_SIDE, device=device)

    def forward() -> None:
        with classifier.running(), classifier.loaded.without_gradients():
            classifier.forward(batch, exact=False)

    return Rates(
        network.operations * count / _seconds(forward, device),
        2 * _PRODUCT_SIDE**3 / _seconds(lambda: square @ square, device),
        _decomposition_rate(_EIGH_SIDE, torch.float64, float64_device(device)),
        _decomposition_rate(_LARGE_EIGH_SIDE, torch.float32, float64_device(device)) if large else 0.0,
    )


def _decomposition_rate(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of an eigendecomposition."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(side, side, dtype=dtype, generator=generator).to(device)
    symmetric = rows @ rows.mT
    return _EIGH_OPERATIONS * side**3 / _seconds(lambda: torch.linalg.eigh(symmetric), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest of some runs, at least two, after one that does not count: the first one also chooses kernels."""
    work()
    _finish(device)
    durations: list[float] = []
    while len(durations) < _RUNS[0] or (len(durations) < _RUNS[1] and sum(durations) < _ENOUGH_SECONDS):
        started = time.perf_counter()
        work()
        _finish(device)
        durations.append(max(time.perf_counter() - started, 1e-9))
    return min(durations)


def _finish(device: torch.device) -> None:
    """Wait for what the device still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
