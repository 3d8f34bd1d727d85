"""What a corrected checkpoint says in its metadata of how it was made."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from sapcli import __version__
from sapcli.activations.bases import Bases
from sapcli.checkpoints.saving import written_digest
from sapcli.checkpoints.training_file import NAMES_PREFIX
from sapcli.datasets.contents import from_text, to_text
from sapcli.machine.text import can_be_printed
from sapcli.networks.architecture import Architecture
from sapcli.repairs.correction import Correction
from sapcli.repairs.pipeline import Repair
from sapcli.repairs.session import Session
from sapcli.settings import (
    ProjectionSettings,
)

TRUSTED_IMAGES = "sap.trusted_images"
"""The metadata's key for the contents of all images that a checkpoint was repaired with, by this or earlier repairs."""


def repair_metadata(
    session: Session,
    repair: Repair,
    correction: Correction,
    settings: ProjectionSettings,
    bases: Bases,
    forget: Bases | None = None,
) -> dict[str, str]:
    """The corrected checkpoint's metadata: the input's own, and how it came to be under `sap.*` keys."""
    choice = repair.choice
    trusted_images = from_text(bases.facts.contents)
    names = session.classifier.loaded.written_names
    changed = correction.changed_entries(names) if repair.changed else {}
    projected = {entry: name for entry, name in changed.items() if name in {*repair.plan.projected, *bases.gains}}
    replacements = {} if choice.alpha is None else correction.replacements(choice.alpha, names)
    described = {
        "sap.version": __version__,
        "sap.torch": torch.__version__,
        "sap.precision": str(session.fast_dtype or torch.float32).removeprefix("torch."),
        "sap.input": session.checkpoint.digest,
        "sap.output": written_digest(session.written, replacements),
        "sap.repaired": "true" if repair.changed else "false",
        "sap.alpha": "" if choice.alpha is None else f"{choice.alpha:.12g}",
        "sap.evidence": choice.evidence.value,
        "sap.importance": settings.importance.value,
        "sap.trusted": bases.samples,
        TRUSTED_IMAGES: to_text(from_text(session.checkpoint.metadata.get(TRUSTED_IMAGES, "")) | trusted_images),
        "sap.projected": json.dumps(projected),
        "sap.batchnorm": json.dumps(sorted(changed.keys() - projected.keys())),
        "sap.batchnorm_images": str(repair.batchnorm_images),
        "sap.validation_images": str(repair.validation),
    }
    if session.candidates is not None:
        described["sap.candidates"] = f"{session.candidates} of {len(session.training.paths)}"
    if repair.gain is not None:
        gain = repair.gain
        described["sap.gain"] = json.dumps({"points": gain.points, "interval": [gain.low, gain.high]})
    if forget is not None:
        described |= {"sap.forget": forget.samples, "sap.forget_mode": settings.forget_mode.value}
    return carried_metadata(session) | described


def carried_metadata(session: Session) -> dict[str, str]:
    """What every corrected checkpoint says: the input's own metadata, without its `sap.*`, and what the network is."""
    kept = {key: text for key, text in session.checkpoint.metadata.items() if not key.startswith("sap.")}
    names = session.classifier.loaded.written_names
    prefix = next((entry.removesuffix(name) for name, entry in names.items()), "")
    shortened = {NAMES_PREFIX: prefix} if prefix else {}
    return kept | _with_class_names(session).to_metadata() | shortened


def _with_class_names(session: Session) -> Architecture:
    """The architecture with the classes' names as they were matched with the data, for whatever comes after.

    Numbers in their own order tell nothing, unless folders that are called so are sorted differently by others.
    """
    names = session.training.classes
    plain = names == tuple(map(str, range(len(names)))) and not session.is_order_found
    if session.architecture.label_names is not None or plain:
        return session.architecture
    unprintable = next((name for name in names if not can_be_printed(name)), None)
    if unprintable is not None:
        # No checkpoint with such names is read.
        session.progress.warn(
            f"the classes' names are not written into the checkpoint: {unprintable!r} holds characters that no name can"
            " have"
        )
        return session.architecture
    return replace(session.architecture, label_names=names)
