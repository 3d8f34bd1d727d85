"""Tests of devices and of what they are fast at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sapcli.errors import DeviceError, UsageError
from sapcli.machine.device import fast_dtype, full_precision, resolve_device, usual_batch_size
from sapcli.settings import Precision

CPU = torch.device("cpu")
LARGE, SMALL = 10_000_000, 10_000


def test_devices_by_name() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UsageError, match="no such device"):
        resolve_device("gpu")
    with pytest.raises(DeviceError, match="cuda:4321"):
        resolve_device("cuda:4321")


@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_is_chosen_where_it_pays(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert fast_dtype(CPU, Precision.AUTO, LARGE) == (torch.bfloat16 if fast else None)
    assert fast_dtype(CPU, Precision.AUTO, SMALL) is None
    assert fast_dtype(CPU, Precision.FLOAT32, LARGE) is None
    assert fast_dtype(CPU, Precision.BFLOAT16, SMALL) == torch.bfloat16
    assert fast_dtype(torch.device("mps"), Precision.AUTO, LARGE) is None


@pytest.mark.parametrize(
    ("device", "side", "expected"),
    [("cpu", 8, 256), ("cpu", 32, 256), ("cpu", 224, 32), ("cpu", 2000, 8), ("cuda", 32, 256), ("cuda", 224, 128)],
)
def test_the_usual_batch_fits_the_size_of_the_images(device: str, side: int, expected: int) -> None:
    assert usual_batch_size(torch.device(device), side, side) == expected


def _allowed() -> dict[str, str]:
    backends = torch.backends
    return {
        "products on a GPU": backends.cuda.matmul.fp32_precision,
        "convolutions on a GPU": backends.cudnn.conv.fp32_precision,
        "products": backends.mkldnn.matmul.fp32_precision,
        "convolutions": backends.mkldnn.conv.fp32_precision,
    }


@pytest.fixture
def _settings_put_back() -> Iterator[None]:
    backends = torch.backends
    settings = [
        *(backends, backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn),
        *(backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
    ]
    before = [setting.fp32_precision for setting in settings]
    matmul = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(matmul)
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="settings of PyTorch 2.9")
@pytest.mark.usefixtures("_settings_put_back")
@pytest.mark.parametrize(
    "allow",
    [
        "pass",
        "torch.set_float32_matmul_precision('high')",
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.backends.cudnn.allow_tf32 = False",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.fp32_precision = 'bf16'",
    ],
)
def test_whatever_a_script_allows_full_precision_is_full_and_leaves_no_trace(allow: str) -> None:
    exec(allow)
    before = _allowed()
    with full_precision():
        assert set(_allowed().values()) == {"ieee"}
    assert _allowed() == before
