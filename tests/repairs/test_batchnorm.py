"""Tests of BatchNorm statistics re-estimated on images."""

from __future__ import annotations

import copy

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


class Reached(nn.Module):
    """One layer before and after a convolution, one that only bright images reach, one handed to functional code."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.shared, self.late = norm(4, momentum=momentum), norm(4, momentum=momentum)
        self.handed, self.never = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.second.bias += 1.5

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        hidden = self.shared(input=self.second(self.shared(self.first(images)).relu()))
        if len(images) % 2:
            hidden = self.late(hidden)
        handed = self.handed
        statistics = handed.running_mean, handed.running_var
        training, momentum = handed.training, handed.momentum or 0.0
        hidden = nn.functional.batch_norm(hidden, *statistics, training=training, momentum=momentum)
        return self.head(hidden.mean((2, 3)))


def cumulative(module: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """The statistics by PyTorch itself: `momentum=None` averages over all uses."""
    layers = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }
    for name, layer in layers.items():
        if name != "handed":
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        for batch in batches:
            module(batch)
    return {name: tensor for name, tensor in module.state_dict().items() if "running" in name}


@pytest.mark.parametrize("momentum", [0.1, None, 1.0])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("batch_size", [3, 9])
def test_statistics_are_the_average_over_all_uses(norm, momentum, batch_size, tmp_path):
    images = images_of(folder_of(tmp_path, {"cat": 5, "dog": 4}))
    torch.manual_seed(0)
    module = Reached(norm, momentum).eval()
    expected_module = copy.deepcopy(module)
    for layer in (module.shared, module.late):
        # What lay there before has no part in it.
        layer.running_mean.fill_(float("nan"))
        layer.running_var.fill_(float("inf"))
    classifier = classifier_of(module)
    expected = cumulative(expected_module, list(inputs(classifier, images).split(batch_size)))
    done = reestimate(classifier, images, range(9), SilentProgress(), "statistics", batch_size)
    assert done.kept == ("handed", "never")
    for name in ("shared", "late"):
        for statistic in ("running_mean", "running_var"):
            found = getattr(getattr(module, name), statistic)
            torch.testing.assert_close(found, expected[f"{name}.{statistic}"], rtol=1e-5, atol=1e-6)
    for layer in (module.shared, module.late):
        assert (layer.momentum, int(layer.num_batches_tracked), layer.training) == (momentum, 0, False)
        assert "forward" not in vars(layer)
    for layer in (module.handed, module.never):
        assert torch.equal(layer.running_mean, torch.zeros(4))
        assert torch.equal(layer.running_var, torch.ones(4))


def test_a_layer_first_reached_in_a_later_batch_begins_there(tmp_path):
    images = images_of(folder_of(tmp_path, {"cat": 6, "dog": 5}))
    torch.manual_seed(0)
    classifier = classifier_of(Reached().eval())
    reached: list[Tensor] = []
    classifier.module.late.register_forward_pre_hook(lambda _, arguments: reached.append(arguments[0]))
    # Batches of 4, 4 and 3 images, of which only the last one comes by.
    reestimate(classifier, images, range(11), SilentProgress(), "statistics", batch_size=4)
    (only,) = reached
    values = only.movedim(1, -1).reshape(-1, 4)
    torch.testing.assert_close(classifier.module.late.running_mean, values.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(classifier.module.late.running_var, values.var(0), rtol=1e-5, atol=1e-6)


def test_uses_count_by_the_images_of_their_batch(tmp_path):
    images = images_of(folder_of(tmp_path, {"cat": 4, "dog": 3}))
    torch.manual_seed(0)
    classifier = classifier_of(Reached().eval())
    seen: list[Tensor] = []
    classifier.module.shared.register_forward_pre_hook(
        lambda _, given, named: seen.append([*given, *named.values()][0].clone()), with_kwargs=True
    )
    reestimate(classifier, images, range(7), SilentProgress(), "statistics", batch_size=4)
    weights = [4, 4, 3, 3]
    rows = [batch.movedim(1, -1).reshape(-1, 4) for batch in seen]
    for statistic, of_rows in (("running_mean", Tensor.mean), ("running_var", Tensor.var)):
        expected = sum(weight / 14 * of_rows(each, 0) for weight, each in zip(weights, rows, strict=True))
        torch.testing.assert_close(getattr(classifier.module.shared, statistic), expected, rtol=1e-5, atol=1e-6)


def test_a_single_value_per_channel_is_not_counted(tmp_path):
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 2)

        def forward(self, images: Tensor) -> Tensor:
            features = images.mean((2, 3))
            # The first image goes a way of its own, and nothing goes a third way.
            parts = [self.norm(part) for part in (features[:1], features[1:], features[:0])]
            return self.head(torch.cat(parts))

    images = images_of(folder_of(tmp_path, {"cat": 4, "dog": 3}))
    classifier = classifier_of(Routed().eval())
    reestimate(classifier, images, range(7), SilentProgress(), "statistics", batch_size=7)
    features = inputs(classifier, images).mean((2, 3))[1:]
    torch.testing.assert_close(classifier.module.norm.running_mean, features.mean(0))
    torch.testing.assert_close(classifier.module.norm.running_var, features.var(0))


def test_a_batch_that_ran_again_is_counted_once(tmp_path):
    class Fussy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, 2)

        def forward(self, images: Tensor) -> Tensor:
            features = self.norm(self.convolution(images))
            return self.head(features.view(len(features), -1))

    images = images_of(folder_of(tmp_path, {"cat": 5, "dog": 4}))
    torch.manual_seed(0)
    classifier = classifier_of(Fussy().eval())
    reestimate(classifier, images, range(9), SilentProgress(), "statistics", batch_size=7)
    assert classifier.as_built
    features = classifier.module.convolution(inputs(classifier, images)).movedim(1, -1)
    expected = sum(len(part) / 9 * part.reshape(-1, 4).var(0) for part in features.split([7, 2]))
    torch.testing.assert_close(classifier.module.norm.running_var, expected)


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
