"""A second opinion on a corrected checkpoint: whether it is what its metadata says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from sapcli.activations.bases import Bases
from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.checkpoints.training_file import NAMES_PREFIX
from sapcli.errors import CheckpointError, UsageError
from sapcli.repairs.projected_weights import projected_weight, rescaled_gain
from sapcli.settings import ForgetMode, Importance

# Beside the rounding of the file's own type: what two machines' float32 products may differ by.
_RELATIVE_TOLERANCE = 1e-5
_NAMED_AT_MOST = 3
_HASH = "the weights have the hash that the metadata names"
_FORM = "the names, order, types and shapes of the tensors are the original's"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked, in words, whether it holds, and what to do where it does not."""

    holds: bool
    text: str
    hint: str = "do not use it; repair the original again"


@dataclass(frozen=True)
class Claim:
    """What a corrected checkpoint's metadata says of how it was made.

    Attributes:
        original: The digest of the weights that were repaired.
        output: The digest of its own weights.
        alpha: The scale coefficient; `None` where the weights were left as they were.
        importance: The formula.
        trusted: The digest of the trusted samples.
        projected: Per projected entry, the weight's name in the bases.
        batchnorm: The entries whose statistics were re-estimated.
        forget: The digest of the forget set; `None` without one.
        forget_mode: What it took away.
    """

    original: str
    output: str
    alpha: float | None
    importance: Importance
    trusted: str
    projected: Mapping[str, str]
    batchnorm: frozenset[str]
    forget: str | None
    forget_mode: ForgetMode

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Claim:
        """What the checkpoint's metadata says.

        Raises:
            CheckpointError: It says nothing of a repair, or nothing that can be understood.
        """
        metadata = checkpoint.metadata
        try:
            projected = {str(entry): str(name) for entry, name in json.loads(metadata["sap.projected"]).items()}
            return cls(
                original=metadata["sap.input"],
                output=metadata["sap.output"],
                alpha=float(metadata["sap.alpha"]) if metadata["sap.alpha"] else None,
                importance=Importance(metadata["sap.importance"]),
                trusted=metadata["sap.trusted"],
                projected=projected,
                batchnorm=frozenset(map(str, json.loads(metadata["sap.batchnorm"]))),
                forget=metadata.get("sap.forget"),
                forget_mode=ForgetMode(metadata.get("sap.forget_mode", ForgetMode.KEEP_SHARED)),
            )
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{checkpoint.source} does not say how it was repaired ({_reason(error)})",
                "name a checkpoint that `sap project` wrote",
            ) from error


POLISHED = "sap.polish.changed"
"""The metadata's key for the entries that a polish changed."""


@dataclass(frozen=True)
class PolishClaim:
    """What a polished checkpoint's metadata says: digests, and the entries that training changed."""

    original: str
    output: str
    changed: frozenset[str]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> PolishClaim:
        """What the checkpoint's metadata says.

        Raises:
            CheckpointError: It says nothing that can be understood.
        """
        metadata = checkpoint.metadata
        try:
            changed = frozenset(map(str, json.loads(metadata[POLISHED])))
            return cls(metadata["sap.input"], metadata["sap.output"], changed)
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{checkpoint.source} does not say how it was polished ({_reason(error)})",
                "name a checkpoint that `sap polish` wrote",
            ) from error


def verify(checkpoint: Checkpoint, original: Checkpoint | None, bases: Sequence[Bases]) -> list[Finding]:
    """Compare a corrected checkpoint with what its metadata says.

    Args:
        checkpoint: The corrected checkpoint.
        original: The one that it was made from: what changed is looked at.
        bases: Of the trusted samples, and of the forget set where there was one: the projection is made again from the
            original.

    Raises:
        CheckpointError: The checkpoint does not say how it was made.
        UsageError: There are bases, and it was trained.
    """
    if POLISHED in checkpoint.metadata:
        if bases:
            raise UsageError(f"{checkpoint.source} was polished: no projection makes its weights", "leave out --bases")
        return _verify_polished(PolishClaim.of(checkpoint), checkpoint, original)
    claim = Claim.of(checkpoint)
    findings = [Finding(checkpoint.digest == claim.output, _HASH)]
    if original is None:
        return findings
    findings += _about_original(claim.original, checkpoint, original, "repaired")
    if not findings[-1].holds and findings[-1].text == _FORM:
        return findings
    original = _part(original, checkpoint)
    findings.append(_unclaimed_changes(claim.projected.keys() | claim.batchnorm, checkpoint, original))
    if bases:
        findings += _projections(claim, checkpoint, original, {found.samples: found for found in bases})
    return findings


def _verify_polished(claim: PolishClaim, checkpoint: Checkpoint, original: Checkpoint | None) -> list[Finding]:
    """Compare a polished checkpoint with what its metadata says; that nobody trained otherwise cannot be told."""
    findings = [Finding(checkpoint.digest == claim.output, _HASH)]
    if original is None:
        return findings
    findings += _about_original(claim.original, checkpoint, original, "polished")
    if not findings[-1].holds and findings[-1].text == _FORM:
        return findings
    return [*findings, _unclaimed_changes(claim.changed, checkpoint, _part(original, checkpoint))]


def _about_original(digest: str, checkpoint: Checkpoint, original: Checkpoint, done: str) -> list[Finding]:
    """Whether the original is the one that is meant, and has the same tensors; the last finding is about these."""
    findings = [
        Finding(
            original.digest == digest,
            f"{original.source} is what was {done}",
            "name the checkpoint that it was made from with --input",
        )
    ]
    if list(_part(original, checkpoint).entries.values()) != list(checkpoint.entries.values()):
        findings.append(Finding(False, _FORM))
    return findings


def _part(original: Checkpoint, checkpoint: Checkpoint) -> Checkpoint:
    """Of a training file, the entries that a corrected file of it holds, under the names that they have there."""
    prefix = checkpoint.metadata.get(NAMES_PREFIX, "")
    names = {name: prefix + name for name in checkpoint.entries}
    is_part = original.training is not None and original.training.is_part
    return original.narrowed(names) if is_part and original.entries.keys() >= {*names.values()} else original


def _unclaimed_changes(claimed: Set[str], checkpoint: Checkpoint, original: Checkpoint) -> Finding:
    """Whether all that differs is what the metadata says was changed."""
    changed = [
        name
        for name in checkpoint.entries
        if name not in claimed and not _same_bits(checkpoint.read(name), original.read(name))
    ]
    kept = len(checkpoint.entries) - len(claimed)
    return _about(changed, f"the other {kept} tensors are bit for bit the original's")


def _projections(
    claim: Claim, checkpoint: Checkpoint, original: Checkpoint, bases: Mapping[str, Bases]
) -> list[Finding]:
    """Whether every projected weight is the projection of the original's."""
    trusted, forget = bases.get(claim.trusted), bases.get(claim.forget or "")
    used = [found for found in (trusted, forget) if found is not None]
    if trusted is None or (claim.forget is not None and forget is None):
        missing = "trusted samples" if trusted is None else "forget set"
        return [Finding(False, f"the bases are those of the {missing} that the metadata names")]
    findings = [
        Finding(
            all(found.checkpoint == claim.original for found in used),
            "the bases were made from the weights and samples that the metadata names",
        )
    ]
    if claim.alpha is None:
        return [*findings, _about(list(claim.projected), "nothing was projected")]
    wrong = []
    entries = {name: entry for entry, name in claim.projected.items()}
    for entry, name in claim.projected.items():
        source = entries.get(trusted.gains.get(name, name), entry)
        if not _can_be_projected(original, source, claim.projected[source], trusted, forget):
            wrong.append(entry)
            continue
        weight_name, weight = claim.projected[source], original.read(source)
        expected = projected_weight(
            weight_name, weight, trusted, claim.importance, claim.alpha, forget, claim.forget_mode
        )
        if source != entry:
            expected = rescaled_gain(original.read(entry), original.read(source), expected)
        if not _close(checkpoint.read(entry), expected):
            wrong.append(entry)
    findings.append(
        _about(wrong, f"{len(claim.projected)} weights are the original's projected with alpha {claim.alpha:g}")
    )
    return findings


def _can_be_projected(original: Checkpoint, entry: str, name: str, trusted: Bases, forget: Bases | None) -> bool:
    """Whether there is such an entry, and the bases of that name are of a weight of its size."""
    found = original.entries.get(entry)
    if found is None or not found.dtype.is_floating_point or name not in trusted.pieces:
        return False
    elements = math.prod(found.shape)
    return trusted.fit(name, elements) and (forget is None or forget.fit(name, elements))


def _about(exceptions: Sequence[str], text: str) -> Finding:
    """The finding that `text` holds but for some entries."""
    if not exceptions:
        return Finding(True, text)
    more = ", ..." if len(exceptions) > _NAMED_AT_MOST else ""
    return Finding(False, f"{text}, but for {len(exceptions)}: {', '.join(exceptions[:_NAMED_AT_MOST])}{more}")


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether two weights of the same type are equal but for rounding, by the Frobenius norm of their difference."""
    tolerance = _RELATIVE_TOLERANCE + torch.finfo(found.dtype).eps
    difference = (found.double() - expected.double()).norm()
    return bool(difference <= tolerance * expected.double().norm())


def _reason(error: Exception) -> str:
    return f"there is no {error.args[0]}" if isinstance(error, KeyError) else str(error)
