"""Rows whose second moments are hard to decompose, as some layers have them, and what float64 makes of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def hard_rows(kind: str, length: int, count: int) -> Tensor:
    """Rows, float32 `[1, count, length]`."""
    generator = torch.Generator().manual_seed(0)
    # A spectrum as layers have it: it falls by some decades.
    turned = torch.linalg.qr(torch.randn(length, length, generator=generator)).Q
    rows = torch.randn(count, length, generator=generator) * torch.logspace(0, -2.5, length) @ turned
    if kind == "dead channels":
        # Nine columns each, as of a 3x3 kernel; 62% of the entries of the matrix are then 0.
        alive = torch.rand(length // 9, generator=generator).argsort() < round(0.62 * (length // 9))
        rows[:, : length // 9 * 9] *= alive.repeat_interleave(9)
    elif kind == "rank one":
        rows = torch.randn(count, 1, generator=generator) * torch.randn(1, length, generator=generator)
    elif kind == "all equal":
        rows = torch.full((count, length), 0.7)
    elif kind == "of 1e-30":
        rows = rows * 1e-30
    elif kind == "of 1e+30":
        rows = rows * 1e30
    elif kind == "repeated eigenvalues":
        # Each row of an orthogonal matrix as often as the others, half of them twice as long.
        sizes = torch.where(torch.arange(length) < length // 2, 2.0, 1.0)
        rows = (sizes[:, None] * turned).repeat(count // length, 1)
    elif kind == "nothing":
        rows = torch.zeros(count, length)
    return rows[None]


HARD_KINDS = (
    "dead channels",
    "rank one",
    "all equal",
    "of 1e-30",
    "of 1e+30",
    "repeated eigenvalues",
    "nothing",
    "ordinary",
)


def float64_moment(rows: Tensor) -> npt.NDArray[np.float64]:
    """`R^T R`, of the rows as they are, by NumPy, over its trace."""
    wide = rows.double().numpy().reshape(-1, rows.shape[-1])
    # What is squared has to fit.
    wide = wide / max(np.abs(wide).max(), 1e-300)
    moment = wide.T @ wide
    return np.asarray(moment / max(np.trace(moment), 1e-300))


def float64_projection(moment: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.float64]:
    """`alpha / (alpha - 1) (I - (I + (alpha - 1) G / tr G)^-1)`, which needs no decomposition."""
    identity = np.eye(len(moment))
    return np.asarray(alpha / (alpha - 1) * (identity - np.linalg.inv(identity + (alpha - 1) * moment)))
