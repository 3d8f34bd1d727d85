"""Tests of windows into parameters and of convolutions' patches."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.brute_force import correlated_images, patches

from sapcli.activations.rows import Geometry, Patches, WeightView, gram

SIZES = {1: (13,), 2: (9, 7), 3: (5, 6, 4)}
CASES = [
    # kernel, stride, padding, dilation, groups
    ((3,), (1,), (1,), (1,), 1),
    ((4,), (2,), (0,), (3,), 2),
    ((3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((3, 3), (1, 1), (0, 0), (1, 1), 2),
    ((3, 3), (2, 2), (1, 1), (1, 1), 1),
    ((5, 3), (1, 2), (2, 1), (1, 2), 4),
    ((1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((3, 1), (1, 1), (4, 0), (3, 1), 1),
    ((9, 7), (1, 1), (0, 0), (1, 1), 1),
    ((9, 7), (1, 1), (4, 3), (1, 1), 1),
    ((2, 3, 2), (1, 2, 1), (1, 0, 1), (2, 1, 1), 2),
]


def layout(case) -> Patches:
    kernel, stride, padding, dilation, groups = case
    return Patches(correlated_images(3, 4, *SIZES[len(kernel)]), kernel, Geometry(stride, padding, dilation), groups)


def reference(found: Patches) -> torch.Tensor:
    geometry = found.geometry
    padded = F.pad(found.images, [side for p in reversed(geometry.padding) for side in (p, p)])
    return patches(padded, found.kernel, geometry.stride, geometry.dilation, found.groups)


@pytest.mark.parametrize("case", CASES)
def test_patches_are_the_rows_that_a_kernel_multiplies(case):
    found = layout(case)
    rows = torch.cat(list(found.chunks()), dim=1)
    expected = reference(found)
    assert rows.shape == (found.groups, found.count, found.row_length)
    torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize("case", CASES)
def test_patches_times_the_weight_are_the_convolution(case):
    found = layout(case)
    weight = torch.randn(8, 4 // found.groups, *found.kernel)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(found.kernel) - 1]
    geometry = found.geometry
    expected = convolve(found.images, weight, None, geometry.stride, geometry.padding, geometry.dilation, found.groups)
    rows = torch.cat(list(found.chunks()), dim=1)
    outputs = rows @ weight.reshape(found.groups, 8 // found.groups, -1).mT
    torch.testing.assert_close(
        outputs, expected.unflatten(1, (found.groups, -1)).movedim(1, 0).movedim(2, -1).flatten(1, -2)
    )


def test_patches_in_small_chunks_are_the_same(monkeypatch):
    found = layout(CASES[2])
    expected = list(found.chunks())
    monkeypatch.setattr("sapcli.activations.rows._UNFOLD_ELEMENTS", 1)
    chunks = list(found.chunks())
    assert len(chunks) == 3
    torch.testing.assert_close(torch.cat(chunks, dim=1), torch.cat(expected, dim=1))


def test_patches_of_channels_last_images():
    found = layout(CASES[3])
    strided = Patches(found.images.to(memory_format=torch.channels_last), *CASES[3][:1], found.geometry, found.groups)
    torch.testing.assert_close(list(strided.chunks()), list(found.chunks()))


def test_one_number_stands_for_all_dimensions():
    assert Geometry.of([2], [0, 1], [1], 2) == Geometry((2, 2), (0, 1), (1, 1))


def test_gram_of_wide_rows():
    rows = torch.randn(2, 5, 601, dtype=torch.float64)
    torch.testing.assert_close(gram(rows), rows.mT @ rows)


def windows() -> list[tuple[WeightView, torch.Tensor]]:
    """Windows into a flat parameter 0, 1, 2, ... and what they show."""
    flat = torch.arange(2 * 4 * 6)
    cube = flat.view(2, 4, 6)
    return [
        (WeightView((1, 8, 6), (0, 6, 1)), flat.view(1, 8, 6)),
        (WeightView((2, 4, 6), (24, 6, 1)), cube),
        (WeightView((2, 6, 4), (24, 1, 6)), cube.mT),
        (WeightView((1, 3, 6), (0, 12, 1), 6), flat.view(1, 8, 6)[:, 1:7:2]),
        (WeightView((1, 8, 2, 3), (0, 6, 3, 1)), flat.view(1, 8, 2, 3)),
        (WeightView((1, 8, 3, 2), (0, 6, 1, 3)), flat.view(1, 8, 2, 3).mT),
    ]


@pytest.mark.parametrize(("view", "shown"), windows())
def test_windows_show_and_replace(view: WeightView, shown: torch.Tensor):
    flat = torch.arange(48)
    assert torch.equal(view.elements(), shown)
    assert torch.equal(view.window(flat.view(2, 4, 6)), shown)
    matrices = view.matrices(flat)
    assert matrices.shape == (view.groups, view.outputs, view.row_length)
    view.replace(flat, -matrices)
    touched = torch.zeros(48, dtype=torch.bool)
    touched[shown.flatten()] = True
    assert torch.equal(flat[touched], -torch.arange(48)[touched])
    assert torch.equal(flat[~touched], torch.arange(48)[~touched])


def test_windows_of_a_parameter_that_begins_inside_its_storage():
    parameter = torch.arange(60)[12:].view(2, 4, 6)
    view = WeightView((1, 2, 6), (0, 6, 1), 6)
    assert torch.equal(view.window(parameter), parameter.view(1, 8, 6)[:, 1:3])


def test_equal_windows_have_one_form():
    whole = WeightView((1, 4, 6), (0, 6, 1))
    for same in (
        WeightView((1, 4, 2, 3), (77, 6, 3, 1)),
        WeightView((1, 4, 6, 1, 1), (24, 6, 1, 1, 1)),
        WeightView((5, 4, 1, 6), (0, 6, 99, 1)),
    ):
        assert same.simplified() == whole
        assert torch.equal(same.simplified().matrices(torch.arange(24)), same.matrices(torch.arange(24))[:1])
    # A row whose dimensions no single stride walks through stays as it is.
    tangled = WeightView((1, 4, 3, 2), (0, 6, 1, 3))
    assert tangled.simplified() == tangled
    assert WeightView((2, 3, 1), (3, 1, 1)).simplified() == WeightView((2, 3, 1), (3, 1, 0))


def test_windows_that_name_an_element_twice():
    for size in itertools.product((1, 2, 3), repeat=3):
        for stride in itertools.product((0, 1, 2, 3, 6), repeat=3):
            view = WeightView(size, stride)
            elements = view.elements().flatten()
            if view.names_each_element_once():
                assert len(elements.unique()) == len(elements), view
    assert not WeightView((1, 3, 4), (0, 1, 1)).names_each_element_once()
    assert WeightView((2, 6, 4), (24, 1, 6)).names_each_element_once()
