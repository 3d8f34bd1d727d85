"""What stands before and within the names of entries: wrappers, and what training scripts save beside the weights."""

from __future__ import annotations

from collections.abc import Collection

from sapcli.checkpoints.pytorch_file import WRAPPER_KEYS

TRAINING_STATE = frozenset(
    {
        *("optimizer", "optimizers", "optimizer_state_dict", "optimizer_states", "optimizer_state", "optim", "opt"),
        *("scheduler", "schedulers", "lr_scheduler", "lr_schedulers", "scheduler_state_dict"),
        *("scaler", "grad_scaler", "amp", "amp_scaler", "scaler_state_dict"),
        *("ema", "model_ema", "ema_model", "module_ema", "state_dict_ema", "ema_state_dict", "model_state_dict_ema"),
        *("criterion", "loss", "callbacks", "loops", "n_averaged"),
    }
)
"""First components of names that never are weights of the network, but what training scripts save beside them."""

# What torch.compile, FSDP and activation checkpointing put into the names of the submodules that they wrap.
_INNER_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPERS = (*_INNER_WRAPPERS, *WRAPPER_KEYS)
_NESTING = 6
# Of the prefixes that names may have; a file with hundreds is made to have them, and each is compared with the network.
_MOST_PREFIXES = 100


def without_inner_wrappers(name: str) -> str:
    """A name without what wrappers of submodules put in the middle (`layer1._orig_mod.conv`); its beginning stays."""
    parts = name.split(".")
    depth = next((depth for depth, part in enumerate(parts) if part not in _WRAPPERS), len(parts))
    return ".".join([*parts[:depth], *(part for part in parts[depth:] if part not in _INNER_WRAPPERS)])


def candidate_prefixes(names: Collection[str]) -> list[str]:
    """What may stand before a network's own names in a checkpoint.

    Args:
        names: The names of the checkpoint's entries.

    Returns:
        The prefixes, "" first, then the shorter before the longer; each ends with a dot. Those are the wrappers that
        are known (`module.`, `_orig_mod.`, `model.`, ...), in any nesting, and a component that all names share.
    """
    inside = {"": [name for name in names if name.partition(".")[0] not in TRAINING_STATE]}
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
