"""The artifacts of a session as files of the cache: what images were made of, what is said of them, who is trusted."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sapcli.activations.scoring import Outcomes
from sapcli.activations.views import Views
from sapcli.checkpoints.saving import write_safetensors
from sapcli.datasets.images import Remarks
from sapcli.machine.files import atomic_write
from sapcli.repairs.selection import TrustedSet


def write_remarks(remarks: Remarks, path: Path) -> None:
    """What there is to be said of the images that an artifact was made of."""
    with atomic_write(path) as handle:
        handle.write(json.dumps(remarks.to_json()).encode())


def read_remarks(path: Path, samples: int) -> Remarks:
    """Read what `write_remarks` wrote of a dataset of so many samples.

    Raises:
        ValueError: It is about other samples; other exceptions, if it is something else.
    """
    remarks = Remarks.from_json(json.loads(path.read_text()))
    if not all(0 <= index < samples for index in (*remarks.unreadable, *remarks.treated)):
        raise ValueError(f"{path} is about other samples")
    return remarks


def write_outcomes(outcomes: Outcomes, path: Path) -> None:
    """What a network made of images, as safetensors."""
    write_safetensors(path, vars(outcomes))


def read_outcomes(path: Path, samples: int, classes: int) -> Outcomes:
    """Read what `write_outcomes` wrote of a dataset of so many samples and classes.

    Raises:
        ValueError: It is about other samples; other exceptions, if it is something else.
    """
    return _checked_outcomes({name: column.clone() for name, column in load_file(path).items()}, path, samples, classes)


def write_views(views: Views, path: Path) -> None:
    """What a network made of images in full, as safetensors."""
    more = {"logits": views.logits, "features": views.features, "pixels": views.pixels}
    write_safetensors(path, {**vars(views.outcomes), **more})


def read_views(path: Path, samples: int, classes: int) -> Views:
    """Read what `write_views` wrote of a dataset of so many samples and classes.

    Raises:
        ValueError: It is about other samples; other exceptions, if it is something else.
    """
    columns = {name: column.clone() for name, column in load_file(path).items()}
    logits, features, pixels = (columns.pop(name) for name in ("logits", "features", "pixels"))
    outcomes = _checked_outcomes(columns, path, samples, classes)
    if any(kept.dim() != 2 or len(kept) not in (0, len(outcomes)) for kept in (logits, features, pixels)):
        raise ValueError(f"{path} holds no views of these samples")
    if len(logits) and logits.shape[1] != classes:
        raise ValueError(f"{path} is about other classes")
    return Views(outcomes, logits, features, pixels)


def _checked_outcomes(stored: Mapping[str, Tensor], path: Path, samples: int, classes: int) -> Outcomes:
    outcomes = Outcomes(**stored)
    of_samples, of_classes = (outcomes.indices,), (outcomes.labels, outcomes.predictions)
    fits = all(column.shape == (len(outcomes.indices),) for column in vars(outcomes).values())
    for columns, limit in ((of_samples, samples), (of_classes, classes)):
        for column in columns if fits and len(outcomes.indices) else ():
            fits = fits and column.dtype == torch.int64 and int(column.min()) >= 0 and int(column.max()) < limit
    if not fits:
        raise ValueError(f"{path} holds no outcomes of these samples")
    return outcomes


def write_trusted(trusted: TrustedSet, path: Path) -> None:
    """A trusted set, in the form in which users have it."""
    with atomic_write(path) as handle:
        handle.write(trusted.to_json_lines().encode("utf-8", "surrogateescape"))


@functools.cache
def library_versions(library: str) -> dict[str, str]:
    """The versions of what decodes images, builds networks (a `library` of its own among them) and computes."""
    found = {"torch": str(torch.__version__)}
    own = ("transformers",) if library == "transformers" else ()
    for package in ("timm", "torchvision", "pillow", "numpy", *own):
        # What was put on the path by hand has no version that is known.
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
