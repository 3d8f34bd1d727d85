"""The device that a run computes on."""

from __future__ import annotations

import re

import torch

from sapcli.errors import DeviceError, UsageError


def resolve_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        UsageError: There is no device of that name.
        DeviceError: This machine does not have it.
    """
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
