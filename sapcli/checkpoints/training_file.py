"""Which part of a training file is the network's state dict, and what else lies in it.

Training scripts save a dictionary: the weights under one of many keys, an average of them, the optimizer, metrics, the
command line. What lies beside the weights is never the network's, and of several networks none is taken by chance.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from sapcli.checkpoints.entry_names import TRAINING_STATE, WRAPPER_KEYS, is_beside_network
from sapcli.checkpoints.other_formats import OtherFormat
from sapcli.errors import CheckpointError, UsageError
from sapcli.machine.json_text import shown

AVERAGE = "ema"
"""The name by which a file's average of the weights is asked for, whatever its key is."""

NAMES_PREFIX = "sap.names_prefix"
"""The metadata's key for what stood before the names in the state dict that a corrected checkpoint was made from."""

_AVERAGE_KEY = re.compile(r"(^|_)(ema|swa|averaged?|avg)(_|$)", re.IGNORECASE)
LIGHTNING = "pytorch-lightning_version"
"""A key of all files of Lightning."""
_ITS_WEIGHTS = "Name the checkpoint with the weights, which lies beside it or comes from the same training."
_ALL_WEIGHTS = "Give a checkpoint with all weights of the network, torch.save(model.state_dict(), 'model.pt')."
_PARTS_OF_A_TRAINING: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"state", "param_groups"}), "the state of an optimizer"),
    (frozenset({"last_epoch", "_step_count"}), "the state of a schedule of learning rates"),
    (frozenset({"scale", "growth_factor"}), "the state of a gradient scaler"),
    (frozenset({"python", "cpu"}), "the state of random numbers"),
    (frozenset({"random_state", "numpy_random_seed"}), "the state of random numbers"),
)
_NESTING = 4
_LISTED = 12
# Where the command line and the hyperparameters stand, and how much of them is looked at.
_ARGUMENTS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt", "options", "params")
_MOST_VALUES, _LONGEST_TEXT = 10_000, 1000


@dataclass(frozen=True)
class TrainingFile:
    """What is known of a PyTorch file beside the tensors that were taken from it.

    Attributes:
        key: The dotted path of the state dict that was taken; empty where the file is nothing else.
        beside: The names of the tensors that lie beside the state dict.
        about: The plain values that stand beside it: `arch`, and the dictionaries of arguments and hyperparameters.
        remarks: What is to be said of the choice, a sentence each.
        is_lightning: Whether it is a Lightning module's, which has more than its network.
    """

    key: str = ""
    beside: tuple[str, ...] = ()
    about: Mapping[str, object] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    is_lightning: bool = False

    @property
    def is_part(self) -> bool:
        """Whether the state dict is a part of the file, and not all of it."""
        return bool(self.key)


@dataclass(frozen=True)
class StateDict:
    """A state dict that was found in a file.

    Attributes:
        key: The dotted path to it; empty for the content itself.
        tensors: From the names to the tensors, or to containers of them.
        beside: What lies beside it, by the paths of the keys.
        remarks: What is to be said of the choice.
        versions: The state dict as it was found, whose `_metadata` tells the modules' versions.
    """

    key: str
    tensors: Mapping[object, object]
    beside: Mapping[object, object]
    remarks: tuple[str, ...]
    versions: object


def choose_state_dict(content: Mapping[object, object], source: str, wanted: str | None) -> StateDict:
    """The network's state dict in the content of a file.

    Args:
        content: What the file holds.
        source: What messages call it.
        wanted: What the user asks for: `ema` for an average, else a key, a dotted path, or what stands before the names
            of one of several networks; None for the usual one.

    Raises:
        CheckpointError: There are several and none was asked for.
        UsageError: What was asked for is not there.
    """
    found = dict(_candidates(content))
    averages = [key for key in found if _is_average(key)]
    others = [key for key in found if key not in averages and not _is_training_state(key)]
    if wanted is not None:
        return _taken(content, found, _wanted(found, averages, wanted, content, source), ())
    usual = [key for key in others if key.rpartition(".")[2] in WRAPPER_KEYS]
    if _is_state_dict(content) and not usual:
        key = ""
    elif len(usual) == 1 or (usual and _is_nested(usual)):
        key = usual[-1]
    elif usual or len(others) > 1:
        several = usual or others
        raise CheckpointError(
            f"{source} holds {len(several)} networks: {_listed(several)}",
            f"Say which one with --weights, as in --weights {several[0]}.",
        )
    elif others:
        key = others[0]
    elif averages:
        key = averages[0]
    else:
        key = ""
    rest = [other for other in found if other not in (key, "") and not _is_nested([key, other])]
    return _taken(content, found, key, tuple(_remarks(key, rest, averages, source)))


def without_weights(content: Mapping[object, object]) -> OtherFormat | None:
    """What a file is that holds no network's weights as tensors: an optimizer's state, say, or arrays of NumPy."""
    if _has_weights(content):
        return None
    keys = {key for key in content if isinstance(key, str)}
    for known, what in _PARTS_OF_A_TRAINING:
        if known <= keys:
            return OtherFormat(f"is {what}, without weights", _ITS_WEIGHTS)
    path = _arrays_in(content)
    if path is not None:
        place = "".join(f"[{key!r}]" for key in path)
        line = f"{{k: torch.as_tensor(v) for k, v in torch.load(FILE, weights_only=False){place}.items()"
        return OtherFormat(
            "holds arrays of NumPy in the place of tensors",
            f"Where you trust it, save them as tensors: torch.save({line} if hasattr(v, 'shape')}}, 'model.pt')",
        )
    beside = sorted(key for key in keys if _is_training_state(key) and isinstance(content[key], Mapping | list))
    if beside:
        return OtherFormat(f"holds no weights beside {_listed(beside)}", _ITS_WEIGHTS)
    return None


def what_else(content: object) -> tuple[str, str]:
    """What a file holds that is no dictionary, in words, and the way from it to a state dict, where there is one."""
    kind = type(content).__name__
    if isinstance(content, list | tuple):
        found = [place for place, item in enumerate(content) if isinstance(item, Mapping) and _is_state_dict(item)]
        if found:
            which = f"of {len(content)}, with a state dict at {' and '.join(map(str, found[:_LISTED]))}"
            return f"a {kind} {which}", f"Save it alone: torch.save(torch.load(FILE)[{found[0]}], 'model.pt')"
    if isinstance(content, Tensor):
        return f"a single tensor {list(content.shape)}", _ALL_WEIGHTS
    return "nothing" if content is None else f"a {kind}", _ALL_WEIGHTS


def _has_weights(value: object, depth: int = 0) -> bool:
    """Whether a tensor as weights are stands anywhere but in the state of a training."""
    if isinstance(value, Tensor):
        return value.dim() > 1
    if depth > _NESTING:
        return False
    if isinstance(value, Mapping):
        inner = [item for key, item in value.items() if not (isinstance(key, str) and _is_training_state(key))]
        is_optimizer = {"state", "param_groups"} <= {key for key in value if isinstance(key, str)}
        return not is_optimizer and any(_has_weights(item, depth + 1) for item in inner)
    return isinstance(value, list | tuple) and any(_has_weights(item, depth + 1) for item in value)


def _arrays_in(content: Mapping[object, object]) -> tuple[str, ...] | None:
    """The keys that lead to a dictionary of arrays, as those of weights are, that has no tensors; None without one."""
    places: list[tuple[tuple[str, ...], Mapping[object, object]]] = [((), content)]
    places += [((key,), value) for key, value in content.items() if isinstance(key, str) and isinstance(value, Mapping)]
    for path, place in places:
        if any(isinstance(key, str) and isinstance(item, np.ndarray) and item.ndim > 1 for key, item in place.items()):
            return path
    return None


def plain_values(content: Mapping[object, object]) -> dict[str, object]:
    """What stands beside the weights and is plain: texts and numbers at the top, and the dictionaries of arguments.

    Only so much is looked at as a command line can have.
    """
    budget = [_MOST_VALUES]
    found = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, str | int | float | bool):
            found[key] = _plain(value, budget, 0)
    for key in _ARGUMENTS:
        value = content.get(key)
        value = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
        if isinstance(value, Mapping):
            found[key] = _plain(value, budget, 0)
    return found


def _plain(value: object, budget: list[int], depth: int) -> object:
    """A value as JSON has it, with None for what it has not."""
    budget[0] -= 1
    if budget[0] < 0 or depth > _NESTING:
        return None
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else None
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item, budget, depth + 1) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, list | tuple):
        return [_plain(item, budget, depth + 1) for item in value[: max(budget[0], 0)]]
    return None


def _candidates(content: Mapping[object, object], path: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """The state dicts of networks in nested dictionaries, by the dotted paths of their keys, outer ones first."""
    if depth == _NESTING:
        return
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Mapping):
            continue
        name = f"{path}.{key}" if path else key
        if _is_training_state(name) and not _is_average(name):
            continue
        if _is_state_dict(value) or (key in WRAPPER_KEYS and any(isinstance(item, Tensor) for item in value.values())):
            yield name, value
        if value is not content:
            yield from _candidates(value, name, depth + 1)


def _is_state_dict(value: Mapping[object, object]) -> bool:
    """Whether a dictionary holds, by itself, a tensor as weights of networks are: of two dimensions or more."""
    return any(isinstance(item, Tensor) and isinstance(key, str) and item.dim() > 1 for key, item in value.items())


def _is_average(key: str) -> bool:
    return any(_AVERAGE_KEY.search(part) for part in key.split("."))


def _is_training_state(key: str) -> bool:
    return any(part in TRAINING_STATE and not _AVERAGE_KEY.search(part) for part in key.split("."))


def _is_nested(keys: list[str]) -> bool:
    """Whether each path lies inside of the one before."""
    return all(inner.startswith(f"{outer}.") for outer, inner in itertools.pairwise(keys))


def _wanted(
    found: Mapping[str, object], averages: list[str], wanted: str, content: Mapping[object, object], source: str
) -> str:
    """The path of what the user asks for."""
    names = [key for key in found if wanted in (key, key.rpartition(".")[2])]
    if not names and wanted.lower() in (AVERAGE, "average", "averaged"):
        names = averages[:1] if _is_nested(averages) else averages
    exact = wanted if wanted in names else names[0] if len(names) == 1 else None
    if exact is not None:
        return exact
    inside = [key for key in ("", *found) if _below(found.get(key, content), wanted)]
    if not names and inside:
        return f"{inside[0]}:{wanted}"
    known = [*found] or [*_twins(content)]
    raise UsageError(
        f"{source} has {'several' if names else 'no'} weights called {shown(wanted)}",
        f"it has {_listed(names or known)}" if names or known else "leave out --weights: the file is one state dict",
    )


def _below(weights: object, head: str) -> bool:
    return isinstance(weights, Mapping) and any(
        isinstance(name, str) and name.startswith(f"{head}.") and isinstance(item, Tensor)
        for name, item in weights.items()
    )


def twin_networks(names: Iterator[str] | Mapping[str, object]) -> list[str]:
    """The first components of names behind which the same names follow, as of teacher and student; else none."""
    behind: dict[str, set[str]] = {}
    for name in names:
        head, dot, rest = name.partition(".")
        if dot and not is_beside_network(name):
            behind.setdefault(head, set()).add(rest)
    alike = [
        head for head, rest in behind.items() if len(rest) > 1 and sum(rest == other for other in behind.values()) > 1
    ]
    return alike if len(alike) > 1 else []


def _twins(content: Mapping[object, object]) -> list[str]:
    return twin_networks({name: None for name in content if isinstance(name, str)})


def _taken(
    content: Mapping[object, object], found: Mapping[str, object], key: str, remarks: tuple[str, ...]
) -> StateDict:
    """The state dict at a path, freed of what is not the network's where it is a part of a training file."""
    path, _, head = key.partition(":")
    weights = found[path] if path else content
    assert isinstance(weights, Mapping)
    beside = _without(content, path) if path else {}
    tensors: Mapping[object, object] = weights
    if head:
        tensors = {
            name.removeprefix(f"{head}."): item
            for name, item in weights.items()
            if isinstance(name, str) and name.startswith(f"{head}.")
        }
        return StateDict(key, tensors, beside, remarks, {})
    return StateDict(path, tensors, beside, remarks, weights)


def _without(content: Mapping[object, object], path: str) -> dict[object, object]:
    """What lies in nested dictionaries beside the one at a path, by the dotted paths of the keys."""
    head, _, rest = path.partition(".")
    # A key may hold dots itself.
    if path in content:
        head, rest = path, ""
    beside = {key: value for key, value in content.items() if key != head}
    inner = content.get(head)
    if rest and isinstance(inner, Mapping):
        beside |= {f"{head}.{key}": value for key, value in _without(inner, rest).items()}
    return beside


def _remarks(key: str, rest: list[str], averages: list[str], source: str) -> Iterator[str]:
    """What is to be said of the choice: of an average that was passed over or taken, and of other networks."""
    passed_over = [other for other in rest if other in averages]
    if key in averages:
        yield f"the weights are those of {key}, an average; {source} has no others"
    elif passed_over:
        yield f"the weights are those of {key or 'the file'}; {passed_over[0]} is an average of them: --weights ema"
    others = [other for other in rest if other not in averages]
    if others:
        yield f"the weights are those of {key or 'the file'}; there are also {_listed(others)}: --weights {others[0]}"


def _listed(names: list[str]) -> str:
    listed = ", ".join(name if name.isprintable() else repr(name) for name in names[:_LISTED])
    return listed if len(names) <= _LISTED else f"{listed}, ... and {len(names) - _LISTED} more"
