"""What stands before and within the names of entries: wrappers, and what training scripts save beside the weights."""

from __future__ import annotations

import re
from collections.abc import Collection

# Under which keys training scripts keep the weights beside what else they save, the more telling ones first.
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module")

TRAINING_STATE = frozenset(
    {
        *("optimizer", "optimizers", "optimizer_state_dict", "optimizer_states", "optimizer_state", "optim", "opt"),
        *("scheduler", "schedulers", "lr_scheduler", "lr_schedulers", "scheduler_state_dict"),
        *("scaler", "grad_scaler", "amp", "amp_scaler", "scaler_state_dict"),
        *("ema", "model_ema", "ema_model", "module_ema", "state_dict_ema", "ema_state_dict", "model_state_dict_ema"),
        *("criterion", "criterion_state_dict", "loss", "loss_state_dict", "callbacks", "loops", "n_averaged"),
    }
)
"""First components of names that never are weights of the network, but what training scripts save beside them."""

# Beside the above: losses and metrics that a Lightning module holds, by the names that their attributes usually have.
_LOSS_OR_METRIC = re.compile(
    r"(.*_)?(criterions?|losses|loss(_(fn|func|function|module|weights?))?|metrics?|class_weights?)"
    r"|((train|training|val|valid|validation|test)_)?"
    r"(acc|accuracy|auroc|auc|f1|f1_?score|precision|recall|confmat|confusion(_matrix)?)(_?\d+)?",
    re.IGNORECASE,
)
# What torch.compile, FSDP and activation checkpointing put into the names of the submodules that they wrap.
INNER_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPERS = (*INNER_WRAPPERS, *WRAPPER_KEYS)
_NESTING = 6
# Of the prefixes that names may have; a file with hundreds is made to have them, and each is compared with the network.
_MOST_PREFIXES = 100
_MOST_ATTRIBUTES = 12


def is_beside_network(name: str) -> bool:
    """Whether an entry of a state dict is a loss's or a metric's by its name, or another part of the training."""
    head = name.partition(".")[0]
    return head in TRAINING_STATE or _LOSS_OR_METRIC.fullmatch(head) is not None


def without_inner_wrappers(name: str) -> str:
    """A name without what wrappers of submodules put in the middle (`layer1._orig_mod.conv`); its beginning stays."""
    parts = name.split(".")
    depth = next((depth for depth, part in enumerate(parts) if part not in _WRAPPERS), len(parts))
    return ".".join([*parts[:depth], *(part for part in parts[depth:] if part not in INNER_WRAPPERS)])


def without_any_inner_wrapper(name: str) -> str:
    """A name without what wrappers of submodules put anywhere into it."""
    return ".".join(part for part in name.split(".") if part not in INNER_WRAPPERS)


def candidate_prefixes(names: Collection[str]) -> list[str]:
    """What may stand before a network's own names in a checkpoint.

    Args:
        names: The names of the checkpoint's entries.

    Returns:
        The prefixes, "" first, then the shorter before the longer; each ends with a dot. Those are the wrappers that
        are known (`module.`, `_orig_mod.`, `model.`, ...), in any nesting, and a component that all names share.
    """
    inside = {"": [name for name in names if not is_beside_network(name)]}
    for depth in range(_NESTING):
        for prefix in [prefix for prefix in inside if prefix.count(".") == depth]:
            rests = [name[len(prefix) :] for name in inside[prefix]]
            heads = {rest.partition(".")[0] for rest in rests if "." in rest}
            shared = heads if len(heads) == 1 and all("." in rest for rest in rests) else set()
            for head in (*_WRAPPERS, *(shared - set(_WRAPPERS))):
                if head in heads and len(inside) < _MOST_PREFIXES:
                    longer = f"{prefix}{head}."
                    inside[longer] = [name for name in inside[prefix] if name.startswith(longer)]
    return list(inside)


def top_prefixes(names: Collection[str]) -> list[str]:
    """The first components of names, each with its dot, where there are as few as a module has attributes."""
    heads = dict.fromkeys(f"{name.partition('.')[0]}." for name in names if "." in name and not is_beside_network(name))
    return list(heads) if len(heads) <= _MOST_ATTRIBUTES else []
