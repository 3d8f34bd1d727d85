"""Tests of what a few images tell of a forward pass, on networks whose fault is known."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from support.pretended_gpu import pretended_gpu
from support.samples import PREPROCESSING, classifier_of, folder_of
from torch import Tensor, nn

from sapcli.activations.probe import Fault, Finding, images_to_probe, probe, read_findings, write_findings
from sapcli.activations.scoring import Classifier, normalise
from sapcli.datasets.dataset import Role, open_dataset
from sapcli.errors import ArchitectureError

SIZE = (3, 4, 4)


class Network(nn.Module):
    """A small network with something done to its images, its features and its output."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] | nn.Module | None = None,
        within: Callable[[Tensor], Tensor] | nn.Module | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.norm, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(96, 3)
        nothing = nn.Identity()
        self.before, self.within, self.after = before or nothing, within or nothing, after or nothing

    def forward(self, images: Tensor) -> Tensor:
        """Its output."""
        features = self.within(self.norm(self.convolution(self.before(images)))).relu()
        output: Tensor = self.after(self.head(features.flatten(1)))
        return output


class Counting(nn.Module):
    """Adds to its images what it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        """Another result each time."""
        self.calls += 1
        return images + 0.1 * self.calls


class InTrainingAlways(nn.BatchNorm2d):
    """A BatchNorm that eval mode does not reach."""

    def train(self, mode: bool = True) -> InTrainingAlways:  # noqa: ARG002
        """Stay in training mode."""
        return super().train(True)


def crop(images: Tensor) -> Tensor:
    """Move the images by a pixel at random."""
    return images.roll(int(torch.randint(1, 4, ())), 3)


def mixed_up(features: Tensor) -> Tensor:
    """A reshape that takes images for channels."""
    return features.transpose(0, 1).reshape(features.shape)


def pixels(count: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def found_of(module: nn.Module, count: int = 8, classes: int = 3) -> tuple[Classifier, tuple[Finding, ...]]:
    classifier = classifier_of(module.eval(), classes)
    return classifier, probe(classifier, pixels(count))


OTHER_IMAGES = {
    "BatchNorm without running statistics": Network(within=nn.BatchNorm2d(6, track_running_stats=False)),
    "BatchNorm that stays in training mode": Network(within=InTrainingAlways(6)),
    "functional BatchNorm": Network(within=lambda x: F.batch_norm(x, None, None, training=True)),
    "mean of the batch": Network(before=lambda x: x - x.mean(0, keepdim=True)),
    "mixed with another image": Network(before=lambda x: x + 0.2 * x.flip(0)),
    "less the first image": Network(before=lambda x: x - x[:1]),
    "a wrong reshape": Network(within=mixed_up),
    "softmax over the batch": Network(after=lambda z: z.softmax(0)),
}
RANDOM = {
    "dropout": Network(within=lambda x: F.dropout(x, 0.5)),
    "a little dropout": Network(within=lambda x: F.dropout(x, 0.05)),
    "a crop": Network(before=crop),
    "noise": Network(before=lambda x: x + 0.05 * torch.randn_like(x)),
    "memory": Network(before=Counting()),
}
WRITES = {
    "in place": Network(before=lambda x: x.mul_(2)),
    "relu": Network(before=lambda x: F.relu(x, inplace=True)),
    "a part": Network(before=lambda x: x[:, :1].zero_() + x),
}
PROBABILITIES = {
    "softmax": Network(after=lambda z: z.softmax(1)),
    "sigmoid": Network(after=lambda z: (3 * z).sigmoid()),
    "softmax in 16 bits": Network(after=lambda z: z.softmax(1).bfloat16()),
}
NOTHING_WRONG = {
    "plain": Network(),
    "log-probabilities": Network(after=lambda z: z.log_softmax(1)),
    "equal logits": Network(after=lambda z: z * 0),
    "positive logits": Network(after=lambda z: z.exp()),
    "logits far from 0": Network(after=lambda z: z + 100),
    "small logits": Network(after=lambda z: z * 1e-6),
    "16 bits at the end": Network(after=lambda z: z.bfloat16()),
    "16 bits throughout": Network(before=lambda x: x.bfloat16()).bfloat16(),
    "InstanceNorm": Network(within=nn.InstanceNorm2d(6)),
    "dropout that is off": Network(within=nn.Dropout(0.5)),
    "rounding": Network(after=lambda z: z + 1e-5 * torch.randn_like(z)),
}


@pytest.mark.parametrize("name", OTHER_IMAGES)
def test_logits_that_depend_on_other_images(name):
    module = OTHER_IMAGES[name]
    _, findings = found_of(module)
    (finding,) = [each for each in findings if each.fault is not Fault.PROBABILITIES]
    assert finding.fault is Fault.OTHER_IMAGES
    # The difference by hand.
    inputs = normalise(pixels(), PREPROCESSING)
    with torch.no_grad():
        together = module(inputs)
        apart = [(module(inputs[place : place + 1]) - together[place : place + 1]).abs().max() for place in (0, -1 % 8)]
    told = re.search(r"alone and in a batch of 8 they differ by (\S+)", finding.text)
    assert told is not None
    if not isinstance(module.within, InTrainingAlways):
        assert float(told[1]) == pytest.approx(float(max(apart)), rel=0.06)
    assert finding.fault.spoils_everything


def test_the_layers_behind_it_are_named():
    _, (finding,) = found_of(OTHER_IMAGES["BatchNorm without running statistics"])
    assert "BatchNorm without running statistics: within" in finding.text
    assert "track_running_stats=True" in finding.advice
    _, findings = found_of(OTHER_IMAGES["BatchNorm that stays in training mode"])
    assert findings[-1].text.endswith("in training mode: within")


@pytest.mark.parametrize("name", RANDOM)
def test_logits_that_are_not_the_same_twice(name):
    _, (finding,) = found_of(RANDOM[name])
    assert finding.fault is Fault.RANDOM
    assert finding.fault.spoils_everything
    assert "the same images twice" in finding.text


@pytest.mark.parametrize("name", WRITES)
def test_a_network_that_writes_into_its_images_gets_copies(name):
    classifier, (finding,) = found_of(WRITES[name])
    assert finding.fault is Fault.WRITES
    assert not finding.fault.spoils_everything
    assert classifier.copies_inputs
    inputs = classifier.inputs(pixels())
    before = inputs.clone()
    for exact in (True, False):
        with torch.no_grad():
            classifier.forward(inputs, exact=exact)
        assert torch.equal(inputs, before)
    # A gradient with respect to them can be had as well.
    asked = inputs.requires_grad_()
    classifier.logits(pixels())
    assert torch.autograd.grad(classifier.forward(asked).sum(), asked)[0].abs().sum() > 0


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_are_told_from_logits(name):
    _, (finding,) = found_of(PROBABILITIES[name])
    assert finding.fault is Fault.PROBABILITIES
    assert not finding.fault.spoils_everything


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("name", NOTHING_WRONG)
def test_nothing_is_found_where_nothing_is_wrong(name, device):
    if device == "cpu":
        classifier, findings = found_of(NOTHING_WRONG[name])
        assert not findings
        assert not classifier.copies_inputs
    elif name not in ("16 bits throughout", "rounding"):
        with pretended_gpu(torch.device(device, 0)):
            module = copy.deepcopy(NOTHING_WRONG[name]).eval()
            classifier = classifier_of(module.to(torch.device(device, 0)), 3)
            classifier.device = torch.device(device, 0)
            assert not probe(classifier, pixels())


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_faults_are_found_on_a_gpu(device):
    with pretended_gpu(torch.device(device, 0)):
        for after, fault in (
            (lambda z: z - z.mean(0), Fault.OTHER_IMAGES),
            (lambda z: z.softmax(1), Fault.PROBABILITIES),
        ):
            module = Network(after=after).eval().to(torch.device(device, 0))
            classifier = classifier_of(module, 3)
            classifier.device = torch.device(device, 0)
            assert [finding.fault for finding in probe(classifier, pixels())] == [fault]


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("resnet10t", num_classes=5),
        lambda: timm.create_model("convnext_atto", num_classes=5),
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32),
        lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
        lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5),
    ],
)
def test_nothing_is_found_of_usual_networks(make):
    torch.manual_seed(0)
    classifier = classifier_of(make().eval(), 5)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert probe(classifier, images) == ()


def test_a_network_that_takes_no_image_alone():
    class Squeezing(Network):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)[:, None].squeeze()

    _, (finding,) = found_of(Squeezing())
    assert finding.fault is Fault.ALONE
    assert not finding.fault.spoils_everything
    assert "returns a tensor [3] for 1 images" in finding.text
    _, findings = found_of(type("Both", (Squeezing,), {})(before=lambda x: x - x.mean(0)))
    assert [each.fault for each in findings] == [Fault.ALONE, Fault.OTHER_IMAGES]


def test_nothing_is_told_of_what_cannot_run_or_gives_nan():
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.reshape(32, 3)

    assert found_of(Fixed())[1] == ()
    assert found_of(Network(after=lambda z: z / 0 * 0))[1] == ()
    assert found_of(Network(), count=1)[1] == ()


def test_where_memory_is_short_fewer_images_tell():
    class Large(Network):
        fitting = 2

        def forward(self, images: Tensor) -> Tensor:
            if len(images) > self.fitting:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(images)

    module = Large(before=lambda x: x - x.mean(0))
    for fitting, expected in ((2, [Fault.OTHER_IMAGES]), (1, [])):
        module.fitting = fitting
        assert [finding.fault for finding in found_of(module)[1]] == expected


def test_what_the_images_do_not_tell_noise_does(tmp_path: Path):
    folder = folder_of(tmp_path, {"cat": 30, "dog": 3, "owl": 9})
    dataset = open_dataset(folder, Role.LEARN, 3)
    assert dataset is not None
    images = images_to_probe(dataset, PREPROCESSING)
    assert images.shape == (8, 3, 4, 4)
    assert len({image.numpy().tobytes() for image in images}) == 8
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"")
    assert images_to_probe(dataset, PREPROCESSING).shape == (8, 3, 4, 4)


def test_findings_are_read_as_they_were_written(tmp_path: Path):
    findings = (Finding(Fault.RANDOM, "text", "advice"), Finding(Fault.WRITES, "ä", ""))
    write_findings(findings, tmp_path / "findings")
    assert read_findings(tmp_path / "findings") == findings


def test_a_single_output_for_two_classes_names_the_way_out():
    class Single(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.shape = shape

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((1, 2, 3)).reshape(len(images), *self.shape)

    for shape in ((1,), ()):
        with pytest.raises(ArchitectureError) as caught:
            classifier_of(Single(*shape)).logits(pixels())
        assert "torch.cat([torch.zeros_like(z), z], dim=1)" in caught.value.hint
