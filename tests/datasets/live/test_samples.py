"""A live dataset: what its samples become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sapcli.datasets.contents import contents_of, find_contents
from sapcli.datasets.images import Images
from sapcli.datasets.live.samples import LiveDataset, SampleSource, open_live
from sapcli.errors import DatasetError
from sapcli.machine.progress import SilentProgress
from sapcli.networks.preprocessing import Preprocessing, ready_tensors

PLAIN = Preprocessing((3, 4, 6), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center", "the test")


def opened(source: SampleSource, preprocessing: Preprocessing = PLAIN, classes: int = 3) -> LiveDataset:
    return open_live(source, preprocessing, classes, None, SilentProgress())


def picture(number: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_pictures_become_the_pixels_of_the_preprocessing() -> None:
    source = [(picture(number), number % 3) for number in range(5)]
    dataset = opened(source)
    (batch,) = Images(dataset, PLAIN, batch_size=8, workers=2).batches()
    expected = np.stack([np.asarray(image).transpose(2, 0, 1) for image, _ in source])
    assert np.array_equal(batch.images.numpy(), expected)
    assert batch.labels.tolist() == [0, 1, 2, 0, 1]
    (enlarged,) = Images(opened([(picture(1, (3, 2)), 0)]), PLAIN, batch_size=8, workers=0).batches()
    resized = picture(1, (3, 2)).resize((6, 4), Image.Resampling.BILINEAR)
    assert np.array_equal(enlarged.images[0].numpy(), np.asarray(resized).transpose(2, 0, 1))


def test_ready_tensors_stay_as_they_are() -> None:
    tensors = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    dataset = opened([(tensor, 0) for tensor in tensors], ready_tensors((2, 3, 4)))
    images = Images(dataset, ready_tensors((2, 3, 4)), batch_size=2, workers=0)
    found = torch.cat([batch.images for batch in images.batches([4, 0, 1])])
    assert torch.equal(found, tensors[[4, 0, 1]].float())


def test_a_tensor_of_another_shape_is_left_out() -> None:
    dataset = opened([(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 3, 3), 0)], ready_tensors((1, 2, 2)))
    assert dataset.paths == ("sample 0",)
    assert "1 (it has the shape (1, 3, 3), and the first one (1, 2, 2))" in dataset.remarks[0]


def test_the_same_picture_is_found_again() -> None:
    first = opened([(picture(number), 0) for number in range(6)])
    second = opened([(picture(number), 1) for number in (7, 4, 8, 2)])
    contents = contents_of(first, [2, 3, 4])
    assert find_contents(second, contents.values()) == {1: contents[4], 3: contents[2]}
    assert first.fingerprint == opened([(picture(number), 0) for number in range(6)]).fingerprint
    assert first.fingerprint != opened([(picture(number), int(number == 3)) for number in range(6)]).fingerprint


@pytest.mark.parametrize("label", [np.int64(2), torch.tensor(2), torch.tensor([2]), np.array(2)])
def test_labels_of_all_kinds_of_numbers(label: object) -> None:
    assert opened([(picture(0), label)]).labels == (2,)


@pytest.mark.parametrize("label", [3, -2, True, "cat", 1.0, None, torch.tensor([0.1, 0.9])])
def test_what_is_no_label_is_an_error(label: object) -> None:
    with pytest.raises(DatasetError, match="sample 1 of the dataset: its label is"):
        opened([(picture(0), 0), (picture(1), label)])
