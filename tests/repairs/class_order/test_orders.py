"""The orders of class folders against the loaders that sort them so."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.data_folders import write_classes
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torchvision.datasets import ImageFolder

from sapcli.repairs.class_order.orders import ClassOrder, known_orders

NAMES = [
    tuple(str(number) for number in range(12)),
    tuple(f"{number:02}" for number in range(12)),
    ("b", "A", "c", "D"),
    ("level9", "level10", "Level1", "x"),
    ("1a2", "1a10", "10a1", "a"),
    ("ape", "bee", "cat"),
]


@pytest.mark.parametrize("names", NAMES)
def test_as_torchvision_and_timm_sort_folders(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_classes(tmp_path, names, images=1)
    assert list(ClassOrder.ALPHABETICAL.sort(names)) == ImageFolder(str(tmp_path)).classes
    of_timm = ReaderImageFolder(str(tmp_path)).class_to_idx
    assert list(ClassOrder.TIMM.sort(names)) == sorted(of_timm, key=of_timm.__getitem__)


def test_only_orders_that_differ_are_told() -> None:
    assert list(known_orders(("ape", "bee", "cat"))) == [ClassOrder.ALPHABETICAL]
    assert list(known_orders(tuple("01")) | known_orders(("00", "07", "10"))) == [ClassOrder.ALPHABETICAL]
    numbers = known_orders(tuple(str(number) for number in range(12)))
    assert list(numbers) == [ClassOrder.ALPHABETICAL, ClassOrder.TIMM]
    assert numbers[ClassOrder.TIMM] == tuple(str(number) for number in range(12))
    assert len(known_orders(("B2", "a10", "a9", "C"))) == 4


def test_names_that_only_differ_in_case_have_one_place_each() -> None:
    assert ClassOrder.TIMM.sort(("a", "A", "01", "1", "²")) == ClassOrder.TIMM.sort(("²", "1", "01", "A", "a"))
