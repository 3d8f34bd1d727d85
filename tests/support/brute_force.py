"""Projections computed the long way, in float64 and from stored rows, and the same through the program's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sapcli.activations.bases import SecondMoments
from sapcli.machine.progress import SilentProgress
from sapcli.repairs.projection import project
from sapcli.settings import Importance

ALPHA = 1000.0
TOLERANCE = 1e-4


def project_rows(matrices: Tensor, rows: Tensor, alpha: float) -> Tensor:
    """`W U diag(lambda) U^T` from the singular value decomposition of the rows; float64 `[groups, out, d]`.

    A group that saw only zeros stays as it is.
    """
    projected = []
    for matrix, of_group in zip(matrices.double(), rows.double(), strict=True):
        if not of_group.any():
            projected.append(matrix)
            continue
        _, sigma, vectors = torch.linalg.svd(of_group, full_matrices=False)
        share = sigma**2 / (sigma**2).sum()
        kept = alpha * share / ((alpha - 1) * share + 1)
        projected.append(matrix @ vectors.T @ torch.diag(kept) @ vectors)
    return torch.stack(projected)


def project_closed_form(matrices: Tensor, rows: Tensor, alpha: float) -> Tensor:
    """The same without a decomposition, `W alpha / (alpha - 1) (I - (I + (alpha - 1) G / tr G)^-1)`."""
    moments = rows.double().mT @ rows.double()
    totals = moments.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    shares = moments / totals.clamp_min(1e-300)
    factors = torch.linalg.cholesky(torch.eye(rows.shape[-1], dtype=torch.float64) + (alpha - 1) * shares)
    matrices = matrices.double()
    projected = alpha / (alpha - 1) * (matrices - torch.cholesky_solve(matrices.mT, factors).mT)
    return torch.where(totals > 0, projected, matrices)


def patches(
    images: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """The rows that a convolution multiplies, `[groups, n, d]`, of a padded input `[N, C, *spatial]`."""
    axes = len(kernel)
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        images = images.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    rows = images.unflatten(1, (groups, -1)).movedim(1, 0)
    return rows.movedim(2, 2 + axes).flatten(1, 1 + axes).flatten(2)


@dataclass
class Repair:
    """What the program makes of a network: its weights after the projection, and those that it leaves, with reasons."""

    weights: dict[str, Tensor]
    skipped: dict[str, str]
    rows: dict[str, list[int]] = field(default_factory=dict)


def repair(module: nn.Module, batches: Sequence[Tensor], alpha: float, kind: Importance = Importance.SAP) -> Repair:
    """Capture, decompose and project as the commands do, without their files."""
    moments = SecondMoments(module)
    with moments.capture as capture:
        for batch in batches:
            capture.forward(batch)
    skipped = moments.skipped()
    originals = dict(module.named_parameters())
    result = Repair({}, skipped)
    for name, pieces in moments.pieces(SilentProgress()).items():
        original = originals[name].detach().contiguous()
        projected = original.clone()
        for piece in pieces:
            piece.view.replace(projected, project(piece.view.matrices(original), piece.basis, kind, alpha))
        result.weights[name] = projected
        result.rows[name] = [piece.basis.rows for piece in pieces]
    return result


def expect(
    module: nn.Module, matrices: Callable[[dict[str, Tensor]], list[tuple[Tensor, Tensor]]], alpha: float
) -> dict[str, Tensor]:
    """The weights after the projection, float64.

    Args:
        module: The network.
        matrices: Given the parameters, views of them `[groups, out, d]` and the rows `[groups, n, d]` of each.
        alpha: The scale coefficient.
    """
    parameters = {name: parameter.detach().double().contiguous() for name, parameter in module.named_parameters()}
    changed = {name: parameter.clone() for name, parameter in parameters.items()}
    for view, rows in matrices(changed):
        view.copy_(project_rows(view.clone(), rows, alpha))
    return {name: tensor for name, tensor in changed.items() if not torch.equal(tensor, parameters[name])}


def relative_difference(found: Tensor, expected: Tensor, weight: Tensor) -> float:
    """`||found - expected|| / ||weight||`, Frobenius."""
    return float((found.detach().double() - expected.detach().double()).norm() / weight.detach().double().norm())


class Recorder:
    """The rows that every call of `F.linear` and `F.conv*d` multiplies a parameter's outputs with."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = {name: p.detach() for name, p in module.named_parameters() if p.dim() >= 2}
        self.rows: dict[tuple[str, int, int, int], list[Tensor]] = {}

    @contextmanager
    def patched(self, monkeypatch) -> Iterator[None]:
        """Record while the context lasts."""
        with monkeypatch.context() as patch:
            patch.setattr(F, "linear", self._wrapped(F.linear, self._record_linear))
            for axes in (1, 2, 3):
                name = f"conv{axes}d"
                patch.setattr(F, name, self._wrapped(getattr(F, name), self._record_convolution))
            yield

    def expected(self, alpha: float) -> dict[str, Tensor]:
        """The projected weights."""
        result = {}
        for (name, begin, end, groups), chunks in self.rows.items():
            rows = torch.cat(chunks, dim=1)
            projected = result.setdefault(name, self._parameters[name].double().clone())
            matrices = self._parameters[name][begin:end].reshape(groups, (end - begin) // groups, -1)
            quicker = project_rows if rows.shape[1] < rows.shape[2] / 2 else project_closed_form
            projected[begin:end] = quicker(matrices, rows, alpha).reshape(projected[begin:end].shape)
        return result

    def _wrapped(self, function, record):
        def wrapper(images, weight, *args, **kwargs):
            record(images.detach(), weight.detach(), *args, **kwargs)
            return function(images, weight, *args, **kwargs)

        return wrapper

    def _record_linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:  # noqa: ARG002
        self._add(weight, rows.reshape(1, -1, rows.shape[-1]))

    def _record_convolution(self, images, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # noqa: ARG002
        axes = weight.dim() - 2

        def spread(value):
            return (value,) * axes if isinstance(value, int) else tuple(value)

        assert not isinstance(padding, str), "pad the zoo's networks by numbers"
        images = F.pad(images, [side for p in reversed(spread(padding)) for side in (p, p)])
        self._add(weight, patches(images, weight.shape[2:], spread(stride), spread(dilation), groups))

    def _add(self, weight: Tensor, rows: Tensor) -> None:
        for name, parameter in self._parameters.items():
            inside = weight.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
            if inside and weight.shape[1:] == parameter.shape[1:]:
                begin = (weight.storage_offset() - parameter.storage_offset()) // parameter.stride(0)
                self.rows.setdefault((name, begin, begin + len(weight), len(rows)), []).append(rows)
                return
        raise AssertionError(f"a weight {list(weight.shape)} that is no parameter's outputs")


def assert_as_expected(module: nn.Module, batches: Sequence[Tensor], expected: dict[str, Tensor]) -> None:
    """Repair the network, and compare: exactly these weights change, each within a ten-thousandth of its norm."""
    found = repair(module, batches, ALPHA)
    assert set(found.weights) == set(expected)
    parameters = dict(module.named_parameters())
    for name, tensor in expected.items():
        assert relative_difference(found.weights[name], tensor, parameters[name]) < TOLERANCE, name
        assert relative_difference(tensor, parameters[name], parameters[name]) > TOLERANCE, f"{name} is hardly changed"


class Function(nn.Module):
    """A network that is one function of itself, with parameters of these shapes, and its input."""

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(self, x)


def correlated_images(count: int, channels: int, *size: int, seed: int = 0) -> Tensor:
    """Images in which neighbouring pixels are alike, `[count, channels, *size]`, of about unit variance."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels, *size, generator=generator)
    for axis in range(2, images.dim()):
        images = images.cumsum(axis) / 2
    return images / images.std()


def split(images: Tensor, *sizes: int) -> list[Tensor]:
    """Batches of these sizes."""
    ends = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    return [images[begin:end] for begin, end in pairwise(ends)]
