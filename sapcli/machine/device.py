"""The device that a run computes on, and what it is fast at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sapcli.errors import DeviceError, UsageError
from sapcli.machine.parallel import membership
from sapcli.settings import Precision

# In smaller networks the conversions take more time than the products save.
_WORTH_CONVERTING = 1 << 20
_PIXELS_AT_A_TIME = 1 << 21
_FEWEST_AT_A_TIME, _MOST_AT_A_TIME = 8, 256


def resolve_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        UsageError: There is no device of that name.
        DeviceError: This machine does not have it.
    """
    if membership.world_size() > 1 and name in ("auto", "cuda"):
        # Each process of a machine has a GPU of its own.
        if name == "cuda" or torch.cuda.is_available():
            return resolve_device(f"cuda:{membership.local_rank()}")
        return torch.device("cpu")
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("--device mps: this machine has no Apple GPU that PyTorch can use", "use --device cpu")
        return torch.device("mps")
    if re.fullmatch(r"cuda(:\d{1,4})?", name):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        number = int(name.partition(":")[2] or 0)
        if number >= count:
            found = f"only {count}, numbered from 0," if count else "no CUDA device"
            raise DeviceError(f"--device {name}: PyTorch finds {found} on this machine", "use --device cpu or auto")
        return torch.device("cuda", number)
    raise UsageError(f"--device {name}: there is no such device", "use auto, cpu, cuda, cuda:N or mps")


def usual_batch_size(device: torch.device, height: int, width: int) -> int:
    """How many images at a time, a power of two: 256 of 64 pixels on a CPU, 32 of 224, where more are no faster.

    A GPU takes four times as many large ones.
    """
    pixels = _PIXELS_AT_A_TIME * (1 if device.type == "cpu" else 4)
    fitting = min(max(pixels // (height * width), _FEWEST_AT_A_TIME), _MOST_AT_A_TIME)
    return 1 << (fitting.bit_length() - 1)


def fast_dtype(device: torch.device, precision: Precision, parameters: int) -> torch.dtype | None:
    """What to convert to (`torch.autocast`) in passes that need not be exact; `None` for float32 as it is.

    Args:
        device: Where the network runs.
        precision: What was asked for.
        parameters: How many the network has.
    """
    if precision is Precision.AUTO:
        wanted = parameters >= _WORTH_CONVERTING and _is_fast_at_bfloat16(device)
    else:
        wanted = precision is Precision.BFLOAT16
    return torch.bfloat16 if wanted else None


def float16_dtype(device: torch.device, precision: Precision, parameters: int) -> torch.dtype | None:
    """What training converts to on GPUs that know float16 and no bfloat16; `None` elsewhere; see `fast_dtype`."""
    if device.type != "cuda" or precision is not Precision.AUTO or parameters < _WORTH_CONVERTING:
        return None
    capability = torch.cuda.get_device_capability(device)
    return torch.float16 if (7, 0) <= capability < (8, 0) else None


def _is_fast_at_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Without these instructions the CPU computes it in float32, with conversions on top.
    asks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, ask, bool)() for ask in asks)


def float64_device(device: torch.device) -> torch.device:
    """`device`, or the CPU where the device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products and convolutions in full float32 for the time being, whatever a user's code has allowed.

    TF32 keeps 10 bits of the activations and bfloat16 7. Scripts allow them for the whole process, with
    `torch.set_float32_matmul_precision` say, and a model's file does so when it is imported.
    """
    backends: Any = torch.backends
    name: str
    full: object
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        name, full = "fp32_precision", "ieee"
        settings = [
            *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
            *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
        ]
    else:  # PyTorch before 2.9
        name, full = "allow_tf32", False
        settings = [backends.cuda.matmul, backends.cudnn]
    before = [getattr(setting, name) for setting in settings]
    try:
        for setting in settings:
            setattr(setting, name, full)
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setattr(setting, name, value)
