"""Tests of the second moment of patches from products of the input with itself moved along."""

from __future__ import annotations

import pytest
import torch
from support.brute_force import correlated_images
from test_rows import CASES, layout, reference

from sapcli.activations.correlations import Correlations
from sapcli.activations.rows import Geometry, Patches

CPU = torch.device("cpu")
OVERLAPPING = [case for case in CASES if any(size > 1 and step == 1 for size, step in zip(*case[:2], strict=True))]


def matrix(found: Patches, *more: Patches, weight: float = 1.0) -> torch.Tensor:
    correlations = Correlations(found, CPU)
    for patches in (found, *more):
        correlations.add(patches, weight)
    total = torch.zeros(found.groups, found.row_length, found.row_length, dtype=torch.float64)
    correlations.add_to(total)
    return total


@pytest.mark.parametrize("narrowest", [0, 1 << 30])
@pytest.mark.parametrize("case", OVERLAPPING)
def test_they_give_the_second_moment(case, narrowest, monkeypatch):
    monkeypatch.setattr("sapcli.activations.correlations._NARROWEST", narrowest)
    found = layout(case)
    assert found.overlapping_axes
    rows = reference(found).double()
    torch.testing.assert_close(matrix(found), rows.mT @ rows, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if case not in OVERLAPPING])
def test_patches_that_do_not_overlap_line_by_line(case):
    assert not layout(case).overlapping_axes


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (6, 1)])
def test_maps_no_larger_than_the_kernel(size, monkeypatch):
    monkeypatch.setattr("sapcli.activations.correlations._NARROWEST", 0)
    found = Patches(correlated_images(3, 4, *size), (3, 3), Geometry((1, 1), (1, 1), (1, 1)), 1)
    rows = torch.cat(list(found.chunks()), dim=1).double()
    torch.testing.assert_close(matrix(found), rows.mT @ rows, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("narrowest", [0, 1 << 30])
@pytest.mark.parametrize("elements", [1, 500, 1 << 24])
def test_batches_chunks_and_layouts_make_no_difference(narrowest, elements, monkeypatch):
    monkeypatch.setattr("sapcli.activations.correlations._NARROWEST", narrowest)
    monkeypatch.setattr("sapcli.activations.rows._UNFOLD_ELEMENTS", elements)
    found = layout(((3, 3), (1, 1), (1, 1), (1, 1), 1))
    rows = reference(found).double()
    last = Patches(found.images.to(memory_format=torch.channels_last), found.kernel, found.geometry, found.groups)
    one = Patches(found.images[:1], found.kernel, found.geometry, found.groups)
    expected = 3.0 * (2 * rows.mT @ rows + reference(one).double().mT @ reference(one).double())
    torch.testing.assert_close(matrix(found, last, one, weight=3.0), expected, rtol=1e-5, atol=1e-4)


def test_both_directions_take_fewer_operations(monkeypatch):
    from torch.utils.flop_counter import FlopCounterMode

    found = Patches(correlated_images(2, 128, 8, 8), (3, 3), Geometry((1, 1), (1, 1), (1, 1)), 1)
    counted = []
    for narrowest in (128, 1 << 30):
        monkeypatch.setattr("sapcli.activations.correlations._NARROWEST", narrowest)
        with FlopCounterMode(display=False) as counter:
            matrix(found)
        counted.append(counter.get_total_flops())
    unfolded = 2 * found.count * found.row_length**2
    assert counted[0] < counted[1] / 2
    assert counted[0] < unfolded / 6
    assert counted[1] < unfolded / 2
