"""Tests of the classifier as a function, and of its outcomes sample by sample."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from decimal import Decimal, localcontext

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.pretended_gpu import pretended_gpu
from support.samples import PREPROCESSING, classifier_of, folder_of, images_of
from torch import Tensor, nn
from torchvision import transforms

from sapcli.activations.scoring import cross_entropies, normalise, score
from sapcli.errors import ArchitectureError, NumericsError
from sapcli.machine.progress import SilentProgress


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3)).train()


class Returns(nn.Module):
    """A network with this output."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, _images: Tensor) -> object:
        """Return it."""
        return self.output


def test_normalisation_is_per_channel():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = torch.tensor(PREPROCESSING.mean), torch.tensor(PREPROCESSING.std)
    expected = (images / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalise(images, PREPROCESSING), expected)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_outcomes_of_every_sample(tmp_path, module, batch_size):
    folder = folder_of(tmp_path, {"cat": 3, "dog": 4, "owl": 2})
    images = images_of(folder, batch_size)
    outcomes = score(classifier_of(module, 3), images, SilentProgress(), "scoring")
    inputs = normalise(torch.cat([batch.images for batch in images.batches()]), PREPROCESSING)
    logits = module.eval()(inputs)
    labels = torch.tensor([0] * 3 + [1] * 4 + [2] * 2)
    assert outcomes.indices.tolist() == list(range(9))
    assert torch.equal(outcomes.labels, labels)
    torch.testing.assert_close(outcomes.losses, F.cross_entropy(logits.double(), labels, reduction="none"))
    assert torch.equal(outcomes.predictions, logits.argmax(1))
    torch.testing.assert_close(outcomes.confidences, logits.softmax(1).amax(1))
    ranks = [int((row > row[label]).sum()) for row, label in zip(logits, labels, strict=True)]
    assert outcomes.ranks.tolist() == ranks
    assert torch.equal(outcomes.correct, outcomes.ranks == 0)
    assert len(outcomes) == 9


def test_some_samples_in_their_order(tmp_path, module):
    images = images_of(folder_of(tmp_path, {"cat": 3, "dog": 4, "owl": 2}))
    outcomes = score(classifier_of(module, 3), images, SilentProgress(), "scoring", [8, 1])
    assert outcomes.indices.tolist() == [8, 1]
    assert outcomes.labels.tolist() == [2, 0]
    assert len(score(classifier_of(module, 3), images, SilentProgress(), "scoring", [])) == 0


def test_an_unreadable_image_takes_nobodys_place(tmp_path, module):
    folder = folder_of(tmp_path, {"cat": 3, "dog": 4, "owl": 2})
    whole = score(classifier_of(module, 3), images_of(folder), SilentProgress(), "scoring")
    (folder / "cat" / "01.png").write_bytes(b"")
    found = score(classifier_of(module, 3), images_of(folder), SilentProgress(), "scoring")
    assert found.indices.tolist() == [0, 2, 3, 4, 5, 6, 7, 8]
    torch.testing.assert_close(found.losses, whole.losses[[0, 2, 3, 4, 5, 6, 7, 8]])


def test_half_precision_outputs_are_widened():
    logits = classifier_of(Returns(torch.zeros(2, 3, dtype=torch.float16)), 3).logits(torch.zeros(2, 3, 4, 4).byte())
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (torch.zeros(2, 4), r"a tensor \[2, 4\]"),
        (torch.zeros(2, 3, 1), r"a tensor \[2, 3, 1\]"),
        (torch.zeros(1, 3), r"a tensor \[1, 3\]"),
        ((torch.zeros(2, 3),), r"a tuple of a tensor \[2, 3\]"),
        ({"logits": torch.zeros(2, 3)}, "a dict with 'logits'"),
    ],
)
def test_outputs_that_are_no_logits(output, found):
    with pytest.raises(ArchitectureError, match=f"returns {found} for 2 images"):
        classifier_of(Returns(output), 3).logits(torch.zeros(2, 3, 4, 4).byte())


def test_a_nan_names_the_image(tmp_path):
    output = torch.zeros(3, 2)
    output[1, 1] = float("nan")
    with pytest.raises(NumericsError, match="NaN or infinite for image number 1"):
        score(classifier_of(Returns(output)), images_of(folder_of(tmp_path, {"a": 2, "b": 1})), SilentProgress(), "s")


def reference_loss(logits: Tensor, label: int) -> float:
    """The cross-entropy in decimal arithmetic of 60 digits."""
    with localcontext() as context:
        context.prec = 60
        exponentials = [(Decimal(logit) - Decimal(logits[label].item())).exp() for logit in logits.tolist()]
        return float(sum(exponentials, Decimal(0)).ln())


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_losses_of_a_sure_model_tell_samples_apart(device, tmp_path):
    images = images_of(folder_of(tmp_path, {"a": 7, "b": 0, "c": 0}), 7)
    logits = torch.tensor(
        [[20.0, 0, 0], [40.0, 1, 0], [90.0, 1, 2], [300.0, 0, 0], [0.0, 40, 0], [1.0, 1, 1], [-3e4, 2, 2]]
    )
    labels = torch.zeros(len(logits), dtype=torch.int64)
    place = torch.device(device) if device == "cpu" else torch.device(device, 0)
    with nullcontext() if device == "cpu" else pretended_gpu(place):
        output = Returns(logits.to(place))
        classifier = classifier_of(output, 3)
        classifier.device = place
        losses = score(classifier, images, SilentProgress(), "scoring").losses
    assert losses.dtype == torch.float64
    expected = [reference_loss(row, 0) for row in logits]
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)
    # In float32 the first five are 0 or tied.
    assert len(set(F.cross_entropy(logits, labels, reduction="none").tolist())) < len(set(losses.tolist()))


def test_losses_have_the_gradients_of_cross_entropy():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0])
    (found,) = torch.autograd.grad(cross_entropies(logits, labels).sum(), logits)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    torch.testing.assert_close(found, expected)


def test_masked_classes_and_a_single_class_have_losses():
    masked = torch.tensor([[1.0, -torch.inf, 0.5], [-torch.inf, -torch.inf, 0.0]])
    losses = cross_entropies(masked, torch.tensor([0, 2]))
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-0.5)), 0])
    assert cross_entropies(torch.tensor([[3.0], [-1.0]]), torch.tensor([0, 0])).tolist() == [0, 0]


def test_ties_are_counted_and_the_first_of_equals_is_predicted(tmp_path):
    output = torch.tensor([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0], [1.0, 1.0, 5.0]])
    folder = folder_of(tmp_path, {"a": 1, "b": 1, "c": 1})
    outcomes = score(classifier_of(Returns(output), 3), images_of(folder), SilentProgress(), "scoring")
    assert outcomes.predictions.tolist() == [1, 0, 2]
    assert outcomes.ranks.tolist() == [2, 0, 0]
    assert outcomes.ties.tolist() == [1, 3, 1]


def test_logits_that_differ_less_than_their_probabilities_tell_are_told_apart(tmp_path):
    output = torch.tensor([[0.0, 1e-9, -5.0]])
    assert output.softmax(1)[0, 0] == output.softmax(1)[0, 1]
    folder = folder_of(tmp_path, {"a": 1, "b": 0, "c": 0})
    outcomes = score(classifier_of(Returns(output), 3), images_of(folder), SilentProgress(), "scoring")
    assert outcomes.predictions.tolist() == [1]
    assert outcomes.ranks.tolist() == [1]


class Picky(nn.Module):
    """A network that cannot be converted: it adds to a tensor of another type."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return torch.zeros(len(images), 3).index_add_(0, torch.arange(len(images)), self.head(images.flatten(1)))


def test_what_need_not_be_exact_is_about_right(tmp_path, module):
    images = images_of(folder_of(tmp_path, {"cat": 3, "dog": 4, "owl": 2}))
    classifier = classifier_of(module, 3)
    exact = score(classifier, images, SilentProgress(), "scoring", exact=False)
    classifier.fast_dtype = torch.bfloat16
    assert torch.equal(score(classifier, images, SilentProgress(), "scoring").losses, exact.losses)
    about = score(classifier, images, SilentProgress(), "scoring", exact=False)
    assert not torch.equal(about.losses, exact.losses)
    torch.testing.assert_close(about.losses, exact.losses, rtol=0.05, atol=0.05)


def test_a_network_that_wants_its_images_in_one_piece_gets_them(tmp_path):
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(16, 3)

        def forward(self, images: Tensor) -> Tensor:
            features = self.convolution(images)
            return self.head(features.view(len(features), -1))

    torch.manual_seed(0)
    images = images_of(folder_of(tmp_path, {"cat": 3, "dog": 4, "owl": 2}))
    classifier = classifier_of(Views().eval(), 3)
    outcomes = score(classifier, images, SilentProgress(), "scoring")
    assert classifier.as_built
    assert len(outcomes) == 9


def test_a_network_that_cannot_be_converted_runs_as_it_is(tmp_path):
    torch.manual_seed(0)
    images = images_of(folder_of(tmp_path, {"cat": 3, "dog": 4, "owl": 2}))
    classifier = classifier_of(Picky().eval(), 3)
    exact = score(classifier, images, SilentProgress(), "scoring")
    classifier.fast_dtype = torch.bfloat16
    found = score(classifier, images, SilentProgress(), "scoring", exact=False)
    assert classifier.as_built
    assert torch.equal(found.losses, exact.losses)


@pytest.mark.parametrize("values", [(0.485, 0.229), (0.5, 0.5), (0.4914, 0.2471)])
def test_images_are_normalised_to_the_bit_as_torchvision_does_it(values):
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    preprocessing = replace(PREPROCESSING, input_size=(1, 16, 16), mean=values[:1], std=values[1:])
    expected = transforms.Normalize(values[:1], values[1:])(transforms.ToTensor()(images[0, 0].numpy()))
    assert torch.equal(normalise(images, preprocessing)[0], expected)
