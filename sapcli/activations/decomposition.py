"""Eigendecompositions of second moments, by one driver after the other until one succeeds.

LAPACK's divide and conquer, which `torch.linalg.eigh` calls, gives up on some matrices of real layers, in float32 for
one on that of a 3x3 convolution of 512 channels most of which are dead. Before any driver, columns that saw nothing are
left out, which is faster too, and what is far from 1 is scaled by a power of two, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sapcli.errors import NumericsError

# Outside of these, squares come near what float64 and float32 hold.
_SMALLEST, _LARGEST = 2.0**-64, 2.0**64
# A result is looked at through so many directions: what is wrong with any of its columns shows in each of them.
_PROBES = 4
# So far from orthonormal, or from the matrix, in units of the square root of the precision, is no rounding: that of
# 4,608 columns is a hundred times smaller.
_TOLERANCE = 10.0
# What float32 rounds off of an eigenvalue, at most, in units of its precision and of the largest one; and the part of
# them that has to be above that.
_ROUNDING, _FEW_TOLD = 16, 1 / 8

Decomposed = tuple[Tensor, Tensor]


def decompose(matrix: Tensor, name: str) -> Decomposed:
    """The eigenvalues and eigenvectors of symmetric matrices without negative eigenvalues.

    Args:
        matrix: float32 or float64 `[groups, n, n]`, on a device that has float64.
        name: The weight's name, for errors.

    Returns:
        The eigenvalues, `[groups, k]`, descending and clamped to 0, and the eigenvectors, `[groups, n, k]`, with
        orthonormal columns; `k` is the number of rows of the matrix that are not zero, of several groups the largest
        and at least 1. Float32 or float64, on the matrix' device.

    Raises:
        NumericsError: The matrix holds NaN or infinity, or no driver could decompose it.
    """
    groups, side, _ = matrix.shape
    energies = matrix.diagonal(dim1=-2, dim2=-1)
    largest = energies.abs().amax(dim=-1) if side else energies.sum(dim=-1)
    if not bool(torch.isfinite(matrix.sum())) and not bool(torch.isfinite(matrix).all()):
        raise NumericsError(
            f"the second moment of {name} is NaN or infinite",
            "look at the checkpoint's weights and the preprocessing (--mean, --std): this layer's inputs overflow",
        )
    # What has no energy has no products with others either.
    seen = energies != 0
    kept = max(int(seen.sum(dim=-1).max()), 1) if side else 0
    columns = None
    if kept < side:
        columns = (~seen).to(torch.uint8).argsort(dim=-1, stable=True)[:, :kept].sort(dim=-1).values
        group = torch.arange(groups, device=matrix.device)[:, None, None]
        matrix = matrix[group, columns[:, :, None], columns[:, None, :]]
    unit = _unit(largest)
    if unit is not None:
        matrix = matrix / unit[:, None, None].to(matrix.dtype)
    values, vectors = _first_that_succeeds(matrix, name)
    values, vectors = values.flip(-1).clamp_min(0.0), vectors.flip(-1)
    if unit is not None:
        values = values.double() * unit[:, None]
    if columns is not None:
        everywhere = torch.zeros(groups, side, kept, dtype=vectors.dtype, device=vectors.device)
        vectors = everywhere.scatter_(1, columns[:, :, None].expand(-1, -1, kept), vectors)
    return values, vectors


def _unit(largest: Tensor) -> Tensor | None:
    """A power of two near each group's largest energy, float64 `[groups]`; `None` where none of them is extreme."""
    extreme = (largest > 0) & ((largest < _SMALLEST) | (largest > _LARGEST))
    if not bool(extreme.any()):
        return None
    exponents = torch.where(extreme, largest.double().clamp_min(2.0**-1000).log2().round(), 0.0)
    return torch.exp2(exponents)


def _first_that_succeeds(matrix: Tensor, name: str) -> Decomposed:
    """What the first driver gives whose result is a decomposition, eigenvalues ascending."""
    failures = []
    for driver in _drivers(matrix):
        try:
            values, vectors = driver()
        except (RuntimeError, MemoryError) as error:  # torch.linalg.LinAlgError, which torch does not export, is one
            failures.append(error)
            continue
        if _is_decomposition(matrix, values, vectors) and not _is_mostly_rounding(values):
            return values.to(matrix.device), vectors.to(matrix.device)
    found = f": {str(failures[-1]).splitlines()[0]}" if failures and str(failures[-1]) else ""
    raise NumericsError(
        f"the second moment of {name} could not be decomposed{found}",
        "leave the layer out with --skip-layers; if memory is short, end what else uses it",
    )


def _drivers(matrix: Tensor) -> Iterator[Callable[[], Decomposed]]:
    """Ways to decompose `matrix`: from the fastest to those that succeed where it does not."""
    yield lambda: torch.linalg.eigh(matrix)
    if matrix.dtype != torch.float64:
        yield lambda: torch.linalg.eigh(matrix.double())
    there = matrix.to("cpu", torch.float64)
    if matrix.device.type != "cpu":
        yield lambda: torch.linalg.eigh(there)
    yield lambda: _through_singular_values(there)
    yield lambda: _reversed_and_shifted(there)


def _through_singular_values(matrix: Tensor) -> Decomposed:
    """The singular value decomposition, which of such a matrix is that into eigenvectors."""
    vectors, values, _ = torch.linalg.svd(matrix)
    return values.flip(-1), vectors.flip(-1)


def _reversed_and_shifted(matrix: Tensor) -> Decomposed:
    """That of the matrix from its last row to its first plus a part of the identity: other steps, the same vectors."""
    shift = matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1, keepdim=True) / matrix.shape[-1]
    moved = matrix.flip((-2, -1)) + torch.diag_embed(shift.expand(-1, matrix.shape[-1]))
    values, vectors = torch.linalg.eigh(moved)
    return values - shift, vectors.flip(-2)


def _is_mostly_rounding(values: Tensor) -> bool:
    """Whether float32 tells next to nothing of almost all directions, as of a matrix of rank one.

    The many small energies that rounding gives them would together weigh more than the few that are there.
    """
    if values.dtype == torch.float64:
        return False
    told = values > _ROUNDING * torch.finfo(values.dtype).eps * values[:, -1:]
    return bool((told.sum(dim=-1) < _FEW_TOLD * values.shape[-1]).any())


def _is_decomposition(matrix: Tensor, values: Tensor, vectors: Tensor) -> bool:
    """Whether `U^T U = I` and `G U = U diag(sigma^2)`, seen through a few random directions.

    A difference `E` takes a random `x` of length 1 to a vector of length `||E||_F / sqrt(n)` on average. So neither
    needs the product of two matrices.
    """
    if not bool(torch.isfinite(values).all()) or not bool(torch.isfinite(vectors).all()):
        return False
    matrix, values = matrix.to(vectors.device, vectors.dtype), values.to(vectors.dtype)
    probes = torch.randn(matrix.shape[-1], _PROBES, generator=torch.Generator().manual_seed(0))
    probes = probes.to(vectors.device, vectors.dtype).expand(len(matrix), -1, -1)
    mixed = vectors @ probes
    from_identity = vectors.mT @ mixed - probes
    from_matrix = matrix @ mixed - vectors @ (values.unsqueeze(-1) * probes)
    allowed = _TOLERANCE * torch.finfo(vectors.dtype).eps ** 0.5 * torch.linalg.vector_norm(probes, dim=(-2, -1))
    size = values.abs().amax(dim=-1) if values.shape[-1] else values.sum(dim=-1)
    orthonormal = torch.linalg.vector_norm(from_identity, dim=(-2, -1)) <= allowed
    equal = torch.linalg.vector_norm(from_matrix, dim=(-2, -1)) <= allowed * size
    return bool(orthonormal.all()) and bool(equal.all())
