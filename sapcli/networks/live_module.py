"""A live network: an `nn.Module` that a program hands over, filled already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.checkpoints.live_tensors import checkpoint_of
from sapcli.errors import ArchitectureError
from sapcli.machine.text import in_one_line
from sapcli.networks.architecture import Architecture, LoadedModel
from sapcli.networks.fitting import carried_settings
from sapcli.networks.loading import require_finite, state_tensors
from sapcli.networks.own.outputs import described, way_out
from sapcli.networks.own_model import make_contiguous
from sapcli.networks.preprocessing import Preprocessing, ready_tensors, resolve_preprocessing
from sapcli.settings import PreprocessingOverrides

_IMAGES = 2
# Wrappers of a network, and where they hold it.
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


@dataclass(frozen=True)
class LiveModule:
    """A network that was handed over, and what it was when it was.

    Attributes:
        checkpoint: Its tensors as they were.
        architecture: What it is.
        loaded: The network in eval mode, its parameters in float32 and contiguous.
        dtypes: The types that its tensors had, by name.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    loaded: LoadedModel
    dtypes: dict[str, torch.dtype]

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self.loaded.module

    def give_back(self) -> None:
        """Have the tensors the types again that they had."""
        for name, tensor in state_tensors(self.module).items():
            if tensor.dtype != self.dtypes[name]:
                tensor.data = tensor.data.to(self.dtypes[name])

    def undo(self) -> None:
        """Have the network the values and types again that it was handed over with."""
        with torch.no_grad():
            for name, tensor in state_tensors(self.module).items():
                tensor.data.copy_(self.checkpoint.read(name))
        self.give_back()


def device_of(module: nn.Module) -> torch.device:
    """Where a network is: the device of its first tensor."""
    return next((tensor.device for tensor in state_tensors(module).values()), torch.device("cpu"))


def take_over(
    module: nn.Module,
    device: torch.device,
    overrides: PreprocessingOverrides,
    ready: Sequence[int] | None,
) -> LiveModule:
    """Look at a network that was handed over, and put it into eval mode.

    Args:
        module: The network; a wrapper of one stands for it.
        device: Where it is to run.
        overrides: How its images are prepared, before what it says itself as `pretrained_cfg` or `default_cfg`.
        ready: The shape of its images where they are ready tensors, which nothing prepares.

    Raises:
        ArchitectureError: It does not run on images of its size, or nothing says how they are prepared.
        SapError: A weight is not finite, or cannot be kept.
    """
    attribute = _WRAPPERS.get(type(module).__name__)
    if attribute is not None and isinstance(inner := getattr(module, attribute, None), nn.Module):
        module = inner
    name = type(module).__qualname__
    module.eval()
    tensors = state_tensors(module)
    for key, tensor in tensors.items():
        if tensor.is_meta or is_lazy(tensor):
            raise ArchitectureError(f"{key} of the module has no values yet", "fill the module, and run it once")
        if isinstance(tensor, nn.Parameter):
            require_finite(tensor.detach(), key, "the module")
    checkpoint = checkpoint_of(tensors, "the module")
    preprocessing = (
        resolve_preprocessing(f"the module {name}", carried_settings(module, "the module"), overrides)
        if ready is None
        else ready_tensors(ready)
    )
    dtypes = {key: tensor.dtype for key, tensor in tensors.items()}
    parameters = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    if len(parameters) == 1 and parameters != {torch.float32}:
        module.float()
    make_contiguous(module)
    module.to(device)
    architecture = Architecture(
        name=f"the module {name}",
        arguments={},
        num_classes=_outputs(module, device, preprocessing),
        label_names=None,
        preprocessing=preprocessing,
        source="the module",
        is_live=True,
    )
    names = {key: key for key in checkpoint.entries}
    return LiveModule(
        checkpoint, architecture, LoadedModel(module, names, (), written_names=names, is_the_programs=True), dtypes
    )


def _outputs(module: nn.Module, device: torch.device, preprocessing: Preprocessing) -> int:
    """The number of outputs, by running the network once on zeros."""
    size = "x".join(map(str, preprocessing.input_size))
    try:
        with torch.no_grad():  # the program's own module may be differentiated later
            outputs = module(torch.zeros(_IMAGES, *preprocessing.input_size, device=device))
    except Exception as error:  # nobody can foresee what a network raises
        raise ArchitectureError(
            f"the module cannot run on images of {size}: {in_one_line(error)}",
            "give the size of the training as preprocessing=PreprocessingOverrides(input_size=...)",
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != _IMAGES:
        raise ArchitectureError(
            f"the module returns {described(outputs)} for {_IMAGES} images, expected one row of class scores an image",
            way_out(outputs),
        )
    return int(outputs.shape[1])
