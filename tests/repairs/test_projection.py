"""Tests of the projection against its formulas, its closed form, and the published code's results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import safe_open
from support.brute_force import Function, project_closed_form, project_rows, relative_difference
from torch import Tensor, nn

from sapcli.activations.bases import SecondMoments
from sapcli.activations.moments import Basis, SecondMoment
from sapcli.machine.progress import SilentProgress
from sapcli.repairs.projection import importance, keep, project
from sapcli.settings import ForgetMode, Importance

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "projections.safetensors"


def basis_of(rows: Tensor) -> Basis:
    moment = SecondMoment("layer.weight", len(rows), rows.shape[2])
    moment.add(rows)
    return moment.basis()


@pytest.fixture
def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 40, 6, generator=generator) * torch.tensor([8.0, 4, 2, 1, 0.5, 0.1])


@pytest.fixture
def matrices() -> Tensor:
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("alpha", [2.0, 1000.0, 1e6])
def test_sap_is_the_formula_of_the_paper(rows, matrices, alpha):
    projected = project(matrices, basis_of(rows), Importance.SAP, alpha)
    torch.testing.assert_close(projected.double(), project_rows(matrices, rows, alpha), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(projected.double(), project_closed_form(matrices, rows, alpha), rtol=1e-5, atol=1e-6)


def test_the_importance_formulas():
    values = torch.tensor([[60.0, 30.0, 9.0, 1.0]], dtype=torch.float64)
    basis = Basis(torch.eye(4)[None], values, 10)
    sap = importance(basis, Importance.SAP, 99.0)
    torch.testing.assert_close(sap, 99 * values / 100 / (98 * values / 100 + 1))
    assert float(sap[0, 3]) == pytest.approx(0.5)  # lambda is 1/2 at s = 1 / (alpha + 1)
    sgp = importance(basis, Importance.SGP, 10.0)
    sigma = values.sqrt()
    torch.testing.assert_close(sgp, 10 * sigma / (9 * sigma + sigma[0, 0]))
    assert float(sgp[0, 0]) == pytest.approx(1)
    basis = Basis(torch.eye(4)[None], torch.tensor([[8.0, 4.0, 3.0, 1.0]], dtype=torch.float64), 10)
    for energy, kept in ((0.4, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.8, 3), (15 / 16, 3), (0.95, 4), (1.0, 4)):
        expected = [1.0] * kept + [0.0] * (4 - kept)
        assert importance(basis, Importance.GPM, energy)[0].tolist() == expected, energy


def test_large_alpha_keeps_the_weight(rows, matrices):
    torch.testing.assert_close(project(matrices, basis_of(rows), Importance.SAP, 1e12), matrices, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Importance.SAP, Importance.SGP])
def test_importance_grows_with_alpha_and_lies_within_0_and_1(rows, kind):
    basis = basis_of(rows)
    kept = torch.stack([importance(basis, kind, alpha) for alpha in (1e-3, 1.0, 10.0, 1e3, 1e9)])
    assert bool((kept.diff(dim=0) >= -1e-12).all())
    assert bool(((kept >= 0) & (kept <= 1 + 1e-12)).all())


@pytest.mark.parametrize("kind", list(Importance))
@pytest.mark.parametrize("count", [3, 40])
def test_a_group_that_saw_only_zeros_stays_as_it_is(rows, matrices, kind, count):
    rows = rows[:, :count].clone()
    rows[0] = 0
    projected = project(matrices, basis_of(rows), kind, 0.9)
    assert torch.equal(projected[0], matrices[0])
    assert bool(torch.isfinite(projected).all())
    assert not torch.equal(projected[1], matrices[1])


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("kind", list(Importance))
def test_dead_inputs_lose_their_columns(rows, matrices, kind, count):
    rows = rows[:, :count].clone()
    rows[..., 2] = 0
    projected = project(matrices, basis_of(rows), kind, 0.9)
    assert float(projected[..., 2].abs().max()) < 1e-5


def test_a_single_input_channel_is_kept():
    matrices, rows = torch.randn(1, 4, 1), torch.randn(1, 9, 1)
    torch.testing.assert_close(project(matrices, basis_of(rows), Importance.SAP, 10.0), matrices)


@pytest.mark.parametrize("count", [3, 40])
def test_a_full_forget_set_with_nothing_shared_leaves_nothing_of_its_span(rows, matrices, count):
    forget = basis_of(rows[:, :count])
    left = project(matrices, basis_of(rows), Importance.SAP, 1e15, forget, ForgetMode.ALL)
    outputs = rows[:, :count] @ left.mT
    assert float(outputs.norm()) < 1e-3 * float((rows[:, :count] @ matrices.mT).norm())
    if count < 6:
        span = torch.linalg.svd(rows[:, :count], full_matrices=True).Vh[:, count:]
        torch.testing.assert_close(left @ span.mT, matrices @ span.mT, rtol=1e-4, atol=1e-5)


def test_forgetting_what_the_trusted_set_shares_changes_nothing(rows, matrices):
    basis = basis_of(rows)
    kept = project(matrices, basis, Importance.SAP, 1e12, basis, ForgetMode.KEEP_SHARED)
    torch.testing.assert_close(kept, matrices, rtol=1e-4, atol=1e-4)


def test_float64_weights_stay_in_float64(rows, matrices):
    basis = basis_of(rows)
    projected = project(matrices.double(), basis, Importance.SAP, 1000.0)
    assert projected.dtype == torch.float64
    kept = importance(basis, Importance.SAP, 1000.0)
    torch.testing.assert_close(projected, keep(matrices.double(), basis, kept))


# The published code's own results


def golden_layer(case: str, weight: Tensor) -> nn.Module:
    if weight.dim() == 2:
        return Function(lambda m, x: F.linear(x, m.weight), weight=tuple(weight.shape))
    options = {
        "conv1x1": {},
        "conv3x3_stride2_pad1": {"stride": 2, "padding": 1},
        "conv5x3_dilated": {"padding": (2, 1), "dilation": (1, 2)},
    }[case]
    return nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False, **options)


def golden_keys() -> Iterator[str]:
    if GOLDEN.exists():
        with safe_open(GOLDEN, "pt") as file:
            yield from sorted({key.rsplit("/", 1)[0] for key in file.keys() if "/projected/" in key})  # noqa: SIM118


@pytest.mark.skipif(not GOLDEN.exists(), reason="the reference projections are not beside the project")
@pytest.mark.parametrize("key", list(golden_keys()))
def test_published_projections(key):
    case, _, kind, alpha = key.split("/")
    with safe_open(GOLDEN, "pt") as file:
        weight = file.get_tensor(f"{case}/weight")
        inputs = {name: file.get_tensor(f"{case}/{name}") for name in ("input", "forget_input")}
        expected = {name: file.get_tensor(f"{key}/{name}") for name in ("trusted", "forget", "forget_keep_shared")}
    layer = golden_layer(case, weight)
    layer.weight.data.copy_(weight)
    pieces = {}
    for name, images in inputs.items():
        moments = SecondMoments(layer)
        with moments.capture as capture:
            for batch in images.split(5):
                capture.forward(batch)
        (pieces[name],) = moments.pieces(SilentProgress())["weight"]
    piece = pieces["input"]
    forget = {
        "trusted": {},
        "forget": {"forget": pieces["forget_input"].basis, "forget_mode": ForgetMode.ALL},
        "forget_keep_shared": {"forget": pieces["forget_input"].basis, "forget_mode": ForgetMode.KEEP_SHARED},
    }
    for name, options in forget.items():
        found = weight.clone()
        projected = project(piece.view.matrices(weight), piece.basis, Importance(kind), float(alpha), **options)
        piece.view.replace(found, projected)
        assert relative_difference(found, expected[name], weight) < 1e-5, name
