"""Layers and networks as they are built: which weights are found, with which rows, and what is left as it was."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from support.brute_force import (
    ALPHA,
    TOLERANCE,
    Function,
    Recorder,
    assert_as_expected,
    correlated_images,
    expect,
    project_rows,
    relative_difference,
    repair,
    split,
)
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from sapcli.activations.capture import Capture
from sapcli.repairs.projected_weights import rescaled_gain


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# Attention


class Attention(nn.Module):
    """`nn.MultiheadAttention` on parts of its input, `[n, tokens, 8]`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        options = {"kdim": 5, "vdim": 3} if kind == "separate" else {}
        self.attention = nn.MultiheadAttention(8, 2, batch_first=kind != "tokens first", **options)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value."""
        if self.kind == "separate":
            return x, x[..., :5].tanh(), x[..., 2:5]
        if self.kind == "cross":
            return x[:, :2], 3 * x[:, 2:].tanh(), 3 * x[:, 2:].tanh()
        if self.kind == "three inputs":
            return x[:, :3], x[:, 3:].tanh(), 2 * x[:, 3:].sin()
        return x, x, x

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        query, key, value = self.parts(x)
        if self.kind == "self":
            query = key = value = x
        if self.kind == "functional":
            inside, out = self.attention, self.attention.out_proj
            packed = inside.in_proj_weight, inside.in_proj_bias, None, None, False, 0.0
            return F.multi_head_attention_forward(query, key, value, 8, 2, *packed, out.weight, out.bias, False)[0]
        return self.attention(query, key, value, need_weights=self.kind == "with weights")[0]


@pytest.mark.parametrize(
    "kind", ["self", "tokens first", "with weights", "cross", "three inputs", "separate", "functional"]
)
def test_multihead_attention(kind, monkeypatch):
    module = Attention(kind).eval()
    x = correlated_images(6, 5, 8)
    recorder = Recorder(module)
    # The reference reads the out-projection's rows from the slow path, which the fused one must equal.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with recorder.patched(monkeypatch), torch.no_grad():
            module(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    expected = recorder.expected(ALPHA)
    inputs = ["q_proj_weight", "k_proj_weight", "v_proj_weight"] if kind == "separate" else ["in_proj_weight"]
    assert set(expected) == {f"attention.{name}" for name in [*inputs, "out_proj.weight"]}
    batches = [x] if kind in ("tokens first", "functional") else split(x, 4, 2)
    assert_as_expected(module, batches, expected)


def test_cross_attention_projects_each_chunk_on_its_own_input():
    module = Attention("three inputs")
    x = correlated_images(6, 5, 8)
    query, key, value = (part.reshape(1, -1, 8) for part in module.parts(x))

    def matrices(p: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        chunks = p["attention.in_proj_weight"].view(3, 1, 8, 8)
        return list(zip(chunks, (query, key, value), strict=True))

    expected = expect(module, matrices, ALPHA)["attention.in_proj_weight"]
    found = repair(module, [x], ALPHA).weights["attention.in_proj_weight"]
    assert relative_difference(found, expected, module.attention.in_proj_weight) < TOLERANCE


def test_a_transformer_layer_on_its_fused_path():
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = correlated_images(6, 5, 8)
    found = repair(module, [x], ALPHA)
    assert set(found.weights) == {
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    }
    assert torch.backends.mha.get_fastpath_enabled()


def test_queries_that_are_a_parameter_leave_keys_and_values_projected():
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(1, 1, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(self.query.expand(len(x), -1, -1), x, x)[0][:, 0]

    module = Pool()
    x = correlated_images(6, 5, 8)
    rows = x.reshape(1, -1, 8)
    expected = expect(module, lambda p: [(p["attention.in_proj_weight"][None, 8:], rows)], ALPHA)
    found = repair(module, split(x, 4, 2), ALPHA)
    name = "attention.in_proj_weight"
    assert relative_difference(found.weights[name], expected[name], module.attention.in_proj_weight) < TOLERANCE
    assert set(found.skipped) == {"query"}


# Recurrent layers


@pytest.mark.parametrize("family", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers(family):
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = family(6, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0][:, -1]

    module = Last().eval()
    x = correlated_images(7, 5, 6)
    with torch.no_grad():
        hidden = module.layer(x)[0]
    before = torch.cat([torch.zeros(7, 1, 4), hidden[:, :-1]], dim=1)
    expected = expect(
        module,
        lambda p: [
            (p["layer.weight_ih_l0"][None], x.reshape(1, -1, 6)),
            (p["layer.weight_hh_l0"][None], before.reshape(1, -1, 4)),
        ],
        ALPHA,
    )
    assert_as_expected(module, split(x, 4, 3), expected)
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cudnn.enabled


def test_layers_of_a_bidirectional_stack():
    module = nn.Sequential(nn.LSTM(6, 4, num_layers=2, bidirectional=True, batch_first=True))
    found = repair(module, [correlated_images(7, 5, 6)], ALPHA)
    assert len(found.weights) == 8
    assert not found.skipped


# Weights that are shared, tied, unused, transformed


def test_a_module_used_several_times_sums_its_rows():
    layer = nn.Linear(6, 6)
    module = nn.Sequential(layer, nn.Tanh(), layer)
    x = correlated_images(9, 6)
    with torch.no_grad():
        rows = torch.cat([x, layer(x).tanh()])[None]
    assert_as_expected(module, split(x, 5, 4), expect(module, lambda p: [(p["0.weight"][None], rows)], ALPHA))


def test_tied_weights_are_one_weight():
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    # Not the same Parameter, but the same memory.
    module[2].weight = nn.Parameter(module[0].weight.data)
    found = repair(module, [correlated_images(9, 6)], ALPHA)
    assert set(found.weights) == {"0.weight"}
    assert found.rows == {"0.weight": [18]}
    assert not found.skipped


def test_a_weight_used_from_both_sides_is_reported():
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.weight).tanh(), self.weight.T)

    assert repair(Autoencoder(), [correlated_images(9, 6)], ALPHA).skipped == {"weight": "used in pieces that overlap"}


def test_tables_norms_and_unused_modules_are_left_with_the_reason():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 6)
            self.position = nn.Parameter(torch.randn(1, 5, 6))
            self.token = nn.Parameter(torch.randn(1, 1, 6))
            self.scale = nn.Parameter(torch.randn(5, 6))
            self.norm = nn.LayerNorm([5, 6])
            self.auxiliary = nn.Linear(6, 2)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x * self.scale + self.position + self.embedding(torch.arange(5)))
            return self.head(torch.cat([self.token.expand(len(x), -1, -1), x], dim=1).mean(1))

    found = repair(Network(), [correlated_images(7, 5, 6)], ALPHA)
    assert set(found.weights) == {"head.weight"}
    product = "in no matrix product or convolution with activations"
    assert found.skipped == {
        "embedding.weight": f"{product} (read by embedding)",
        "position": f"{product} (read by add)",
        "token": f"{product} (read by cat)",
        "scale": f"{product} (read by mul)",
        "norm.weight": f"{product} (read by native_layer_norm)",
        "norm.bias": f"{product} (read by native_layer_norm)",
        "auxiliary.weight": "not used in eval mode",
    }


def with_changed_copy(m: nn.Module, x: Tensor) -> Tensor:
    weight = m.w.clone()
    weight.div_(weight.norm())
    return F.linear(x, weight)


def with_copy_in_constant(m: nn.Module, x: Tensor) -> Tensor:
    weight = torch.zeros(4, 6)
    weight[1:] = m.w[:3]
    return F.linear(x, weight)


class Symmetric(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        """The upper triangle, mirrored."""
        return weight.triu() + weight.triu(1).T


def parametrized() -> nn.Module:
    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


NORM = "_weight_norm"
TRANSFORMED = {
    "changed copy": (lambda: Function(with_changed_copy, w=(4, 6)), {"w": "div_"}),
    "copied into a constant": (lambda: Function(with_copy_in_constant, w=(4, 6)), {"w": "copy_"}),
    "scaled along the rows": (
        lambda: Function(lambda m, x: F.linear(x, m.w * m.scale), w=(4, 6), scale=(1, 6)),
        {"w": "mul", "scale": "mul"},
    ),
    "scaled by its own size": (lambda: Function(lambda m, x: F.linear(x, m.w / m.w.norm()), w=(4, 6)), {"w": "div"}),
    "squared": (lambda: Function(lambda m, x: F.linear(x, m.w * m.w), w=(4, 6)), {"w": "mul"}),
    "unmerged low rank": (
        lambda: Function(lambda m, x: F.linear(x, m.w + m.up @ m.down), w=(4, 6), up=(4, 2), down=(2, 6)),
        {"w": "add", "up": "mm", "down": "mm"},
    ),
    "weight_norm along the rows": (
        lambda: Function(lambda m, x: F.linear(x, torch._weight_norm(m.v, m.g, 1)), v=(4, 6), g=(1, 6)),
        {"v": NORM, "g": NORM},
    ),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 4)), {"original": "div"}),
    "spectral_norm, old": (lambda: nn.utils.spectral_norm(nn.Linear(6, 4)), {"weight_orig": "div"}),
    "parametrization": (parametrized, {"original": "triu"}),
    "weight standardisation": (
        lambda: nn.Sequential(nn.Unflatten(1, (6, 1, 1)), ScaledStdConv2d(6, 4, 1)),
        {"1.weight": "batch_norm"},
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("build", "operators"), TRANSFORMED.values(), ids=TRANSFORMED)
def test_transformed_weights_are_reported(build, operators):
    found = repair(build(), [correlated_images(9, 6)], ALPHA)
    assert not found.weights
    for ending, operator in operators.items():
        (reason,) = [text for name, text in found.skipped.items() if name.endswith(ending)]
        assert reason.startswith("transformed before it multiplies activations (")
        assert operator in reason


class Scaled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        """The same, smaller."""
        return weight * 0.25


def scaled_layer() -> nn.Module:
    layer = nn.Linear(6, 4)
    parametrize.register_parametrization(layer, "weight", Scaled())
    return layer


SCALED = {
    "by a number": lambda: Function(lambda m, x: F.linear(x, m.w * 2), w=(4, 6)),
    "by a number, from the left": lambda: Function(lambda m, x: F.linear(x, 0.5 * m.w), w=(4, 6)),
    "divided": lambda: Function(lambda m, x: F.linear(x, m.w / 7), w=(4, 6)),
    "by output": lambda: Function(lambda m, x: F.linear(x, m.w * m.gain), w=(4, 6), gain=(4, 1)),
    "by output, transposed": lambda: Function(lambda m, x: x @ (m.w.T * m.gain), w=(4, 6), gain=(4,)),
    "twice": lambda: Function(lambda m, x: F.linear(x, (m.w * m.gain).clone() / 3), w=(4, 6), gain=(4, 1)),
    "by its module": scaled_layer,
}


@pytest.mark.parametrize("build", SCALED.values(), ids=SCALED)
def test_a_projection_of_what_was_scaled_is_folded_back(build):
    """`diag(c) (W M)` is what `(diag(c) W) M` is, so that the network acts as if the scaled weight were projected."""
    module, images = build(), correlated_images(9, 6)
    found = repair(module, [images], ALPHA)
    (name,) = found.weights
    weight = dict(module.named_parameters())[name]
    expected = project_rows(weight.detach()[None], images[None], ALPHA)[0]
    assert relative_difference(found.weights[name], expected, weight) < TOLERANCE
    assert relative_difference(found.weights[name], weight, weight) > TOLERANCE


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("normalise", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_normalised_weight_is_projected_and_its_gain_follows(normalise):
    module, images = normalise(nn.Conv1d(6, 4, 1)), correlated_images(9, 6)[..., None]
    effective = module.weight.detach().clone()
    parameters = dict(module.named_parameters())
    found = repair(module, [images], ALPHA)
    (name,) = found.weights
    (gain,) = found.skipped
    assert found.skipped == {gain: f"the size of {name}, which it follows"}
    with torch.no_grad():
        parameters[gain].copy_(rescaled_gain(parameters[gain], parameters[name], found.weights[name]))
        parameters[name].copy_(found.weights[name])
        module(images)
    expected = project_rows(effective.flatten(1)[None], images.flatten(1)[None], ALPHA)[0]
    assert relative_difference(module.weight.flatten(1), expected, effective) < TOLERANCE


def test_merged_parametrizations_are_weights():
    layer = parametrized()
    parametrize.remove_parametrizations(layer, "weight")
    assert set(repair(layer, [correlated_images(9, 6)], ALPHA).weights) == {"weight"}


def test_bilinear_layers_are_reported():
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Bilinear(6, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, x)

    assert "_trilinear" in repair(Pairs(), [correlated_images(9, 6)], ALPHA).skipped["layer.weight"]


def test_a_table_of_positions_multiplied_by_a_weight_is_rows():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(5, 3))
            self.hidden, self.out = nn.Linear(3, 7), nn.Linear(7, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.out(self.hidden(self.table).relu()).sigmoid()

    module = Positions()
    with torch.no_grad():
        hidden = module.hidden(module.table).relu()
    expected = expect(
        module, lambda p: [(p["hidden.weight"][None], module.table[None]), (p["out.weight"][None], hidden[None])], ALPHA
    )
    assert_as_expected(module, [correlated_images(7, 5, 6)], expected)


def test_parameters_in_another_memory_format():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2))
    images = correlated_images(7, 3, 9, 8)
    expected = repair(module, [images], ALPHA).weights
    found = repair(copy.deepcopy(module).to(memory_format=torch.channels_last), [images], ALPHA).weights
    assert not module.to(memory_format=torch.channels_last)[0].weight.is_contiguous()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)


def test_parameters_that_share_one_storage():
    flat = torch.randn(2 * 24)
    module = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 6, bias=False))
    module[0].weight = nn.Parameter(flat[:24].view(4, 6))
    module[1].weight = nn.Parameter(flat[24:].view(6, 4))
    x = correlated_images(9, 6)
    with torch.no_grad():
        hidden = module[0](x)
    expected = expect(module, lambda p: [(p["0.weight"][None], x[None]), (p["1.weight"][None], hidden[None])], ALPHA)
    assert_as_expected(module, [x], expected)


# What a network is left as


class Failing(nn.Module):
    """Layers with a state, and an exception after them where `fails`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.attention = nn.TransformerEncoderLayer(6, 2, 6, batch_first=True)
        self.norm = nn.BatchNorm1d(5)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.dropout = nn.Dropout()
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        """Run them, and fail."""
        x = self.lstm(self.dropout(self.attention(self.layer(self.norm(x)))))[0]
        if self.fails:
            raise RuntimeError("on purpose")
        return x


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_everything_is_restored(fails, inference):
    module = Failing().train()
    module.norm.eval()
    module.layer.register_forward_hook(lambda *_: None)
    module.fails = fails
    modes = {name: part.training for name, part in module.named_modules()}
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    hooks = {name: dict(part._forward_hooks) | dict(part._forward_pre_hooks) for name, part in module.named_modules()}
    capture = Capture(module, lambda _: None)
    with torch.inference_mode(inference):
        if fails:
            with pytest.raises(RuntimeError, match="on purpose"), capture:
                capture.forward(correlated_images(3, 5, 6))
        else:
            with capture:
                assert not module.training
                capture.forward(correlated_images(3, 5, 6))
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert {n: dict(p._forward_hooks) | dict(p._forward_pre_hooks) for n, p in module.named_modules()} == hooks
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_fast_path_that_was_off_stays_off():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        repair(nn.Linear(6, 4), [correlated_images(9, 6)], ALPHA)
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_capturing_changes_no_output():
    module = timm.create_model("test_vit", num_classes=5).eval()
    images = correlated_images(3, 3, 160, 160)
    with torch.no_grad():
        expected = module(images)
    with Capture(module, lambda _: None) as capture:
        torch.testing.assert_close(capture.forward(images), expected, rtol=1e-4, atol=1e-5)


# Whole networks


class Wave(nn.Module):
    """A classifier of one-dimensional signals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 7, stride=2, padding=3, padding_mode="circular")
        self.blocks = nn.Sequential(
            nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 12, 3, padding=2, dilation=2), nn.GELU(),
            nn.Conv1d(12, 12, 5, groups=3), nn.Tanh(),
        )  # fmt: skip
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `[n, 3, length]`."""
        return self.head(self.blocks(self.stem(x)).mean(-1))


NETWORKS = {
    "resnext50_32x4d": (lambda: timm.create_model("resnext50_32x4d"), 64, 54),
    "convnext_atto": (lambda: timm.create_model("convnext_atto"), 64, 41),
    "mobilenetv3_small_100": (lambda: timm.create_model("mobilenetv3_small_100"), 64, 54),
    "vit_tiny_patch16_224": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), 64, 50),
    "swinv2_tiny_window8_256": (
        lambda: timm.create_model("swinv2_tiny_window8_256", img_size=64, window_size=4),
        64,
        77,
    ),
    "torchvision swin_t": (torchvision.models.swin_t, 64, 53),
}


@pytest.mark.parametrize(("build", "size", "count"), NETWORKS.values(), ids=NETWORKS)
def test_networks_against_brute_force(build, size, count, monkeypatch):
    module = build().eval()
    images = correlated_images(3, 3, size, size)
    recorder = Recorder(module)
    with recorder.patched(monkeypatch), torch.no_grad():
        module(images)
    expected = recorder.expected(ALPHA)
    assert len(expected) == count
    assert_as_expected(module, split(images, 2, 1), expected)


def test_a_network_of_signals_against_brute_force(monkeypatch):
    module = Wave().eval()
    signals = correlated_images(9, 3, 40)
    recorder = Recorder(module)
    with recorder.patched(monkeypatch), torch.no_grad():
        module(signals)
    expected = recorder.expected(ALPHA)
    assert len(expected) == 4
    assert_as_expected(module, split(signals, 4, 4, 1), expected)


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (torchvision.models.vit_b_16, {"class_token", "encoder.pos_embedding"}),
        (lambda: timm.create_model("beit_base_patch16_224"), {"cls_token"}),
    ],
    ids=["torchvision vit_b_16", "timm beit_base_patch16_224"],
)
def test_all_weights_of_attention_networks_are_found(build, left):
    module = build()
    used: set[str] = set()
    with Capture(module, lambda use: used.add(use.weight)) as capture:
        capture.forward(correlated_images(1, 3, 224, 224))
    assert len(used) == 50
    tables = {name for name in capture.usages if name.endswith("relative_position_bias_table")}
    assert capture.usages.keys() - used == left | tables
