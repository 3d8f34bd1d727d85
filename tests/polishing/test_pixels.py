"""Tests of images in any order, and of what is made of a batch on a GPU, which is pretended."""

from __future__ import annotations

import pytest
import torch
from support.pretended_gpu import CUDA, OnGpu, pretended_gpu
from support.small_project import make_project

from sapcli.activations.scoring import normalise
from sapcli.datasets.dataset import Role, open_dataset
from sapcli.datasets.images import Images
from sapcli.machine.progress import SilentProgress
from sapcli.networks.preprocessing import Preprocessing
from sapcli.polishing.augmentation import Augmentation
from sapcli.polishing.pixels import Pixels
from sapcli.polishing.targets import Targets
from sapcli.polishing.training import mixed_up
from sapcli.settings import Augment

PREPROCESSING = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3, "bilinear", 1.0, "center", "the test")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    dataset = open_dataset(make_project(tmp_path_factory.mktemp("pixels")).data, Role.LEARN, 3)
    assert dataset is not None
    return Images(dataset, PREPROCESSING, batch_size=16, workers=0)


def test_batches_come_in_the_order_that_is_asked_for(images: Images) -> None:
    order = torch.randperm(120)[:50].tolist()
    (every,) = images.batches(batch_size=120)
    expected = every.images
    found = list(Pixels(images, range(120), torch.device("cpu"), SilentProgress()).batches(order, 16))
    assert [len(indices) for indices, _ in found] == [16, 16, 16, 2]
    assert torch.cat([indices for indices, _ in found]).tolist() == order
    for index, image in zip(order, torch.cat([pixels for _, pixels in found]), strict=True):
        assert torch.equal(image, expected[index])


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_batch_is_made_on_the_gpu(images: Images, monkeypatch: pytest.MonkeyPatch, is_held: bool, size: str) -> None:
    order = list(range(119, 0, -3))
    (every,) = images.batches(order, 120)
    expected = every.images
    with pretended_gpu():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1 << 30 if is_held else 0, 1 << 31))
        pixels = Pixels(images, order, CUDA, SilentProgress())
        assert (pixels._held is not None) == is_held
        batches = list(pixels.batches(order, 10))
        indices, batch = batches[0]
        assert all(isinstance(tensor, OnGpu) for tensor in (indices, batch))
        assert indices.tolist() == order[:10]
        assert torch.equal(torch.cat([pixels for _, pixels in batches]).cpu(), expected)
        augmentation = Augmentation(Augment.AUTO, True, (3, 8, 8))
        augmentation.is_small = size == "small"
        inputs = normalise(augmentation(batch), PREPROCESSING)
        targets = Targets(torch.zeros(120, 1, dtype=torch.int64), torch.ones(120, 1), 3).to(CUDA)
        mixed, wanted = mixed_up(inputs, targets.rows(indices), 0.2)
        assert isinstance(mixed, OnGpu)
        assert isinstance(wanted, OnGpu)
        torch.testing.assert_close(wanted.cpu(), torch.tensor([[1.0, 0.0, 0.0]] * 10))
