"""Whether bases that are given were made as they would be made here."""

from __future__ import annotations

import json
import reprlib

from sapcli.activations.bases import Origin
from sapcli.errors import CheckpointError
from sapcli.machine.progress import Progress
from sapcli.networks.architecture import Architecture


def origin_of(architecture: Architecture, data: str) -> Origin:
    """What bases are made with here.

    Args:
        architecture: The network.
        data: The fingerprint of the training data.
    """
    settings = json.loads(json.dumps(architecture.preprocessing.to_settings()))
    return Origin(settings, architecture.code_digest, data)


def check_origin(origin: Origin | None, here: Origin, source: str, network: str, progress: Progress) -> None:
    """Refuse bases of other preprocessing, and warn of those of other code or data.

    Args:
        origin: What the bases were made with; `None` where their file does not say.
        here: What they would be made with here.
        source: The file of the bases, for messages.
        network: The network's name, likewise.
        progress: Told of what differs or cannot be checked.

    Raises:
        CheckpointError: The images were prepared in another way.
    """
    if origin is None:
        progress.warn(
            f"{source} does not say with which preprocessing, code and data it was made, so it cannot be checked"
            " that they are those of this run"
        )
        return
    there = origin.preprocessing
    different = sorted(
        key for key in there.keys() | here.preprocessing if there.get(key) != here.preprocessing.get(key)
    )
    if different:
        named = "; ".join(
            f"{reprlib.repr(key)} {reprlib.repr(there.get(key))} there, {here.preprocessing.get(key)!r} here"
            for key in different[:3]
        )
        raise CheckpointError(
            f"{source} holds bases of images that were prepared in another way: {named}",
            "give the same preprocessing options, or make the bases again with `sap activations`",
        )
    if origin.code != here.code:
        progress.warn(f"{source} was made with other code of the network than that of {network}")
    if origin.data != here.data:
        progress.warn(f"{source} was made with other training images, labels or classes than those given here")
