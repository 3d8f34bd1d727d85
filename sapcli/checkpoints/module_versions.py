"""The versions of a network's modules, by which their own code knows old files and turns what is in them.

A state dict of PyTorch's has them as an attribute, `_metadata`; PyTorch's files keep it, safetensors files have no
place for it but their free texts. Without them a network's code could take a new file for an old one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_KEY = "state_dict_versions"


def versions_as_metadata(state_dict: object) -> dict[str, str]:
    """What a safetensors file's metadata is to hold of the versions in a state dict; nothing where it has none."""
    about = getattr(state_dict, "_metadata", None)
    if not isinstance(about, Mapping) or not about:
        return {}
    # Most modules have a version and nothing else to tell.
    versions = {
        str(name): value["version"] if isinstance(value, Mapping) and value.keys() == {"version"} else value
        for name, value in about.items()
    }
    try:
        return {_KEY: json.dumps(versions)}
    except (TypeError, ValueError, RecursionError):  # what is no text can only be left out
        return {}


def versions_from_metadata(metadata: Mapping[str, str], prefix: str) -> dict[str, dict[str, Any]]:
    """The `_metadata` of the state dict of a network whose names stand behind `prefix` in the file."""
    try:
        versions = json.loads(metadata.get(_KEY, "{}")).items()
    except (ValueError, AttributeError, RecursionError):  # metadata is anybody's
        return {}
    return {
        f"{name}.".removeprefix(prefix).rstrip("."): about if isinstance(about, dict) else {"version": about}
        for name, about in versions
        if f"{name}.".startswith(prefix)
    }
