"""Second moments of 4,608 columns, those of a 3x3 convolution of 512 channels, each decomposed in a minute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.spectra import float64_moment, float64_projection, hard_rows

from sapcli.activations.moments import SecondMoment
from sapcli.repairs.projection import importance
from sapcli.settings import Importance

LENGTH = 4608
ALPHA = 3000.0


# The one that LAPACK gives up on in float32, and one of fewer rows; all kinds run at a smaller size in every test run.
@pytest.mark.parametrize(("kind", "count"), [("dead channels", 2 * LENGTH), ("repeated eigenvalues", LENGTH // 2)])
def test_a_full_size_second_moment(kind: str, count: int) -> None:
    rows = hard_rows(kind, LENGTH, max(count, LENGTH))[:, :count]
    moment = SecondMoment("layer.weight", 1, LENGTH)
    for part in rows.chunk(4, dim=1):
        moment.add(part)
    basis = moment.basis()
    exact = float64_moment(rows)
    share = basis.energy_share[0]
    assert float(share.sum()) == pytest.approx(float(np.trace(exact)), abs=1e-6)
    # The squares of all entries are those of the eigenvalues.
    assert float(share.square().sum()) == pytest.approx(float(np.square(exact).sum()), rel=1e-3, abs=1e-12)
    vectors = basis.vectors[0].double()
    projection = (vectors * importance(basis, Importance.SAP, ALPHA)[0] @ vectors.mT).numpy()
    expected = float64_projection(exact, ALPHA)
    assert np.linalg.norm(projection - expected) <= 2e-3 * np.linalg.norm(expected)
    assert torch.equal(basis.values, basis.values.sort(descending=True).values)
