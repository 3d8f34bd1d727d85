"""Tests of streaming second moments and their bases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sapcli.activations.moments import Basis, SecondMoment
from sapcli.activations.rows import Geometry, Patches
from sapcli.errors import NumericsError
from sapcli.repairs.projection import importance
from sapcli.settings import Importance


def rows_of(groups: int, count: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(groups, length, length, generator=generator).tril()
    return torch.randn(groups, count, length, generator=generator) @ mixing


def moment_of(*batches: Tensor) -> SecondMoment:
    moment = SecondMoment("layer.weight", len(batches[0]), batches[0].shape[2])
    for batch in batches:
        moment.add(batch)
    return moment


def reconstructed(basis: Basis) -> Tensor:
    """`U diag(sigma^2) U^T`, float64."""
    vectors = basis.vectors.double()
    return vectors * basis.values.unsqueeze(1) @ vectors.mT


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("count", [1, 7, 8, 50])
def test_a_basis_holds_the_second_moment(groups, count):
    rows = rows_of(groups, count, 8)
    expected = rows.double().mT @ rows.double()
    for sizes in ([count], [1] * count):
        moment = moment_of(*rows.split(sizes, dim=1))
        basis = moment.basis()
        assert basis.rows == moment.count == count
        assert basis.vectors.dtype == torch.float32
        assert basis.values.dtype == torch.float64
        torch.testing.assert_close(moment.matrix(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(reconstructed(basis), expected, rtol=1e-5, atol=1e-5)
        assert bool((basis.values.diff(dim=1) <= 0).all())
        assert bool((basis.values >= 0).all())
        torch.testing.assert_close(basis.energy_share.sum(dim=1), torch.ones(groups, dtype=torch.float64))
        kept = basis.vectors[..., : min(count, 8)].double()
        torch.testing.assert_close(
            kept.mT @ kept, torch.eye(min(count, 8)).double().expand(groups, -1, -1), rtol=0, atol=1e-5
        )


def test_few_rows_make_no_square_matrix():
    basis = moment_of(rows_of(1, 5, 300), rows_of(1, 4, 300, seed=1)).basis()
    assert basis.vectors.shape == (1, 300, 9)


def test_rows_of_many_groups_for_one_matrix_are_all_its_own():
    rows = rows_of(3, 5, 6)
    moment = SecondMoment("layer.weight", 1, 6)
    moment.add(rows)
    moment.add(rows)
    assert moment.count == 30
    flat = rows.reshape(1, -1, 6).double()
    torch.testing.assert_close(moment.matrix(), 2 * flat.mT @ flat, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cheap", [0, 1 << 40])
@pytest.mark.parametrize(("kernel", "groups"), [((3, 3), 1), ((3, 2), 2), ((1, 1), 1)])
def test_patches_and_their_rows_are_the_same(kernel, groups, cheap, monkeypatch):
    monkeypatch.setattr("sapcli.activations.moments._CHEAP_OPERATIONS", cheap)
    generator = torch.Generator().manual_seed(0)
    found = Patches(torch.randn(4, 4, 7, 6, generator=generator), kernel, Geometry((1, 1), (1, 1), (1, 1)), groups)
    moment = SecondMoment("layer.weight", groups, found.row_length)
    moment.add(found)
    moment.add(found)
    rows = torch.cat(list(found.chunks()), dim=1).double()
    assert moment.count == 2 * rows.shape[1]
    torch.testing.assert_close(moment.matrix(), 2 * rows.mT @ rows, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [2, 40])
def test_ranks_below_the_dimension(count):
    direction = torch.tensor([[3.0, 4.0, 0.0, 0.0]])
    basis = moment_of(torch.randn(1, count, 1) * direction).basis()
    assert float(basis.energy_share[0, 0]) == pytest.approx(1)
    torch.testing.assert_close(basis.vectors[0, :, 0].abs(), torch.tensor([0.6, 0.8, 0.0, 0.0]))
    assert bool(torch.isfinite(basis.vectors).all())


@pytest.mark.parametrize("count", [2, 40])
def test_zeros_have_no_energy(count):
    rows = torch.zeros(2, count, 4)
    rows[1] = rows_of(1, count, 4)[0]
    basis = moment_of(rows).basis()
    assert bool(torch.isfinite(basis.vectors).all())
    assert torch.equal(basis.energy_share[0], torch.zeros_like(basis.energy_share[0]))
    assert float(basis.energy_share[1].sum()) == pytest.approx(1)


def test_no_rows_at_all():
    moment = moment_of(torch.zeros(2, 0, 4))
    basis = moment.basis()
    assert basis.rows == 0
    assert not basis.energy_share.any()


def test_scale_does_not_matter():
    rows = rows_of(1, 30, 5)
    share = moment_of(rows).basis().energy_share
    for scale in (1e-15, 1e15):
        torch.testing.assert_close(moment_of(rows * scale).basis().energy_share, share, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_name_the_layer(bad):
    rows = rows_of(1, 5, 4)
    rows[0, 3, 2] = bad
    with pytest.raises(NumericsError, match=r"the inputs of layer\.weight hold NaN or infinite values"):
        moment_of(rows)


def images_like(count: int, side: int, seed: int = 0) -> Tensor:
    """Smooth images that differ from each other in brightness and pattern, `[count, 4, side, side]`."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 4, 3, 3, generator=generator) + torch.randn(count, 4, 1, 1, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return smooth + 0.05 * torch.randn(smooth.shape, generator=generator)


def kept(basis: Basis, alpha: float = 3000.0) -> Tensor:
    """`M`, float64 `[d, d]`."""
    vectors = basis.vectors[0].double()
    return vectors * importance(basis, Importance.SAP, alpha)[0] @ vectors.mT


def convolved(images: Tensor, batch: int, total: int | None) -> SecondMoment:
    moment = SecondMoment("layer.weight", 1, 36, total)
    for part in images.split(batch):
        moment.add(Patches(part, (3, 3), Geometry((1, 1), (1, 1), (1, 1)), 1), len(part))
    return moment


def test_a_part_of_many_rows_tells_about_the_same():
    images = images_like(1200, 16)
    exact, sampled = convolved(images, 100, None), convolved(images, 100, len(images))
    assert exact.count == sampled.count == 1200 * 256
    assert not torch.equal(exact.matrix(), sampled.matrix())
    difference = torch.linalg.matrix_norm(kept(sampled.basis()) - kept(exact.basis()))
    # Another alpha by a factor of two makes a larger difference.
    assert difference < 0.03 * torch.linalg.matrix_norm(kept(exact.basis()))
    assert difference < torch.linalg.matrix_norm(kept(exact.basis(), 6000.0) - kept(exact.basis()))


def test_the_part_does_not_depend_on_the_batches():
    images = images_like(1200, 16)
    expected = convolved(images, 100, 1200).matrix()
    for batch in (1, 64, 1200):
        torch.testing.assert_close(convolved(images, batch, 1200).matrix(), expected, rtol=1e-5, atol=1e-3)


def test_rows_of_products_are_sampled_too():
    rows = rows_of(1, 40_000, 6)
    moment, exact = SecondMoment("layer.weight", 1, 6, images=2000), moment_of(rows)
    for part in rows.split(1000, dim=1):
        moment.add(part, 50)
    assert moment.count == 40_000
    torch.testing.assert_close(moment.basis().energy_share, exact.basis().energy_share, rtol=0.05, atol=0)
    assert not torch.equal(moment.matrix(), exact.matrix())


@pytest.mark.parametrize("images", [1, 40, 128])
def test_all_rows_of_few_images_count(images):
    pictures = images_like(images, 24)
    torch.testing.assert_close(
        convolved(pictures, 64, images).matrix(), convolved(pictures, 64, None).matrix(), rtol=0, atol=0
    )


@pytest.mark.parametrize("rows_a_column", [2, 5])
@pytest.mark.parametrize("alpha", [100.0, 3000.0, 1e5])
def test_a_large_matrix_is_decomposed_in_float32_within_what_samples_decide(alpha, rows_a_column, monkeypatch):
    # A spectrum as layers have it: it falls by five decades.
    length = 96
    generator = torch.Generator().manual_seed(0)
    strengths = torch.logspace(0, -2.5, length)
    turn = torch.linalg.qr(torch.randn(length, length, generator=generator)).Q
    rows = torch.randn(1, rows_a_column * length, length, generator=generator) * strengths @ turn
    exact = moment_of(rows).basis()
    monkeypatch.setattr("sapcli.activations.moments._LARGE", length)
    rounded = moment_of(rows).basis()
    others = moment_of(torch.randn(1, rows_a_column * length, length, generator=generator) * strengths @ turn).basis()
    assert not torch.equal(rounded.values, exact.values)
    torch.testing.assert_close(rounded.values.sum(), exact.values.sum(), rtol=1e-6, atol=0)
    size = torch.linalg.matrix_norm(kept(exact, alpha))
    error = torch.linalg.matrix_norm(kept(rounded, alpha) - kept(exact, alpha)) / size
    by_chance = torch.linalg.matrix_norm(kept(others, alpha) - kept(exact, alpha)) / size
    assert error < 2e-3
    assert error < by_chance / 20
