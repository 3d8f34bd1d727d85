"""Whether a network's forward pass is what everything else takes it for: a function from an image to its logits.

A few images tell, before a long stage begins: one alone and in a batch, the same batch twice, the images as they were
before and after, and whether the rows can be logits. What is found is returned and not raised: what becomes of it is
for others to decide.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701 - the one name for all of them

from sapcli.activations.scoring import Classifier
from sapcli.datasets.images import Images
from sapcli.errors import ArchitectureError, DatasetError
from sapcli.machine.device import full_precision
from sapcli.machine.files import atomic_write
from sapcli.machine.out_of_memory import is_out_of_memory
from sapcli.machine.progress import Progress

if TYPE_CHECKING:
    from sapcli.datasets.dataset import Dataset
    from sapcli.networks.preprocessing import Preprocessing

PROBED_IMAGES = 8
"""So many are enough: what one image does to another shows in two."""
# Sums of other sizes are rounded in another order. That moves logits by some millionths of what they differ by, and of
# their size; a dropout that is left on moves them by tenths.
_OF_SPREAD, _OF_SIZE = 1e-3, 1e-5
# In units of the precision of 16 bits, where the logits have no more.
_ROUNDINGS = 8
_SUM_OF_ROW = 1e-3
# Fewer numbers may all lie between 0 and 1 by chance.
_FEWEST_NUMBERS = 16
_NAMED_AT_MOST = 3


class Fault(StrEnum):
    """What a forward pass can be instead of a function from an image to its logits."""

    RANDOM = "random"
    OTHER_IMAGES = "other images"
    ALONE = "alone"
    WRITES = "writes"
    PROBABILITIES = "probabilities"

    @property
    def spoils_everything(self) -> bool:
        """Whether no number that follows is that of the model."""
        return self in (Fault.RANDOM, Fault.OTHER_IMAGES)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a forward pass.

    Attributes:
        fault: What kind.
        text: What was seen, in words.
        advice: What to do.
    """

    fault: Fault
    text: str
    advice: str

    def tell(self, source: str, progress: Progress) -> None:
        """Say it of the checkpoint `source`: as a note where there is nothing to do, else as a warning."""
        if self.fault is Fault.WRITES:
            progress.note(f"{source}: {self.text}")
        elif self.fault.spoils_everything:
            progress.warn(f"{source}: {self.text}; every number that follows depends on that: {self.advice}")
        else:
            progress.warn(f"{source}: {self.text}: {self.advice}")


def images_to_probe(dataset: Dataset, preprocessing: Preprocessing) -> Tensor:
    """A few images from all over a dataset, decoded, uint8 `[n, C, H, W]`; noise where none of them can be read."""
    step = max(len(dataset.paths) // PROBED_IMAGES, 1)
    # None is kept or noted: those that cannot be read are named when a stage comes to them.
    images = Images(dataset, preprocessing, batch_size=PROBED_IMAGES, workers=0, keep_bytes=0)
    try:
        for batch in images.batches(range(len(dataset.paths))[::step][:PROBED_IMAGES]):
            return batch.images
    except DatasetError:
        pass
    size = PROBED_IMAGES, *preprocessing.input_size
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """Write findings as JSON, atomically."""
    with atomic_write(path) as handle:
        handle.write(json.dumps([asdict(finding) for finding in findings]).encode())


def read_findings(path: Path) -> tuple[Finding, ...]:
    """Read what `write_findings` wrote."""
    return tuple(Finding(Fault(row["fault"]), row["text"], row["advice"]) for row in json.loads(path.read_text()))


def probe(classifier: Classifier, images: Tensor) -> tuple[Finding, ...]:
    """Run a few images through the network in several ways, and tell what is wrong with it.

    Nothing is found of a network that does not take these images at all, or gives NaN: scoring will tell of that. Where
    the network writes into its images, the classifier hands it copies from now on.

    Args:
        classifier: The network, in eval mode.
        images: Decoded uint8 `[n, C, H, W]`; of fewer than two, less can be told.
    """
    while True:
        try:
            return _probe(classifier, images)
        except ArchitectureError:
            return ()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(images) <= 2:
                return ()
            images = images[: len(images) // 2]


@full_precision()
def _probe(classifier: Classifier, images: Tensor) -> tuple[Finding, ...]:
    findings = []
    inputs = classifier.inputs(images)
    before = inputs.clone()
    together = _logits(classifier, inputs)
    if not torch.equal(inputs, before):
        classifier.copies_inputs = True
        findings.append(
            Finding(Fault.WRITES, "the network writes into its images, and is given copies of them", "nothing to do")
        )
    if not bool(torch.isfinite(together).all()):
        return tuple(findings)
    rows = _rows(together)
    if rows is not None:
        findings.append(rows)
    allowed = _allowed(together)
    difference = _difference(_logits(classifier, classifier.inputs(images)), together)
    if difference > allowed:
        text = f"the same images twice give other logits: they differ by {difference:.2g} {_of(together)}"
        advice = (
            "build it so that nothing is drawn at random or remembered in eval mode; functional dropout needs"
            " training=self.training"
        )
        return (*findings, Finding(Fault.RANDOM, text + _in_training(classifier.module), advice))
    findings += _beside_others(classifier, images, together, allowed)
    return tuple(findings)


def _beside_others(classifier: Classifier, images: Tensor, together: Tensor, allowed: float) -> list[Finding]:
    """What is different for the first and the last image when no others are beside them."""
    if len(images) < 2:
        return []
    findings = []
    difference, size = 0.0, 1
    try:
        for place in (0, len(images) - 1):
            alone = _logits(classifier, classifier.inputs(images[place : place + 1]))
            difference = max(difference, _difference(alone, together[place : place + 1]))
    except ArchitectureError as error:
        text = f"the network does not take an image alone, as the last batch may hold it: {error.message}"
        advice = "keep the first dimension of its output, with squeeze(1) or flatten(1) in the place of squeeze()"
        findings.append(Finding(Fault.ALONE, text, advice))
        if len(images) < 4:
            return findings
        size = 2
        try:
            difference = _difference(_logits(classifier, classifier.inputs(images[:2])), together[:2])
        except ArchitectureError:
            return findings
    if difference > allowed:
        apart = "alone" if size == 1 else "in a batch of 2"
        text = (
            f"the logits of an image depend on the images beside it: {apart} and in a batch of {len(images)} they"
            f" differ by {difference:.2g} {_of(together)}"
        )
        normalising = [
            name
            for name, layer in classifier.module.named_modules()
            if isinstance(layer, _BatchNorm) and layer.running_mean is None
        ]
        advice = "build it so that each image is computed by itself"
        if normalising:
            text += f"; BatchNorm without running statistics: {_some(normalising)}"
            advice = "build it with track_running_stats=True, and train those statistics"
        findings.append(Finding(Fault.OTHER_IMAGES, text + _in_training(classifier.module), advice))
    return findings


def _logits(classifier: Classifier, inputs: Tensor) -> Tensor:
    """What the network makes of normalised images, on the CPU.

    Raises:
        ArchitectureError: It does not take them.
    """
    with classifier.loaded.without_gradients(), classifier.running():
        return classifier.check_output(classifier.forward(inputs), len(inputs)).cpu()


def _rows(logits: Tensor) -> Finding | None:
    """What tells that rows are no logits: that they are probabilities."""
    consequence = "loss, calibration error and the order of the samples are not those of the model"
    advice = "give a factory whose module returns what comes before the softmax or the sigmoid"
    if logits.shape[1] < 2 or float(logits.min()) < 0:
        return None
    sums = logits.sum(dim=1)
    if bool(((sums - 1).abs() <= _SUM_OF_ROW + _ROUNDINGS * _precision(logits)).all()):
        text = "each row of the network's output is non-negative and adds up to 1: these are probabilities, not logits"
        return Finding(Fault.PROBABILITIES, f"{text}; {consequence}", advice)
    smallest, largest = float(logits.min()), float(logits.max())
    if largest <= 1 and logits.numel() >= _FEWEST_NUMBERS and smallest < 0.5 < largest:
        text = "all of the network's outputs lie between 0 and 1, as after a sigmoid, and are taken for logits"
        return Finding(Fault.PROBABILITIES, f"{text}; where they are probabilities, {consequence}", advice)
    return None


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite where one is not finite."""
    return float((found - expected).abs().nan_to_num(torch.inf).max())


def _allowed(logits: Tensor) -> float:
    """How far rounding may move logits that are these."""
    spread = (logits - logits.mean(dim=1, keepdim=True)).abs().max()
    precision = _precision(logits)
    of_spread = max(_OF_SPREAD, _ROUNDINGS * precision)
    return float(of_spread * spread + max(_OF_SIZE, precision) * logits.abs().max())


def _precision(logits: Tensor) -> float:
    """That of 16 bits, where the logits have no more; 0 where they are float32."""
    for dtype in (torch.bfloat16, torch.float16):
        if bool((logits.to(dtype).float() == logits).all()):
            return float(torch.finfo(dtype).eps)
    return 0.0


def _of(logits: Tensor) -> str:
    return f"(they reach from {float(logits.min()):.2g} to {float(logits.max()):.2g})"


def _in_training(module: nn.Module) -> str:
    """Those layers that eval mode did not reach, in words."""
    names = [name or "the network itself" for name, layer in module.named_modules() if layer.training]
    return f"; in training mode: {_some(names)}" if names else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED_AT_MOST]) + (", ..." if len(names) > _NAMED_AT_MOST else "")
