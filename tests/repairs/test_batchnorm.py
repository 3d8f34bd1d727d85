"""Tests of BatchNorm statistics re-estimated on images."""

from __future__ import annotations

import pytest
import torch
from support.samples import classifier_of, folder_of, images_of
from torch import Tensor, nn

from sapcli.activations.scoring import Classifier
from sapcli.errors import ArchitectureError
from sapcli.machine.progress import SilentProgress
from sapcli.repairs.batchnorm import batchnorm_layers, reestimate


class Network(nn.Module):
    """BatchNorm after a convolution, after a dropout, without statistics, and where no image comes by."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, momentum=0.3)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.BatchNorm1d(4, momentum=None)
        self.bare = nn.BatchNorm1d(4, track_running_stats=False)
        self.unused = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        hidden = self.dropout(self.norm(self.convolution(images)).relu()).mean((2, 3))
        return self.head(self.second(hidden))


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    module = Network().eval()
    for layer in (module.norm, module.second, module.unused):
        layer.running_mean.uniform_(5, 6)
        layer.running_var.uniform_(50, 60)
        layer.num_batches_tracked.fill_(7)
    return classifier_of(module)


def inputs(classifier: Classifier, images) -> Tensor:
    return classifier.inputs(torch.cat([batch.images for batch in images.batches()]))


def test_statistics_are_those_of_the_images(classifier, tmp_path):
    images = images_of(folder_of(tmp_path, {"cat": 5, "dog": 4}))
    module = classifier.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert list(batchnorm_layers(module)) == ["norm", "second", "unused"]
    reestimate(classifier, images, range(9), SilentProgress(), "statistics", batch_size=9)
    features = module.convolution(inputs(classifier, images)).movedim(1, -1).reshape(-1, 4)
    torch.testing.assert_close(module.norm.running_mean, features.mean(0))
    torch.testing.assert_close(module.norm.running_var, features.var(0))
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{layer}.running_{statistic}" for layer in ("norm", "second") for statistic in ("mean", "var")}
    assert (module.norm.momentum, module.second.momentum) == (0.3, None)
    assert not any(part.training for part in module.modules())


def test_batches_count_by_their_images(classifier, tmp_path):
    images = images_of(folder_of(tmp_path, {"cat": 5, "dog": 4}))
    reestimate(classifier, images, range(9), SilentProgress(), "statistics", batch_size=7)
    features = classifier.module.convolution(inputs(classifier, images)).movedim(1, -1)
    # The mean over unequal batches is that over all images; the variance is the mean of the batches' own.
    torch.testing.assert_close(classifier.module.norm.running_mean, features.reshape(-1, 4).mean(0))
    expected = sum(len(part) / 9 * part.reshape(-1, 4).var(0) for part in features.split([7, 2]))
    torch.testing.assert_close(classifier.module.norm.running_var, expected)


def test_an_image_alone_goes_with_the_next_batch(classifier, tmp_path):
    images = images_of(folder_of(tmp_path, {"cat": 3, "dog": 2}))
    # Batches of one image have no variance after the mean over positions, where a single value is left.
    reestimate(classifier, images, range(4), SilentProgress(), "statistics", batch_size=1)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in classifier.module.state_dict().values())
    features = classifier.module.convolution(inputs(classifier, images)[:4]).movedim(1, -1)
    torch.testing.assert_close(classifier.module.norm.running_mean, features.reshape(-1, 4).mean(0))


def test_a_network_without_batchnorm_reads_no_image():
    reestimate(classifier_of(nn.Linear(2, 2)), None, range(9), SilentProgress(), "statistics")


def test_an_exception_restores_the_layers(classifier, tmp_path):
    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    images = images_of(folder_of(tmp_path, {"cat": 3, "dog": 2}))
    classifier.module.head.register_forward_hook(stop)
    with pytest.raises(ArchitectureError, match="StopError"):
        reestimate(classifier, images, range(5), SilentProgress(), "statistics")
    layer = classifier.module.norm
    assert (layer.training, layer.momentum, int(layer.num_batches_tracked)) == (False, 0.3, 7)
    assert "norm.num_batches_tracked" in classifier.module.state_dict()
