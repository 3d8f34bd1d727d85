"""Second moments of the rows that each weight multiplies, kept as streaming sums, and their bases.

`G = sum r r^T` over the rows `r`, not centred; with the singular value decomposition of the matrix of all rows,
`G = U diag(sigma^2) U^T` (Kodge et al., arXiv 2403.08618, section 4). No activation outlives its batch.

Of far more rows than the dimension needs, a part says the same. A layer of many positions gets them from a part of its
images, evenly spread: as many as give 32 rows for each of its `d` columns, and at least 128 of the images. On noisy
CIFAR-10 the projections of a ResNet18 of half width then differ from the exact ones by 3 to 6%, as they do with other
trusted images; a factor of two in alpha, which is hardly seen in the accuracy, makes 23%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sapcli.activations.correlations import Correlations
from sapcli.activations.decomposition import decompose
from sapcli.activations.rows import Geometry, Patches, gram
from sapcli.errors import NumericsError
from sapcli.machine.device import float64_device

# Products of at most so many operations are made in float64 from the start: their time does not show.
_CHEAP_OPERATIONS = 1 << 28
# Sampling begins beyond so many rows a column, and so many images.
ROWS_A_COLUMN = 32
FEWEST_IMAGES = 128
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
# A matrix of this size is decomposed in float32, in a third of the time, where it has so many rows a column that what
# float32 rounds off is far below what other samples would change.
_LARGE = 1024
_MANY_ROWS_A_COLUMN = 2
# Sums of squares of numbers outside of these do not fit float32, which is made to hold them by so many bits at most.
_SMALLEST_SQUARED, _LARGEST_SQUARED = 2.0**-50, 2.0**50
_MOST_BITS = 100


def sampled_share(rows: float, row_length: int, images: int) -> float:
    """What part of the rows of so many images is enough, in (0, 1]."""
    return min(max(ROWS_A_COLUMN * row_length / max(rows, 1), FEWEST_IMAGES / max(images, 1)), 1.0)


def is_decomposed_in_float32(row_length: int, rows: float) -> bool:
    """Whether the second moment of so many rows is large, and what float32 rounds off of it does not matter."""
    return row_length >= _LARGE and rows >= _MANY_ROWS_A_COLUMN * row_length


@dataclass(frozen=True)
class Basis:
    """The eigenvectors and eigenvalues of one weight's second moment, one set per group.

    Attributes:
        vectors: `U`, float32 `[groups, d, k]`, orthonormal columns, `k <= d`: columns of the rows that are all zero
            belong to none.
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
        images: How many images there will be in all, of whose rows a part is enough; `None` takes all rows.
    """

    def __init__(self, name: str, groups: int, row_length: int, images: int | None = None) -> None:
        self._name = name
        self._images = images
        self._units = 0
        self._forward = -1
        self._uses = 0
        self._shape = (groups, row_length, row_length)
        self._kept: list[Tensor] = []
        self._kept_from: list[tuple[int, int]] = []
        self._summing = False
        self._given_up = False
        self._device = torch.device("cpu")
        self._sum: Tensor | None = None
        self._correlations: dict[tuple[torch.Size, Geometry], Correlations] = {}
        self.count = 0

    def add(self, rows: Tensor | Patches, batch: int = 1, first: int | None = None) -> None:
        """Add the rows, `[groups, n, d]`; where there is one group, rows of several are all of that one.

        Args:
            rows: What the weight multiplies.
            batch: How many images they are of.
            first: The position of the first of these among all images, where other processes have others of them.

        Raises:
            NumericsError: A row holds NaN or infinity.
        """
        groups, row_length, _ = self._shape
        images = rows.images if isinstance(rows, Patches) else rows
        found = rows.groups if isinstance(rows, Patches) else len(rows)
        count = (rows.count if isinstance(rows, Patches) else rows.shape[1]) * (found // groups)
        unit = self._checked_unit(images)
        self.count += count
        expected = count * (self._images or 0) / batch
        if not self._summing and max(self.count, expected) >= row_length:
            self._begin_sum(images.device)
        weight = 1.0
        if first is not None:
            self._uses = self._uses + 1 if self._forward == first else 0
            self._forward = first
        if self._images is not None:
            rows, weight = self._sampled(rows, count, batch, first)
            count = rows.count if isinstance(rows, Patches) else rows.shape[1]
        if unit != 1.0:
            rows = replace(rows, images=rows.images / unit) if isinstance(rows, Patches) else rows / unit
            weight *= unit**2
        cheap = groups * count * row_length**2 <= _CHEAP_OPERATIONS
        worthwhile = self._summing and found == groups and not cheap
        if worthwhile and isinstance(rows, Patches) and rows.overlapping_axes:
            self._correlations_of(rows).add(rows, weight)
            return
        for chunk in rows.chunks() if isinstance(rows, Patches) else (rows,):
            chunk = chunk.reshape(groups, -1, row_length)
            if self._summing:
                self._fold(chunk, weight)
            else:
                self._kept.append(chunk * math.sqrt(weight))
                self._kept_from.append((first or 0, self._uses))

    def _sampled(
        self, rows: Tensor | Patches, count: int, batch: int, first: int | None
    ) -> tuple[Tensor | Patches, float]:
        """The part of the rows that is enough, and how much each of them counts.

        A convolution's are those of some of its images, since what neighbouring patches share is computed once; a
        product's are any. Which ones depends on nothing but their numbers: multiples of the golden ratio modulo 1 are
        spread evenly, whatever the batches.
        """
        assert self._images is not None
        share = sampled_share(count * self._images / batch, self._shape[1], self._images)
        if share >= 1:
            return rows, 1.0
        units = len(rows.images) if isinstance(rows, Patches) else rows.shape[1]
        begin = self._units
        if first is not None and units % batch == 0:
            # As a process that has all images would number them, of which each use takes as many.
            begin = (first + self._uses * self._images) * (units // batch)
        places = torch.arange(begin, begin + units, dtype=torch.float64) * _GOLDEN_RATIO % 1
        self._units += units
        chosen = (places < share).nonzero().flatten()
        if isinstance(rows, Patches):
            return replace(rows, images=rows.images[chosen.to(rows.images.device)]), 1 / share
        return rows[:, chosen.to(rows.device)], 1 / share

    def _begin_sum(self, device: torch.device) -> None:
        """From rows to their sum, as soon as that is or will be the smaller of the two."""
        self._summing, self._device = True, float64_device(device)
        for kept in self._kept:
            unit = _unit(_largest(kept))
            self._fold(kept / unit if unit != 1.0 else kept, unit**2)
        self._kept.clear()
        self._kept_from.clear()

    @property
    def is_summing(self) -> bool:
        """Whether there is a sum, and not the rows themselves."""
        return self._summing

    @property
    def kept_rows(self) -> tuple[tuple[int, int, int], ...]:
        """What the kept rows are: the position of each batch's first image, which use in it, and how many rows."""
        return tuple((*where, kept.shape[1]) for where, kept in zip(self._kept_from, self._kept, strict=True))

    def summed(self, device: torch.device) -> Tensor:
        """The sum so far, float64 `[groups, d, d]`, to be changed in place; of none it is zero."""
        if not self._summing:
            self._begin_sum(device)
        return self.matrix()

    def rows(self) -> Tensor:
        """The kept rows, float64 `[groups, n, d]`."""
        return self._rows()

    def take_over(self, count: int, rows: Sequence[Tensor] | None = None) -> None:
        """Be the second moment of the rows of all processes.

        Args:
            count: How many rows each group has in all.
            rows: The rows themselves, in their order; `None` where the sum holds them already.
        """
        self.count = count
        if rows is not None:
            self._kept = list(rows)

    def _correlations_of(self, patches: Patches) -> Correlations:
        """The sum of the patches that are alike but for their images."""
        key = patches.images.shape[1:], patches.geometry
        if key not in self._correlations:
            self._correlations[key] = Correlations(patches, self._device)
        return self._correlations[key]

    def _total(self) -> Tensor:
        """The sum of all that was folded so far, changed in place by what is folded next."""
        if self._sum is None:
            self._sum = torch.zeros(self._shape, dtype=torch.float64, device=self._device)
        return self._sum

    def _checked_unit(self, tensor: Tensor) -> float:
        """The `_unit` of what the weight multiplies."""
        largest = _largest(tensor)
        if not math.isfinite(largest):
            raise NumericsError(
                f"the inputs of {self._name} hold NaN or infinite values",
                "look at the checkpoint's weights and the preprocessing (--mean, --std): this layer's inputs overflow",
            )
        return _unit(largest)

    def matrix(self) -> Tensor:
        """`G`, float64 `[groups, d, d]`; not of a large one after its `basis`."""
        assert not self._given_up
        if self._summing:
            total = self._total()
            while self._correlations:
                self._correlations.popitem()[1].add_to(total)
            return total
        rows = self._rows()
        return rows.mT @ rows

    def basis(self) -> Basis:
        """The basis of all rows, at the end; through the Gram matrix of the rows where they are fewer than `d`.

        Raises:
            NumericsError: The decomposition failed.
        """
        if self._summing:
            in_float32 = is_decomposed_in_float32(self._shape[1], self.count)
            values, vectors = self._decomposed_in_float32() if in_float32 else decompose(self.matrix(), self._name)
        else:
            # With the rows R = V diag(sigma) U^T, R R^T = V diag(sigma^2) V^T and U = R^T V / sigma.
            rows = self._rows()
            values, vectors = decompose(rows @ rows.mT, self._name)
            floor = values[:, :1] * (rows.shape[2] * torch.finfo(values.dtype).eps)
            values = torch.where(values > floor, values, 0.0)
            scale = torch.where(values > 0, values.rsqrt(), 0.0)
            vectors = rows.mT @ vectors * scale.unsqueeze(1)
        return Basis(vectors.to(torch.float32).contiguous(), values.contiguous(), self.count)

    def _fold(self, rows: Tensor, weight: float = 1.0) -> None:
        """Add a batch's moment: a product in the rows' own precision where it is large, folded into the float64 sum."""
        total = self._total()
        if rows.numel() * rows.shape[2] <= _CHEAP_OPERATIONS:
            rows = rows.to(total.device, torch.float64)
        total.add_(gram(rows).to(total.device), alpha=weight)

    def _rows(self) -> Tensor:
        """The kept rows, float64 `[groups, n, d]`."""
        if not self._kept:
            return torch.zeros(self._shape[0], 0, self._shape[2], dtype=torch.float64)
        rows = torch.cat(self._kept, dim=1)
        return rows.to(float64_device(rows.device), torch.float64)

    def _decomposed_in_float32(self) -> tuple[Tensor, Tensor]:
        """As `decompose` of the sum; the matrix is brought to a size that float32 can hold."""
        total = self.matrix()
        size = total.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[:, None, None].clamp_min(1e-300)
        scaled = torch.empty_like(total, dtype=torch.float32)
        torch.div(total, size, out=scaled)
        # Given up before the decomposition takes as much memory again.
        del total
        self._sum, self._given_up = None, True
        values, vectors = decompose(scaled, self._name)
        return values.double() * size.squeeze(-1), vectors


def _largest(tensor: Tensor) -> float:
    """The largest absolute value, NaN or infinite where one is; 0 of none."""
    if not tensor.numel():
        return 0.0
    # In the order in which they lie in memory, which is twenty times faster where the channels lie together.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return float(torch.stack(torch.aminmax(tensor.permute(order))).abs().amax())


def _unit(largest: float) -> float:
    """What to divide by so that squares are neither too large nor too small for float32: 1 for all usual numbers."""
    if not largest or _SMALLEST_SQUARED < largest < _LARGEST_SQUARED:
        return 1.0
    return math.ldexp(1.0, min(max(math.frexp(largest)[1], -_MOST_BITS), _MOST_BITS))
