"""Every convolution and product with a weight as one factor, against rows worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.brute_force import ALPHA, Function, assert_as_expected, correlated_images, expect, patches, repair, split
from torch import Tensor, nn

# Convolutions


@dataclass(frozen=True)
class Convolution:
    """A layer to be built; `outputs` and `channels` are numbers of channels."""

    axes: int
    channels: int
    outputs: int
    kernel: int | tuple[int, ...]
    options: dict[str, object]
    transposed: bool = False


CONVOLUTIONS = {
    "plain": Convolution(2, 3, 4, 3, {}),
    "stride": Convolution(2, 3, 4, 3, {"stride": 2, "padding": 1}),
    "oblong": Convolution(2, 3, 4, (5, 3), {"padding": (2, 1), "dilation": (1, 2)}),
    "same": Convolution(2, 3, 4, 3, {"padding": "same"}),
    "same, even kernel": Convolution(2, 3, 4, (4, 2), {"padding": "same", "dilation": (1, 3)}),
    "valid": Convolution(2, 3, 4, 3, {"padding": "valid"}),
    "reflect": Convolution(2, 3, 4, 3, {"padding": 2, "padding_mode": "reflect"}),
    "replicate": Convolution(2, 3, 4, 3, {"padding": (1, 2), "padding_mode": "replicate"}),
    "circular": Convolution(2, 3, 4, 3, {"padding": 1, "padding_mode": "circular"}),
    "circular same": Convolution(2, 3, 4, (2, 3), {"padding": "same", "padding_mode": "circular"}),
    "patch embedding": Convolution(2, 3, 8, 4, {"stride": 4}),
    "pixelwise": Convolution(2, 5, 4, 1, {}),
    "pixelwise, stride": Convolution(2, 5, 4, 1, {"stride": 3}),
    "grouped": Convolution(2, 6, 4, 3, {"groups": 2, "padding": 1}),
    "depthwise": Convolution(2, 4, 4, 3, {"groups": 4, "padding": 1}),
    "depthwise, two outputs": Convolution(2, 4, 8, 3, {"groups": 4, "dilation": 2}),
    "one channel": Convolution(2, 1, 4, 3, {}),
    "one weight a channel": Convolution(2, 4, 4, 1, {"groups": 4}),
    "kernel over the whole image": Convolution(2, 3, 4, (9, 8), {}),
    "more padding than kernel": Convolution(2, 3, 4, 2, {"padding": 3}),
    "1d": Convolution(1, 3, 4, 3, {"padding": 1, "dilation": 2, "stride": 2}),
    "1d, reflect": Convolution(1, 3, 4, 5, {"padding": 2, "padding_mode": "reflect"}),
    "1d, grouped": Convolution(1, 6, 3, 3, {"groups": 3}),
    "3d": Convolution(3, 2, 4, (2, 3, 2), {"padding": (1, 0, 1), "stride": (1, 2, 1)}),
    "3d, grouped": Convolution(3, 4, 4, 2, {"groups": 2, "dilation": (2, 1, 2)}),
}
TRANSPOSED = {
    "1d": Convolution(1, 3, 4, 3, {"stride": 2}, transposed=True),
    "1d, grouped": Convolution(1, 6, 4, 3, {"groups": 2, "padding": 1}, transposed=True),
    "2d": Convolution(2, 5, 4, 3, {"stride": 2, "padding": 1, "output_padding": 1}, transposed=True),
    "2d, grouped": Convolution(2, 6, 9, (2, 3), {"groups": 3, "dilation": 2}, transposed=True),
    "3d": Convolution(3, 3, 2, 2, {}, transposed=True),
}
SIZES = {1: (17,), 2: (9, 8), 3: (5, 6, 4)}


def build(case: Convolution) -> nn.Module:
    family = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        if case.transposed
        else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    )
    return family[case.axes - 1](case.channels, case.outputs, case.kernel, **case.options)


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(case: Convolution):
    module = build(case)
    images = correlated_images(7, case.channels, *SIZES[case.axes])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(images, module._reversed_padding_repeated_twice, mode)
    rows = patches(padded, module.kernel_size, module.stride, module.dilation, module.groups)

    def matrices(p: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(p["weight"].view(module.groups, -1, rows.shape[-1]), rows)]

    if rows.shape[-1] == 1:
        # One direction holds all energy: lambda is 1 and nothing changes.
        found = repair(module, split(images, 4, 3), ALPHA).weights
        torch.testing.assert_close(found["weight"], module.weight.detach())
    else:
        assert_as_expected(module, split(images, 4, 3), expect(module, matrices, ALPHA))


@pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_convolutions(case: Convolution):
    module = build(case)
    images = correlated_images(7, case.channels, *SIZES[case.axes])
    pixels = images.unflatten(1, (module.groups, -1)).movedim(1, 0).movedim(2, -1).flatten(1, -2)

    def matrices(p: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(p["weight"].view(module.groups, pixels.shape[-1], -1).mT, pixels)]

    assert_as_expected(module, split(images, 4, 3), expect(module, matrices, ALPHA))


def test_the_adjoint_of_a_transposed_convolutions_projection_acts_on_its_input():
    """Projecting the weight is the same as projecting every pixel's channels first: `W (M x)`, for the symmetric M."""
    module = nn.ConvTranspose2d(4, 3, 3, stride=2, bias=False)
    images = correlated_images(3, 4, 6, 6).double()
    pixels = images.movedim(1, -1).reshape(1, -1, 4)
    M = expect(nn.Linear(4, 4, bias=False), lambda p: [(p["weight"].copy_(torch.eye(4))[None], pixels)], ALPHA)[
        "weight"
    ]
    projected = repair(module, [images.float()], ALPHA).weights["weight"]
    found = F.conv_transpose2d(images, projected.double(), stride=2)
    expected = F.conv_transpose2d(torch.einsum("oc,nchw->nohw", M, images), module.weight.double(), stride=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_image_without_a_batch_dimension():
    module = nn.Conv2d(3, 4, 3, padding=1)
    image = correlated_images(1, 3, 9, 8)
    rows = patches(F.pad(image, (1, 1, 1, 1)), (3, 3), (1, 1), (1, 1), 1)
    expected = expect(module, lambda p: [(p["weight"].view(1, 4, -1), rows)], ALPHA)
    assert_as_expected(module, [image[0]], expected)


# Matrix products


def filled(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`x`, written into a tensor that began as a constant."""
    buffer = torch.zeros(x.shape, dtype=dtype)
    buffer[:] = x
    return buffer


def flat(x: Tensor) -> Tensor:
    return x.reshape(1, -1, x.shape[-1])


# x is [n, 5, 6]; each case: the function, the parameters' shapes, and for these and x the matrices with their rows.
PRODUCTS = {
    "linear": (lambda m, x: F.linear(x, m.w), {"w": (4, 6)}, lambda p, x: [(p["w"][None], flat(x))]),
    "linear, two dimensions": (
        lambda m, x: F.linear(x[:, 0], m.w),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None], flat(x[:, 0]))],
    ),
    "linear, not contiguous": (
        lambda m, x: F.linear(x.mT, m.w),
        {"w": (4, 5)},
        lambda p, x: [(p["w"][None], flat(x.mT))],
    ),
    "linear, one input": (
        lambda m, x: F.linear(x[0, 0], m.w, m.b),
        {"w": (4, 6), "b": (4,)},
        lambda p, x: [(p["w"][None], flat(x[:1, :1]))],
    ),
    "from the right": (lambda m, x: x @ m.w, {"w": (6, 4)}, lambda p, x: [(p["w"].T[None], flat(x))]),
    "from the left": (lambda m, x: m.w @ x, {"w": (4, 5)}, lambda p, x: [(p["w"][None], flat(x.mT))]),
    "left of a matrix": (lambda m, x: m.w @ x[0], {"w": (4, 5)}, lambda p, x: [(p["w"][None], x[:1].mT)]),
    "left of a vector": (lambda m, x: m.w @ x[0, 0], {"w": (4, 6)}, lambda p, x: [(p["w"][None], x[:1, :1])]),
    "one output": (lambda m, x: x @ m.w[:, 0], {"w": (6, 1)}, lambda p, x: [(p["w"].T[None], flat(x))]),
    "addmm": (
        lambda m, x: torch.addmm(m.b, x[0], m.w),
        {"w": (6, 4), "b": (4,)},
        lambda p, x: [(p["w"].T[None], x[:1])],
    ),
    "addmm in place": (
        lambda m, x: torch.zeros(5, 4).addmm_(x[0], m.w),
        {"w": (6, 4)},
        lambda p, x: [(p["w"].T[None], x[:1])],
    ),
    "mm into a given tensor": (
        lambda m, x: torch.mm(x[0], m.w, out=torch.empty(5, 4)),
        {"w": (6, 4)},
        lambda p, x: [(p["w"].T[None], x[:1])],
    ),
    "a batch of products": (lambda m, x: torch.bmm(x[:2], m.w), {"w": (2, 6, 4)}, lambda p, x: [(p["w"].mT, x[:2])]),
    "a batch of one": (lambda m, x: torch.bmm(x[:1], m.w[None]), {"w": (6, 4)}, lambda p, x: [(p["w"].T[None], x[:1])]),
    "a batch from the left": (lambda m, x: torch.bmm(m.w, x[:2]), {"w": (2, 4, 5)}, lambda p, x: [(p["w"], x[:2].mT)]),
    "baddbmm": (
        lambda m, x: torch.baddbmm(m.b, x[:2], m.w),
        {"w": (2, 6, 4), "b": (1, 4)},
        lambda p, x: [(p["w"].mT, x[:2])],
    ),
    "addbmm": (
        lambda m, x: torch.addbmm(m.b, x[:2], m.w),
        {"w": (2, 6, 4), "b": (4,)},
        lambda p, x: [(p["w"].mT, x[:2])],
    ),
    "expanded": (
        lambda m, x: torch.bmm(x, m.w.expand(len(x), 6, 4)),
        {"w": (6, 4)},
        lambda p, x: [(p["w"].T[None], flat(x))],
    ),
    "expanded and copied": (
        lambda m, x: torch.bmm(x, m.w.expand(len(x), 6, 4).contiguous()),
        {"w": (6, 4)},
        lambda p, x: [(p["w"].T[None], flat(x))],
    ),
    "a matrix a head": (
        lambda m, x: x.unflatten(-1, (2, 3)).transpose(1, 2) @ m.w,
        {"w": (2, 3, 4)},
        lambda p, x: [(p["w"].mT, x.reshape(-1, 2, 3).transpose(0, 1))],
    ),
    "a matrix a head, heads first": (
        lambda m, x: x.unflatten(-1, (2, 3)).permute(2, 0, 1, 3) @ m.w[:, None],
        {"w": (2, 3, 4)},
        lambda p, x: [(p["w"].mT, x.reshape(-1, 2, 3).transpose(0, 1))],
    ),
    "einsum": (
        lambda m, x: torch.einsum("bnd,de->bne", x, m.w),
        {"w": (6, 4)},
        lambda p, x: [(p["w"].T[None], flat(x))],
    ),
    "einsum, transposed": (
        lambda m, x: torch.einsum("ed,bnd->ben", m.w, x),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None], flat(x))],
    ),
    "einsum over heads": (
        lambda m, x: torch.einsum("bnhd,hde->bhne", x.unflatten(-1, (2, 3)), m.w),
        {"w": (2, 3, 4)},
        lambda p, x: [(p["w"].mT, x.reshape(-1, 2, 3).transpose(0, 1))],
    ),
    "einsum over two dimensions": (
        lambda m, x: torch.einsum("bnd,nde->be", x, m.w),
        {"w": (5, 6, 4)},
        lambda p, x: [(p["w"].view(1, 30, 4).mT, x.reshape(1, -1, 30))],
    ),
    "tensordot": (
        lambda m, x: torch.tensordot(x, m.w, dims=([2], [1])),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None], flat(x))],
    ),
    "some outputs": (lambda m, x: F.linear(x, m.w[1:3]), {"w": (4, 6)}, lambda p, x: [(p["w"][None, 1:3], flat(x))]),
    "every other output": (
        lambda m, x: F.linear(x, m.w[::2]),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None, ::2], flat(x))],
    ),
    "some inputs": (
        lambda m, x: F.linear(x[..., :3], m.w[:, 2:5]),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None, :, 2:5], flat(x[..., :3]))],
    ),
    "inputs apart": (
        lambda m, x: F.linear(x[..., :3], m.w[:, :3]) + F.linear(x[..., 3:], m.w[:, 3:]),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None, :, :3], flat(x[..., :3])), (p["w"][None, :, 3:], flat(x[..., 3:]))],
    ),
    "chunks with inputs of their own": (
        lambda m, x: F.linear(x, m.w.chunk(2)[0]) * F.linear(x.tanh(), m.w.chunk(2)[1]),
        {"w": (8, 6)},
        lambda p, x: [(p["w"][None, :4], flat(x)), (p["w"][None, 4:], flat(x.tanh()))],
    ),
    "used twice": (
        lambda m, x: F.linear(x, m.w) + F.linear(2 * x.tanh(), m.w),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None], torch.cat([flat(x), flat(2 * x.tanh())], 1))],
    ),
    "whole and in part": (
        lambda m, x: F.linear(x, m.w).sum() + F.linear(3 * x.tanh(), m.w[2:5]),
        {"w": (7, 6)},
        lambda p, x: [
            (p["w"][None, :2], flat(x)),
            (p["w"][None, 2:5], torch.cat([flat(x), flat(3 * x.tanh())], 1)),
            (p["w"][None, 5:], flat(x)),
        ],
    ),
    "as a batch and as a whole": (
        lambda m, x: F.linear(x[:2], m.w.flatten(0, 1)).sum() + torch.bmm(x[:2].tanh(), m.w.mT),
        {"w": (2, 4, 6)},
        lambda p, x: [(p["w"][i][None], torch.cat([flat(x[:2]), x[i : i + 1].tanh()], 1)) for i in range(2)],
    ),
    "as a layer and as a convolution": (
        lambda m, x: F.linear(x, m.w).sum() + F.conv1d(2 * x.tanh().mT, m.w[..., None]),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None], torch.cat([flat(x), flat(2 * x.tanh())], 1))],
    ),
    "a kernel as a matrix": (
        lambda m, x: F.linear(x, m.w.flatten(1)),
        {"w": (4, 2, 3)},
        lambda p, x: [(p["w"].view(1, 4, 6), flat(x))],
    ),
    "a kernel in patches": (
        lambda m, x: m.w.flatten(1) @ F.unfold(x[:, None], 3),
        {"w": (4, 1, 3, 3)},
        lambda p, x: [(p["w"].view(1, 4, 9), flat(F.unfold(x[:, None], 3).mT))],
    ),
    "cloned": (lambda m, x: F.linear(x, m.w.clone()), {"w": (4, 6)}, lambda p, x: [(p["w"][None], flat(x))]),
    "transposed and copied": (
        lambda m, x: x @ m.w.t().contiguous(),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None], flat(x))],
    ),
    "copied, then sliced": (
        lambda m, x: F.linear(x, m.w.t().contiguous().t()[1:]),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None, 1:], flat(x))],
    ),
    "sliced, then reshaped": (lambda m, x: F.linear(x, m.w[:, :3].reshape(2, 6)), {"w": (4, 6)}, None),
    "in another precision": (
        lambda m, x: F.linear(x.double(), m.w.double()),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None], flat(x))],
    ),
    "moved to where it is": (
        lambda m, x: F.linear(x, m.w.to("cpu", torch.float32)),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None], flat(x))],
    ),
    "detached, by its data": (
        lambda m, x: F.linear(x, m.w.detach()) + F.linear(x, m.w.data),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None], flat(x))],
    ),
    "an input written into a constant": (
        lambda m, x: F.linear(filled(x), m.w),
        {"w": (4, 6)},
        lambda p, x: [(p["w"][None], flat(x))],
    ),
    "inference mode": (
        lambda m, x: torch.inference_mode()(lambda: F.linear(torch.einsum("bnd,de->bne", x, m.v), m.w))(),
        {"w": (4, 3), "v": (6, 3)},
        lambda p, x: [(p["v"].T[None], flat(x)), (p["w"][None], flat(x.double() @ V))],
    ),
}
V = torch.zeros(6, 3, dtype=torch.float64)


@pytest.mark.parametrize(("function", "shapes", "matrices"), PRODUCTS.values(), ids=PRODUCTS)
def test_products(function, shapes, matrices):
    module = Function(function, **shapes)
    x = correlated_images(6, 5, 6)
    if "v" in shapes:
        V.copy_(module.v.detach())
    if matrices is None:
        assert set(repair(module, [x], ALPHA).skipped) == set(shapes)
        return
    expected = expect(module, lambda p: matrices(p, x.double()), ALPHA)
    assert_as_expected(module, [x], expected)
