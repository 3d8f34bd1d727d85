"""Tests that every second moment is decomposed, against NumPy in float64 and the closed form of the projection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.pretended_gpu import pretended_gpu
from support.spectra import HARD_KINDS, float64_moment, float64_projection, hard_rows
from torch import Tensor

from sapcli.activations.decomposition import decompose
from sapcli.activations.moments import Basis, SecondMoment
from sapcli.activations.rows import Geometry, Patches
from sapcli.errors import NumericsError
from sapcli.repairs.projection import importance
from sapcli.settings import Importance

LENGTH = 90
EIGH = torch.linalg.eigh


def basis_of(rows: Tensor, device: str = "cpu") -> Basis:
    """The basis of rows that come in three batches."""
    place = torch.device(device) if device == "cpu" else torch.device(device, 0)
    with contextlib.nullcontext() if device == "cpu" else pretended_gpu(place):
        moment = SecondMoment("layer.weight", len(rows), rows.shape[2])
        for part in rows.chunk(3, dim=1):
            moment.add(part.to(place))
        basis = moment.basis()
        return Basis(basis.vectors.cpu(), basis.values.cpu(), basis.rows)


def assert_right(basis: Basis, rows: Tensor, alpha: float = 300.0, tolerance: float = 1e-4) -> None:
    """Compare shares of the energy and the projection with those of float64."""
    moment = float64_moment(rows)
    shares = np.linalg.eigvalsh(moment)[::-1].clip(0)
    found = basis.energy_share[0].numpy()
    kept = len(found)
    assert np.abs(found - shares[:kept]).max() < tolerance
    assert np.abs(shares[kept:]).sum() < tolerance
    vectors = basis.vectors[0].double()
    projection = (vectors * importance(basis, Importance.SAP, alpha)[0] @ vectors.mT).numpy()
    assert np.linalg.norm(projection - float64_projection(moment, alpha)) < tolerance * np.sqrt(len(moment))


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("large", [True, False], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", HARD_KINDS)
def test_hard_spectra(kind: str, large: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr("sapcli.activations.moments._LARGE", LENGTH)
    rows = hard_rows(kind, LENGTH, 4 * LENGTH)
    assert_right(basis_of(rows, device), rows)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("kind", HARD_KINDS)
def test_hard_spectra_of_fewer_rows_than_columns(kind: str, device: str) -> None:
    # A multiple of the columns is what "repeated eigenvalues" has.
    count = LENGTH if kind == "repeated eigenvalues" else 40
    rows = hard_rows(kind, LENGTH, count)[:, :40]
    basis = basis_of(rows, device)
    assert basis.vectors.shape[2] <= 40
    assert_right(basis, rows)


@pytest.mark.parametrize("cheap", [0, 1 << 40], ids=["in float32", "in float64"])
@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e-38, 3e37])
def test_what_float32_cannot_square_is_summed(scale: float, cheap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapcli.activations.moments._CHEAP_OPERATIONS", cheap)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 3, 6, 6, generator=generator)
    for geometry in (Geometry((1, 1), (1, 1), (1, 1)), Geometry((2, 2), (0, 0), (1, 1))):
        bases = []
        for factor in (1.0, scale):
            moment = SecondMoment("layer.weight", 1, 27)
            for part in (images * factor).split([1, 39]):
                moment.add(Patches(part, (3, 3), geometry, 1))
            bases.append(moment.basis())
        # Denormal numbers have fewer digits.
        torch.testing.assert_close(bases[1].energy_share, bases[0].energy_share, rtol=1e-4, atol=1e-7)
        ratio = bases[1].values[0, 0] / bases[0].values[0, 0]
        assert float(ratio) == pytest.approx(float(torch.tensor(scale)) ** 2, rel=1e-3)


def test_columns_that_saw_nothing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []

    def eigh(matrix: Tensor) -> object:
        sides.append(matrix.shape[-1])
        return EIGH(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    rows = hard_rows("dead channels", LENGTH, 4 * LENGTH)
    alive = int((rows != 0).any(dim=1).sum())
    basis = basis_of(rows)
    assert sides == [alive]
    assert alive < LENGTH
    assert basis.vectors.shape == (1, LENGTH, alive)
    assert not basis.vectors[0][~(rows[0] != 0).any(dim=0)].any()


def test_groups_leave_out_their_own_columns() -> None:
    rows = torch.cat([hard_rows("ordinary", 18, 100), hard_rows("dead channels", 18, 100)])
    rows = torch.cat([rows, rows[1:].flip(2), torch.zeros(1, 100, 18)])
    rows[0, :, 3] = 0
    basis = basis_of(rows)
    assert basis.vectors.shape == (4, 18, 17)
    for group in range(4):
        one = Basis(basis.vectors[group : group + 1], basis.values[group : group + 1], basis.rows)
        assert_right(one, rows[group : group + 1])
    identity = torch.eye(17).expand(4, -1, -1)
    torch.testing.assert_close(basis.vectors.mT @ basis.vectors, identity, rtol=0, atol=1e-5)


def test_a_matrix_without_dead_columns_is_decomposed_as_it_is() -> None:
    rows = hard_rows("ordinary", 30, 100).double()
    values, vectors = decompose(rows.mT @ rows, "layer.weight")
    plain_values, plain_vectors = EIGH(rows.mT @ rows)
    assert torch.equal(values, plain_values.flip(-1).clamp_min(0))
    assert torch.equal(vectors, plain_vectors.flip(-1))


@pytest.mark.parametrize("kind", ["rank one", "all equal", "ordinary"])
def test_what_is_mostly_rounding_in_float32_is_decomposed_in_float64(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: list[torch.dtype] = []

    def eigh(matrix: Tensor) -> object:
        dtypes.append(matrix.dtype)
        return EIGH(matrix)

    monkeypatch.setattr("sapcli.activations.moments._LARGE", LENGTH)
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    rows = hard_rows(kind, LENGTH, 4 * LENGTH)
    # So large an alpha would show what rounding leaves of each direction.
    if kind != "ordinary":
        assert_right(basis_of(rows), rows, alpha=1e5, tolerance=1e-3)
        assert dtypes == [torch.float32, torch.float64]
    else:
        basis_of(rows)
        assert dtypes == [torch.float32]


def _gives_up(_matrix: Tensor) -> tuple[Tensor, Tensor]:
    raise torch._C._LinAlgError("the algorithm failed to converge")


def _out_of_memory(_matrix: Tensor) -> tuple[Tensor, Tensor]:
    raise RuntimeError("CUDA error: out of memory")


def _gives_nan(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = EIGH(matrix)
    return values, vectors * float("nan")


def _one_vector_twice(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = EIGH(matrix)
    vectors = vectors.clone()
    vectors[..., 0] = vectors[..., 1]
    return values, vectors


def _in_wrong_order(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = EIGH(matrix)
    return values, vectors.flip(-1)


FAILURES = (_gives_up, _out_of_memory, _gives_nan, _one_vector_twice, _in_wrong_order)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("failing", ["float32", "the GPU", "all eigh"])
@pytest.mark.parametrize("failure", FAILURES)
def test_another_driver_does_what_one_cannot(
    failure: Callable[[Tensor], tuple[Tensor, Tensor]], failing: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sapcli.activations.moments._LARGE", LENGTH)
    failed = []

    def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        fails = {
            "float32": matrix.dtype == torch.float32,
            "the GPU": matrix.device.type != "cpu" or matrix.dtype == torch.float32,
            "all eigh": True,
        }
        if not fails[failing]:
            found: tuple[Tensor, Tensor] = EIGH(matrix)
            return found
        failed.append(str(matrix.device))
        return failure(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    rows = hard_rows("dead channels", LENGTH, 4 * LENGTH)
    assert_right(basis_of(rows, device), rows)
    assert failed


def test_the_last_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = hard_rows("dead channels", LENGTH, 4 * LENGTH)
    tried: list[int] = []

    def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        tried.append(matrix.shape[-1])
        return _gives_up(matrix) if len(tried) == 1 else EIGH(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    monkeypatch.setattr(torch.linalg, "svd", _gives_up)
    assert_right(basis_of(rows), rows)
    assert len(tried) == 2


def test_where_no_driver_succeeds_the_layer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.linalg, "eigh", _gives_up)
    monkeypatch.setattr(torch.linalg, "svd", _gives_up)
    with pytest.raises(NumericsError, match=r"the second moment of layer\.weight could not be decomposed: the algor"):
        basis_of(hard_rows("ordinary", 8, 20))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_stop_a_decomposition(bad: float) -> None:
    matrix = torch.eye(4, dtype=torch.float64)[None].clone()
    matrix[0, 1, 2] = matrix[0, 2, 1] = bad
    with pytest.raises(NumericsError, match=r"the second moment of layer\.weight is NaN or infinite"):
        decompose(matrix, "layer.weight")
