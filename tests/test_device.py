"""Tests of devices and of what they are fast at."""

from __future__ import annotations

import pytest
import torch

from sapcli.device import fast_dtype, resolve_device, usual_batch_size
from sapcli.errors import DeviceError, UsageError
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
