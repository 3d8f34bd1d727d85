"""The JSON Schemas of all that commands write as JSON, as `docs/schemas/` publishes them."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from sapcli.repairs.evidence.suspects import Suspect
from sapcli.repairs.selection import TrustedSample
from sapcli.reports.documents import (
    ActivationsDocument,
    CacheDocument,
    ConfigDocument,
    DemoDocument,
    EnvironmentDocument,
    EvaluationDocument,
    EventDocument,
    NoiseDocument,
    PolishDocument,
    ProjectDocument,
    VerificationDocument,
)
from sapcli.reports.inspection_documents import InspectionDocument
from sapcli.reports.schema import RepairReport

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# A command each, and the events of `--progress-json`.
_KINDS: dict[str, Any] = {
    "activations": ActivationsDocument,
    "cache": CacheDocument,
    "config": ConfigDocument,
    "demo": DemoDocument,
    "env": EnvironmentDocument,
    "eval": EvaluationDocument,
    "inspect": InspectionDocument,
    "noise": NoiseDocument,
    "polish": PolishDocument,
    "progress": EventDocument,
    "project": ProjectDocument,
    "report": RepairReport,
    "select": TrustedSample,
    "suspects": Suspect,
    "verify": VerificationDocument,
}
# What is written as JSON Lines, a sample a line, or as one array of the same.
_ROWS = frozenset({"select", "suspects"})

NAMES = tuple(_KINDS)
"""What there are schemas of."""


def adapter(name: str) -> TypeAdapter[Any]:
    """What reads and describes the JSON of a command; of samples, one of them or an array.

    Args:
        name: One of `NAMES`.
    """
    kind = _KINDS[name]
    if name not in _ROWS:
        return TypeAdapter(kind)
    row: Any = dataclass(kind, frozen=True, config=ConfigDict(extra="forbid"))
    return TypeAdapter(row | list[row])


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of what a command writes as JSON; see `adapter`."""
    return {"$schema": _DIALECT, "title": _KINDS[name].__name__, **adapter(name).json_schema()}
