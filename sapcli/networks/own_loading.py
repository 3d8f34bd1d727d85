"""Networks whose own code has a say in how they are filled, and what of the file is in memory in the end.

A network can rename, turn or drop entries while it loads them, make tables of them, and merge its weights when it goes
into eval mode. What it makes of a file is found out by having it do so, as `load_state_dict(strict=True)` would.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.checkpoints.entry_names import TRAINING_STATE
from sapcli.checkpoints.module_versions import versions_from_metadata
from sapcli.errors import ArchitectureError
from sapcli.networks.factories import Factory
from sapcli.networks.loading import Match, Outline, require_finite

CHANGED = "changed by the network's own code after it was loaded"
"""Why a weight is not projected that is not the file's entry any more."""
_EXTRA_STATE = "_extra_state"
# What a class can override to change how it is filled, or what its names are.
_METHODS = (
    *("load_state_dict", "_load_from_state_dict", "set_extra_state"),
    *("state_dict", "_save_to_state_dict", "get_extra_state"),
)
_HOOKS = (
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
)


def customises_loading(network: nn.Module) -> bool:
    """Whether code outside of PyTorch has a say in how the network is filled."""
    return any(
        any(getattr(module, hooks, None) for hooks in _HOOKS)
        or any(not _is_pytorchs(type(module), method) for method in _METHODS)
        for module in network.modules()
    )


def customises_evaluation(network: nn.Module) -> bool:
    """Whether code outside of PyTorch has a say in how the network is put into eval mode."""
    return any(not _is_pytorchs(type(module), method) for module in network.modules() for method in ("train", "eval"))


def has_lazy_layers(network: nn.Module) -> bool:
    """Whether the shapes of some tensors wait for the first images."""
    return any(is_lazy(tensor) for tensor in [*network.parameters(), *network.buffers()])


def give_memory(network: nn.Module, name: str) -> None:
    """Give the tensors of a network that was built on the meta device memory, for the checkpoint's entries.

    Its owner fills such a network by `load_state_dict(assign=True)`.

    Args:
        network: The network as it was built.
        name: What built it, for the error.

    Raises:
        ArchitectureError: A buffer that no checkpoint holds has no values, either.
    """
    if not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()]):
        return
    made: dict[int, Tensor] = {}  # tied tensors stay tied
    for prefix, module in network.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or not tensor.is_meta or is_lazy(tensor):
                continue
            if key in module._non_persistent_buffers_set:
                raise ArchitectureError(
                    f"{f'{prefix}.{key}'.lstrip('.')} of {name} is on the meta device, and no checkpoint holds it",
                    "Build that buffer on the CPU: torch.device('meta') is for what is loaded.",
                )
            values = torch.zeros_like(tensor, device="cpu")
            if isinstance(tensor, nn.Parameter):
                values = nn.Parameter(values, requires_grad=tensor.requires_grad)
            setattr(module, key, made.setdefault(id(tensor), values))


def run_on_zeros(factory: Factory, network: nn.Module, size: tuple[int, ...]) -> None:
    """Run a network once on images of zeros, as its owner does before it is filled, for what is made by the first run.

    Args:
        factory: What built it.
        network: The network as it was built.
        size: Of the images: channels, height, width.

    Raises:
        ArchitectureError: It does not take such images.
    """
    shown = "x".join(map(str, size))
    # Layers that normalise over a batch need two.
    with factory.running(f"cannot run on zeros of {shown}, by which its lazy layers get their shapes"), torch.no_grad():
        network(torch.zeros(2, *size))


def load_by_own_code(
    factory: Factory,
    network: nn.Module,
    build: Callable[[], nn.Module],
    checkpoint: Checkpoint,
    match: Match,
    outline: Outline,
) -> nn.Module:
    """A network that its own code has filled from a checkpoint, strictly.

    Entries that a strict loading refuses, but that are not the network's anyway (training state, buffers that older
    files hold), are left out then; so is what old files lack (BatchNorm's counters, extra state).

    Args:
        factory: What builds it.
        network: The network as it was built.
        build: Builds it again, for further attempts, since a failed one leaves its traces.
        checkpoint: Where the entries come from.
        match: How they fit its names, as far as those tell.
        outline: What it expects, likewise.

    Raises:
        ArchitectureError: The network does not accept the entries.
        CheckpointError: An entry cannot be read.
    """
    failure: ArchitectureError | None = None
    for prefix in dict.fromkeys((match.prefix, "")):
        for strict in (True, False):
            if failure is not None:
                network = build()
            entries = _state_dict(checkpoint, match, prefix)
            try:
                with factory.running(f"does not accept {checkpoint.source}"):
                    found = network.load_state_dict(entries, strict=strict)
                if strict or _lacks_nothing(found, outline, prefix, match, checkpoint):
                    return network
            except ArchitectureError as error:
                failure = failure or error
    assert failure is not None  # the strict attempt
    raise failure


def entries_in_memory(
    network: nn.Module, checkpoint: Checkpoint, entry_names: Mapping[str, str], source: str
) -> tuple[dict[str, str], frozenset[str]]:
    """Which entry of the file each tensor of a filled network is.

    Args:
        network: The network, filled and in eval mode.
        checkpoint: What it was filled from.
        entry_names: The entries that belong to its names, as far as the names tell.
        source: What messages call the network.

    Returns:
        The entry of each tensor that holds the same numbers, under whatever name; and the names of the other parameters
        and saved buffers: the network's own code has made something else of them.

    Raises:
        NumericsError: A parameter's entry contains a NaN or an infinity.
    """
    tensors = dict(network.named_parameters(remove_duplicate=False)) | _saved_buffers(network)
    found: dict[str, str] = {}
    for name, tensor in tensors.items():
        entry = entry_names.get(name)
        if entry is not None and _holds(tensor, checkpoint, entry):
            if isinstance(tensor, nn.Parameter):
                require_finite(tensor, entry, source)
            found[name] = entry
    unused = {
        entry
        for name, entry in checkpoint.unwrapped_names.items()
        if entry not in {*found.values()} and name.partition(".")[0] not in TRAINING_STATE
    }
    of_tensor = {id(tensors[name]): entry for name, entry in found.items()}
    for name, tensor in tensors.items():
        if name not in found and id(tensor) not in of_tensor and tensor.dim():
            alike = [entry for entry in unused if _holds(tensor, checkpoint, entry)]
            if len(alike) == 1:
                # No other tensor may have it, too: only one of them could be written back.
                unused.remove(alike[0])
                of_tensor[id(tensor)] = alike[0]
    # A tied name that the file has keeps its own entry.
    found = {name: of_tensor[id(tensor)] for name, tensor in tensors.items() if id(tensor) in of_tensor} | found
    return found, frozenset(tensors.keys() - found.keys())


def _is_pytorchs(kind: type, method: str) -> bool:
    """Whether the method that a class has is one of PyTorch's own."""
    owner = next((base for base in kind.__mro__ if method in vars(base)), nn.Module)
    return owner.__module__.partition(".")[0] == "torch"


def _state_dict(checkpoint: Checkpoint, match: Match, prefix: str) -> OrderedDict[str, Tensor]:
    """The state dict that the network is given: its names as they match, and every other entry that may be its."""
    names = dict(match.entry_names) if prefix == match.prefix else {}
    used = set(names.values())
    for name, entry in checkpoint.unwrapped_names.items():
        if entry not in used and name.startswith(prefix) and name.partition(".")[0] not in TRAINING_STATE:
            names[name.removeprefix(prefix)] = entry
    tensors = {entry: checkpoint.read(entry) for entry in dict.fromkeys(names.values())}
    # In the order of the file, as its owner reads it.
    order = {entry: position for position, entry in enumerate(checkpoint.entries)}
    entries = OrderedDict(
        (name, tensors[entry]) for name, entry in sorted(names.items(), key=lambda item: order[item[1]])
    )
    versions = versions_from_metadata(checkpoint.metadata, prefix)
    if versions:
        entries._metadata = versions  # type: ignore[attr-defined]
    return entries


def _lacks_nothing(found: Any, outline: Outline, prefix: str, match: Match, checkpoint: Checkpoint) -> bool:
    """Whether what a loading that is not strict missed and did not expect is nothing of the network's."""
    missing, unexpected = getattr(found, "missing_keys", None), getattr(found, "unexpected_keys", None)
    if missing is None or unexpected is None:
        return False
    names = {entry: name.removeprefix(prefix) for name, entry in checkpoint.unwrapped_names.items()}
    extra = {names[entry] for entry in match.extra_entries if entry in names}
    return all(name in outline.optional or name.endswith(_EXTRA_STATE) for name in missing) and extra.issuperset(
        unexpected
    )


def _saved_buffers(network: nn.Module) -> dict[str, Tensor]:
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in network.named_modules(remove_duplicate=False)
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def _holds(tensor: Tensor, checkpoint: Checkpoint, entry: str) -> bool:
    """Whether a tensor holds the numbers of an entry, as it was cast to the tensor's type."""
    if checkpoint.entries[entry].shape != tuple(tensor.shape):
        return False
    return torch.allclose(
        checkpoint.read(entry).to(tensor.dtype), tensor.detach().cpu(), rtol=0, atol=0, equal_nan=True
    )
