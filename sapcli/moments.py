"""Second moments of the rows that each weight multiplies, kept as streaming sums, and their bases.

`G = sum r r^T` over the rows `r`, not centred; with the singular value decomposition of the matrix of all rows,
`G = U diag(sigma^2) U^T` (Kodge et al., arXiv 2403.08618, section 4). No activation outlives its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sapcli.errors import NumericsError
from sapcli.rows import Patches, gram

# Products of at most so many operations are made in float64 from the start: their time does not show.
_CHEAP_OPERATIONS = 1 << 28


@dataclass(frozen=True)
class Basis:
    """The eigenvectors and eigenvalues of one weight's second moment, one set per group.

    Attributes:
        vectors: `U`, float32 `[groups, d, k]`, orthonormal columns, `k <= d`.
        values: `sigma^2`, float64 `[groups, k]`, descending, not negative.
        rows: How many rows were summed, per group.
    """

    vectors: Tensor
    values: Tensor
    rows: int

    @property
    def energy_share(self) -> Tensor:
        """`s_i = sigma_i^2 / sum_j sigma_j^2`, `[groups, k]`; zeros for a group that saw no energy."""
        total = self.values.sum(dim=1, keepdim=True)
        return torch.where(total > 0, self.values / total.clamp_min(torch.finfo(self.values.dtype).tiny), 0.0)


class SecondMoment:
    """The streaming second moment of one weight's rows.

    As long as there are fewer rows than `d`, the rows themselves are kept: they are the smaller matrix, and a layer of
    25,088 inputs never makes a `d x d` matrix from 1,000 rows.

    Args:
        name: The weight's name, for errors.
        groups: Number of independent sets of rows.
        row_length: `d`.
    """

    def __init__(self, name: str, groups: int, row_length: int) -> None:
        self._name = name
        self._shape = (groups, row_length, row_length)
        self._kept: list[Tensor] = []
        self._sum: Tensor | None = None
        self.count = 0

    def add(self, rows: Tensor | Patches) -> None:
        """Add the rows, `[groups, n, d]`; where there is one group, rows of several are all of that one.

        Raises:
            NumericsError: A row holds NaN or infinity.
        """
        groups, row_length, _ = self._shape
        found = rows.groups if isinstance(rows, Patches) else len(rows)
        count = (rows.count if isinstance(rows, Patches) else rows.shape[1]) * (found // groups)
        self._check_finite(rows.images if isinstance(rows, Patches) else rows)
        self.count += count
        if self._sum is None and self.count >= row_length:
            self._begin_sum(rows.images.device if isinstance(rows, Patches) else rows.device)
        cheap = groups * count * row_length**2 <= _CHEAP_OPERATIONS
        if self._sum is not None and isinstance(rows, Patches) and found == groups and rows.can_shift() and not cheap:
            rows.add_shifted_products(self._sum)
            return
        for chunk in rows.chunks() if isinstance(rows, Patches) else (rows,):
            chunk = chunk.reshape(groups, -1, row_length)
            if self._sum is None:
                self._kept.append(chunk.clone())
            else:
                self._fold(chunk)

    def _begin_sum(self, device: torch.device) -> None:
        """From rows to their sum, as soon as that is the smaller of the two."""
        self._sum = torch.zeros(self._shape, dtype=torch.float64, device=_float64_device(device))
        for kept in self._kept:
            self._fold(kept)
        self._kept.clear()

    def _check_finite(self, tensor: Tensor) -> None:
        # A sum is quick, and only where it is not finite are all elements looked at: large ones may add up to infinity.
        if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            raise NumericsError(
                f"the inputs of {self._name} hold NaN or infinite values",
                "look at the checkpoint's weights and the preprocessing (--mean, --std): this layer's inputs overflow",
            )

    def matrix(self) -> Tensor:
        """`G`, float64 `[groups, d, d]`."""
        if self._sum is not None:
            return self._sum
        rows = self._rows()
        return rows.mT @ rows

    def basis(self) -> Basis:
        """The basis of the rows so far; through the Gram matrix of the rows where they are fewer than `d`.

        Raises:
            NumericsError: The decomposition failed.
        """
        if self._sum is not None:
            values, vectors = self._eigh(self._sum)
        else:
            # With the rows R = V diag(sigma) U^T, R R^T = V diag(sigma^2) V^T and U = R^T V / sigma.
            rows = self._rows()
            values, vectors = self._eigh(rows @ rows.mT)
            floor = values[:, :1] * (rows.shape[2] * torch.finfo(values.dtype).eps)
            values = torch.where(values > floor, values, 0.0)
            scale = torch.where(values > 0, values.rsqrt(), 0.0)
            vectors = rows.mT @ vectors * scale.unsqueeze(1)
        return Basis(vectors.to(torch.float32).contiguous(), values.contiguous(), self.count)

    def _fold(self, rows: Tensor) -> None:
        """Add a batch's moment: a product in the rows' own precision where it is large, folded into the float64 sum."""
        assert self._sum is not None
        if rows.numel() * rows.shape[2] <= _CHEAP_OPERATIONS:
            rows = rows.to(self._sum.device, torch.float64)
        self._sum += gram(rows).to(self._sum.device)

    def _rows(self) -> Tensor:
        """The kept rows, float64 `[groups, n, d]`."""
        if not self._kept:
            return torch.zeros(self._shape[0], 0, self._shape[2], dtype=torch.float64)
        rows = torch.cat(self._kept, dim=1)
        return rows.to(_float64_device(rows.device), torch.float64)

    def _eigh(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues, descending and clamped to 0, and eigenvectors of symmetric `[groups, n, n]`."""
        try:
            values, vectors = torch.linalg.eigh(matrix)
        except RuntimeError as error:  # torch.linalg.LinAlgError, which torch does not export, is one
            raise NumericsError(
                f"the second moment of {self._name} could not be decomposed: {error}",
                "run on --device cpu, or leave the layer out with --skip-layers",
            ) from error
        return values.flip(-1).clamp_min(0.0), vectors.flip(-1)


def _float64_device(device: torch.device) -> torch.device:
    """`device`, or the CPU where the device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
