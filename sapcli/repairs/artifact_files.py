"""The artifacts of a session as files of the cache: what images were made of, what is said of them, who is trusted."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from sapcli.activations.scoring import Outcomes
from sapcli.checkpoints.saving import write_safetensors
from sapcli.datasets.images import Remarks
from sapcli.machine.files import atomic_write
from sapcli.repairs.selection import TrustedSet


def write_remarks(remarks: Remarks, path: Path) -> None:
    """What there is to be said of the images that an artifact was made of."""
    with atomic_write(path) as handle:
        handle.write(json.dumps(remarks.to_json()).encode())


def read_remarks(path: Path) -> Remarks:
    """Read what `write_remarks` wrote."""
    return Remarks.from_json(json.loads(path.read_text()))


def write_outcomes(outcomes: Outcomes, path: Path) -> None:
    """What a network made of images, as safetensors."""
    write_safetensors(path, vars(outcomes))


def read_outcomes(path: Path) -> Outcomes:
    """Read what `write_outcomes` wrote."""
    return Outcomes(**{name: column.clone() for name, column in load_file(path).items()})


def write_trusted(trusted: TrustedSet, path: Path) -> None:
    """A trusted set, in the form in which users have it."""
    with atomic_write(path) as handle:
        handle.write(trusted.to_json_lines().encode("utf-8", "surrogateescape"))
