"""Tests of how images are varied, against one image at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sapcli.errors import UsageError
from sapcli.polishing.augmentation import Augmentation, cropped, shifted
from sapcli.settings import Augment


def test_a_shifted_image_is_a_crop_of_the_reflected_one() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    found = shifted(images, 2, flip=True)
    assert found.is_contiguous(memory_format=torch.channels_last)
    padded = functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").byte()
    seen = set()
    for image, crop in zip(padded, found, strict=True):
        places = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if torch.equal(
                image[:, top : top + 8, left : left + 8].flip(2)
                if mirrored
                else image[:, top : top + 8, left : left + 8],
                crop,
            )
        ]
        assert len(places) == 1
        seen |= set(places)
    assert len({place[:2] for place in seen}) > 15
    assert {place[2] for place in seen} == {False, True}


def test_without_flips_no_image_is_mirrored() -> None:
    ramp = torch.arange(16, dtype=torch.uint8).expand(32, 1, 16, 16).contiguous()
    assert bool((shifted(ramp, 0, flip=False) == ramp).all())
    rising = cropped(ramp, flip=False)
    assert bool((rising[:, :, 8, 12] >= rising[:, :, 8, 3]).all())


def test_a_resized_crop_is_a_part_of_the_image() -> None:
    torch.manual_seed(0)
    rows = torch.arange(100, dtype=torch.uint8)[:, None].expand(100, 100)
    columns = torch.arange(100, dtype=torch.uint8)[None, :].expand(100, 100)
    images = torch.stack([rows, columns]).expand(200, 2, 100, 100)
    found = cropped(images, flip=True)
    assert found.shape == images.shape
    height = found[:, 0, 95, 50] - found[:, 0, 5, 50]
    width = found[:, 1, 50, 95] - found[:, 1, 50, 5]
    mirrored = width < 0
    assert 60 < int(mirrored.sum()) < 140
    area = (height / 90) * (width.abs() / 90)
    assert float(area.min()) > 0.3
    assert float(area.max()) <= 1.01
    assert 0.5 < float(area.median()) < 0.85


@pytest.mark.parametrize("kind", [Augment.TRIVIAL, Augment.RAND])
def test_stronger_ones_keep_shape_and_type_and_follow_the_seed(kind: Augment) -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    augmentation = Augmentation(kind, True, (3, 16, 16))
    torch.manual_seed(1)
    first = augmentation(images)
    torch.manual_seed(1)
    assert torch.equal(augmentation(images), first)
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    with pytest.raises(UsageError, match="channels"):
        Augmentation(kind, True, (4, 16, 16))


def test_nothing_is_varied_where_nothing_is_asked_for() -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(Augmentation(Augment.NONE, False, (3, 16, 16))(images), images)
