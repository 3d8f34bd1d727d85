"""How much of each direction is kept, and the weights that come of it."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from sapcli.activations.moments import Basis
from sapcli.settings import ForgetMode, Importance


def importance(basis: Basis, kind: Importance, alpha: float) -> Tensor:
    """`lambda`, how much of each direction of `basis` is kept.

    Args:
        basis: Of `groups` groups and `k` directions.
        kind: The formula.
        alpha: The scale coefficient, above 0, or a fraction of the energy (`Importance.takes_fraction`).

    Returns:
        float64 `[groups, k]`, in [0, 1].
    """
    share = basis.energy_share
    match kind:
        case Importance.SAP:
            return alpha * share / ((alpha - 1) * share + 1)
        case Importance.SGP:
            sigma = basis.values.sqrt()
            largest = sigma.amax(dim=1, keepdim=True).clamp_min(torch.finfo(sigma.dtype).tiny)
            return alpha * sigma / ((alpha - 1) * sigma + largest)
        case Importance.GPM:
            # The direction that crosses the fraction is still kept, so that at least the fraction remains.
            before = share.cumsum(dim=1) - share
            return ((before < alpha) & (share > 0)).to(share.dtype)
        case _:
            assert_never(kind)


def coordinates(matrices: Tensor, basis: Basis) -> Tensor:
    """`W U`, `[groups, outputs, k]`, of `W` `[groups, outputs, d]`: the weight in its basis, whatever alpha is."""
    return matrices @ basis.vectors.to(matrices.device, matrices.dtype)


def keep(matrices: Tensor, basis: Basis, kept: Tensor, in_basis: Tensor | None = None) -> Tensor:
    """`W M` with `M = U diag(lambda) U^T`.

    Args:
        matrices: `W`, `[groups, outputs, d]`.
        basis: `U`, of `d` rows a group.
        kept: `lambda`, `[groups, k]`.
        in_basis: The `coordinates` of `W`, where they are at hand.

    Returns:
        `[groups, outputs, d]` in the type of `matrices`.
    """
    vectors = basis.vectors.to(matrices.device, matrices.dtype)
    in_basis = coordinates(matrices, basis) if in_basis is None else in_basis
    return (in_basis * kept.to(matrices.device, matrices.dtype).unsqueeze(1)) @ vectors.mT


def project(
    matrices: Tensor,
    trusted: Basis,
    kind: Importance,
    alpha: float,
    forget: Basis | None = None,
    forget_mode: ForgetMode = ForgetMode.KEEP_SHARED,
    in_basis: Tensor | None = None,
) -> Tensor:
    """The weight after the repair.

    Without a forget set, `W Mr`: the weight on the space of the trusted rows. A group whose trusted rows were all zero
    has no space to be projected onto and stays as it is.

    Args:
        matrices: `W`, `[groups, outputs, d]`, float32 or float64.
        trusted: Basis of the trusted rows.
        kind: The importance formula.
        alpha: Its coefficient.
        forget: Basis of the suspected rows.
        forget_mode: What they take away.
        in_basis: The `coordinates` of `W` in the trusted basis, where they are at hand; unused with a forget set.

    Returns:
        `[groups, outputs, d]` in the type of `matrices`.
    """
    kept = importance(trusted, kind, alpha)
    if forget is None:
        projected = keep(matrices, trusted, kept, in_basis)
        saw_energy = trusted.values.sum(dim=1) > 0
        if bool(saw_energy.all()):
            return projected
        return torch.where(saw_energy.to(matrices.device)[:, None, None], projected, matrices)
    forgotten = importance(forget, kind, alpha)
    remaining = keep(matrices, forget, 1 - forgotten)
    if forget.vectors.shape[2] < forget.vectors.shape[1]:
        # Directions that the forget set never had. For a full basis they are nothing, and computing that nothing would
        # drown a small remainder in rounding.
        remaining = remaining + matrices - keep(matrices, forget, torch.ones_like(forgotten))
    if forget_mode is ForgetMode.KEEP_SHARED:
        remaining = remaining + keep(keep(matrices, trusted, kept), forget, forgotten)
    return remaining
