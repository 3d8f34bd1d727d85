"""The file of bases.

It is safetensors: `<weight>.vectors` (float32 `[groups, d, k]`) and `<weight>.values` (float64 `[groups, k]`,
descending); a weight that is used in several pieces has `<weight>#2.vectors` and so on. The metadata tells the geometry
of each, what was left out and why, the hashes of the checkpoint and of the samples, and what else they were made with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from sapcli.activations.bases import Bases, Origin, Piece, SampleFacts
from sapcli.activations.moments import Basis
from sapcli.activations.rows import WeightView
from sapcli.checkpoints.safetensors_file import SafetensorsFile
from sapcli.checkpoints.saving import write_safetensors
from sapcli.errors import CheckpointError
from sapcli.machine.reading import STANDARD_INPUT, open_input, spool_stdin

_FORMAT = "sap.bases/2"
# Written before files said what else the bases were made with.
_FORMAT_WITHOUT_ORIGIN = "sap.bases/1"
# What a damaged file makes the readers of its parts raise: text that is nested too deeply raises RecursionError.
_DAMAGED = (
    OSError,
    LookupError,
    TypeError,
    ArithmeticError,
    ValueError,
    AttributeError,
    RecursionError,
)


def write_bases(bases: Bases, destination: Path | BinaryIO) -> None:
    """Write `bases` as safetensors, a path atomically."""
    tensors: dict[str, Tensor] = {}
    geometry: dict[str, list[dict[str, object]]] = {}
    for name, pieces in bases.pieces.items():
        geometry[name] = [
            {
                "groups": piece.view.groups,
                "rows": piece.basis.rows,
                "size": piece.view.size,
                "stride": piece.view.stride,
                "offset": piece.view.offset,
            }
            for piece in pieces
        ]
        for number, piece in enumerate(pieces, start=1):
            key = _piece_key(name, number)
            tensors[f"{key}.vectors"] = piece.basis.vectors.cpu()
            tensors[f"{key}.values"] = piece.basis.values.cpu()
    metadata = {
        "sap.format": _FORMAT,
        "sap.checkpoint": bases.checkpoint,
        "sap.samples": bases.samples,
        "sap.weights": json.dumps(geometry),
        "sap.skipped": json.dumps(dict(bases.skipped)),
        "sap.facts": json.dumps(asdict(bases.facts)),
        "sap.gains": json.dumps(dict(bases.gains)),
    }
    if bases.origin is not None:
        metadata["sap.origin"] = json.dumps(asdict(bases.origin), sort_keys=True)
    write_safetensors(destination, tensors, metadata)


def _piece_key(name: str, number: int) -> str:
    return name if number == 1 else f"{name}#{number}"


def read_bases(path: Path | str, source: str | None = None) -> Bases:
    """Read what `write_bases` wrote, from a file, a pipe, or standard input (`-`).

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
    """
    source = source or ("stdin" if path == STANDARD_INPUT else str(path))
    again = "make it again with `sap activations`"
    try:
        try:
            file = SafetensorsFile(spool_stdin() if path == STANDARD_INPUT else open_input(Path(path)), source)
        except CheckpointError as error:
            raise CheckpointError(f"{source} cannot be read as bases: {error.message}", again) from error
        metadata = file.metadata
        if metadata.get("sap.format") not in (_FORMAT, _FORMAT_WITHOUT_ORIGIN):
            raise CheckpointError(f"{source} holds no bases ({_FORMAT})", again)
        geometry = json.loads(metadata["sap.weights"])
        pieces = {
            name: tuple(
                _read_piece(file, _piece_key(name, number), entry) for number, entry in enumerate(entries, start=1)
            )
            for name, entries in geometry.items()
        }
        skipped, gains = (
            {str(name): str(text) for name, text in json.loads(metadata[key]).items()}
            for key in ("sap.skipped", "sap.gains")
        )
        if not gains.keys().isdisjoint(pieces) or not pieces.keys() >= set(gains.values()):
            raise ValueError("a weight's size is given by a weight that has bases of its own, or to one that has none")
        checkpoint, samples = metadata["sap.checkpoint"], metadata["sap.samples"]
        return Bases(pieces, skipped, checkpoint, samples, _read_facts(metadata), gains, _read_origin(metadata))
    except _DAMAGED as error:
        raise CheckpointError(f"{source} cannot be read as bases: {error}", again) from error


def _read_facts(metadata: Mapping[str, str]) -> SampleFacts:
    facts = json.loads(metadata["sap.facts"])
    return SampleFacts(tuple(map(int, facts["per_class"])), int(facts["contradicted"]), str(facts["contents"]))


def _read_origin(metadata: Mapping[str, str]) -> Origin | None:
    if "sap.origin" not in metadata:
        return None
    origin = json.loads(metadata["sap.origin"])
    return Origin(dict(origin["preprocessing"]), str(origin["code"]), str(origin["data"]))


def _read_piece(file: SafetensorsFile, key: str, entry: Mapping[str, Any]) -> Piece:
    """One piece of the open `file`, its shapes checked against its geometry."""
    view = WeightView(tuple(map(int, entry["size"])), tuple(map(int, entry["stride"])), int(entry["offset"]))
    vectors, values = (file.read(f"{key}.{part}") for part in ("vectors", "values"))
    kept = values.shape[-1] if values.dim() else 0
    if vectors.shape != (view.groups, view.row_length, kept) or values.shape != (view.groups, kept):
        raise ValueError(f"{key} has vectors {list(vectors.shape)} and values {list(values.shape)} for {entry}")
    return Piece(view, Basis(vectors, values, int(entry["rows"])))
