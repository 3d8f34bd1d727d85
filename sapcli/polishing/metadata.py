"""What a polished checkpoint says in its metadata of how it was made."""

from __future__ import annotations

import json

import torch

from sapcli import __version__
from sapcli.checkpoints.saving import written_digest
from sapcli.datasets.contents import from_text, to_text
from sapcli.polishing.judging import Result
from sapcli.polishing.pipeline import Polish
from sapcli.repairs.metadata import TRUSTED_IMAGES, carried_metadata
from sapcli.repairs.session import Session


def polish_metadata(session: Session, polish: Polish) -> dict[str, str]:
    """The polished checkpoint's metadata: the input's own, and how it came to be under `sap.*` keys."""
    course, settings, recipe = polish.course, polish.settings, polish.recipe
    earlier = from_text(session.checkpoint.metadata.get(TRUSTED_IMAGES, ""))
    replacements = polish.replacements(session.classifier.loaded.written_names)
    described = {
        "sap.version": __version__,
        "sap.torch": torch.__version__,
        "sap.precision": str(session.fast_dtype or torch.float32).removeprefix("torch."),
        "sap.input": session.checkpoint.digest,
        "sap.output": written_digest(session.written, replacements),
        "sap.repaired": "true" if polish.changed else "false",
        "sap.alpha": _alpha(session, polish),
        TRUSTED_IMAGES: to_text(earlier | from_text(polish.trusted_images)),
        "sap.validation_images": str(polish.validation),
        "sap.polish.result": polish.judgement.result.value,
        "sap.polish.changed": json.dumps(sorted(replacements)),
        "sap.polish.start": "repaired" if polish.repaired else "given",
        "sap.polish.labels": "given" if settings.labels_as_given else "blended",
        "sap.polish.optimizer": recipe.optimizer.value,
        "sap.polish.learning_rate": f"{course.learning_rate:.12g}",
        "sap.polish.batch_size": str(recipe.batch_size),
        "sap.polish.epochs": str(len(course.epochs)),
        "sap.polish.steps": str(course.steps),
        "sap.polish.losses": json.dumps([float(f"{epoch.loss:.6g}") for epoch in course.epochs]),
        "sap.polish.augmentation": polish.augmentation,
        "sap.polish.seed": str(session.settings.seed),
        "sap.polish.images": str(polish.trained),
        "sap.polish.held_out": str(polish.held_out),
    }
    if settings.freeze or settings.head_only:
        described["sap.polish.freeze"] = json.dumps(["all but the head"] if settings.head_only else [*settings.freeze])
    if polish.gain is not None and polish.judgement.result is not Result.UNCHANGED:
        gain = polish.gain
        described["sap.gain"] = json.dumps({"points": gain.points, "interval": [gain.low, gain.high]})
    return carried_metadata(session) | described


def _alpha(session: Session, polish: Polish) -> str:
    """Of the repair that training began with, be it an earlier one; empty where there was none."""
    if polish.alpha is not None:
        return f"{polish.alpha:.12g}"
    return session.checkpoint.metadata.get("sap.alpha", "")
