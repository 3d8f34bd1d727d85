"""Which architecture a bare checkpoint is: the names and shapes of its tensors against an index of known classifiers.

The index is a file of the package, made by `scripts/build_architecture_index.py` from an installed timm and
torchvision, so that recognising a file imports neither. It holds, for every classifier, which dimensions follow the
number of classes, a digest of all names and shapes without those, and a sketch of them that tells near from far.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import json
import lzma
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sapcli.checkpoints.entry_names import candidate_prefixes, is_beside_network
from sapcli.errors import ArchitectureError
from sapcli.networks.class_count import ClassDimension, Shapes, count_classes
from sapcli.networks.preprocessing import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

    from sapcli.checkpoints.checkpoint import Checkpoint

INDEX_NAME = "architectures.json.xz"

_SKETCH_BINS = 64
_EMPTY_BIN = 255
_NEAREST = 3


@dataclass(frozen=True)
class KnownArchitecture:
    """A classifier of the index.

    Attributes:
        name: `timm:NAME` or `torchvision:NAME`.
        class_dimensions: The dimensions of its tensors that follow the number of classes.
        digest: `digest_of` its tensors.
        sketch: `sketch_of` its tensors.
        preprocessing: How its published weights take images.
    """

    name: str
    class_dimensions: tuple[ClassDimension, ...]
    digest: str
    sketch: bytes
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Candidate:
    """An architecture that a checkpoint may be.

    Attributes:
        name: The architecture's name, as `--arch` takes it.
        num_classes: The number of classes in the checkpoint; None where the names and shapes do not fit.
        preprocessing: How the architecture's published weights take images.
        similarity: The estimated share of names and shapes that agree, 1 where all do.
    """

    name: str
    num_classes: int | None
    preprocessing: Preprocessing
    similarity: float


@dataclass(frozen=True)
class Recognition:
    """What a checkpoint was recognised as.

    Attributes:
        matches: The architectures with exactly its tensors, whatever the number of classes.
        nearest: Where there are none, those with the most similar tensors, the most similar first.
    """

    matches: tuple[Candidate, ...]
    nearest: tuple[Candidate, ...]


def recognise(checkpoint: Checkpoint) -> Recognition:
    """Look a checkpoint up in the index by its tensors' names and shapes; no tensor is read."""
    views = list(_views(checkpoint))
    matches = {candidate.name: candidate for view in views for candidate in _equal(view)}
    return Recognition(tuple(matches.values()), () if matches else _most_similar(views))


def name_of_only_match(checkpoint: Checkpoint) -> str:
    """The name of the one architecture that has a checkpoint's tensors.

    Raises:
        ArchitectureError: If there are several, which then are named with their preprocessing, or none.
    """
    found = recognise(checkpoint)
    if len(found.matches) == 1:
        return found.matches[0].name
    unnamed = f"nothing names the architecture of {checkpoint.source}"
    if not found.matches:
        near = ", ".join(f"{candidate.name} (about {candidate.similarity:.0%} alike)" for candidate in found.nearest)
        raise ArchitectureError(
            f"{unnamed}, and no known one has its tensors; the nearest: {near}",
            "Give --arch with path/to/file.py:factory, or with one of these and the --arch-arg that it was built with.",
        )
    alike: dict[Preprocessing, list[str]] = {}
    for candidate in found.matches:
        alike.setdefault(candidate.preprocessing, []).append(candidate.name)
    groups = "; ".join(f"{', '.join(names)} ({preprocessing})" for preprocessing, names in alike.items())
    raise ArchitectureError(
        f"{unnamed}, and {len(found.matches)} have its tensors: {groups}",
        f"Give the one that was trained, such as --arch {found.matches[0].name}.",
    )


def digest_of(shapes: Shapes, class_dimensions: Iterable[ClassDimension]) -> str:
    """A digest of tensors' names and shapes without the sizes that follow the number of classes."""
    open_sizes = {(item.name, item.dimension) for item in class_dimensions}
    lines = (
        f"{name} {[None if (name, position) in open_sizes else size for position, size in enumerate(shape)]}"
        for name, shape in sorted(_lasting(shapes).items())
    )
    return hashlib.blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=8).hexdigest()


def sketch_of(shapes: Shapes) -> bytes:
    """A sketch of tensors' names and shapes, for `similarity`.

    This is one-permutation min-hashing (Li, Owen, Zhang, "One Permutation Hashing", NeurIPS 2012), one byte a bin.
    A name counts twice, alone and with its shape, so that a network of another width is nearer than another network.
    """
    least = [0xFFFFFF] * _SKETCH_BINS  # whose last byte marks an empty bin
    for name, shape in _lasting(shapes).items():
        for text in (name, f"{name} {shape}"):
            digest = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=4).digest()
            place = digest[0] % _SKETCH_BINS
            least[place] = min(least[place], int.from_bytes(digest[1:]))
    return bytes(value % 256 for value in least)


def similarity(first: bytes, second: bytes) -> float:
    """An estimate of the share of names and shapes that two sketches' tensors have in common."""
    pairs = [pair for pair in zip(first, second, strict=True) if pair != (_EMPTY_BIN, _EMPTY_BIN)]
    return sum(one == other for one, other in pairs) / max(len(pairs), 1)


def write_index(architectures: Iterable[KnownArchitecture], path: Path) -> None:
    """Write an index; the same architectures give the same bytes."""
    classifiers: dict[tuple[ClassDimension, ...], int] = {}
    preprocessings: dict[Preprocessing, int] = {}
    rows = [
        (
            item.name,
            classifiers.setdefault(item.class_dimensions, len(classifiers)),
            preprocessings.setdefault(item.preprocessing, len(preprocessings)),
            item.digest,
            base64.b64encode(item.sketch).decode(),
        )
        for item in sorted(architectures, key=lambda item: item.name)
    ]
    content = {
        "classifiers": [
            [(item.name, item.dimension, item.per_class, item.constant) for item in dimensions]
            for dimensions in classifiers
        ],
        "preprocessings": [asdict(item) for item in preprocessings],
        "architectures": rows,
    }
    path.write_bytes(lzma.compress(json.dumps(content, separators=(",", ":")).encode(), preset=9))


@functools.cache
def known_architectures() -> tuple[KnownArchitecture, ...]:
    """The index that comes with the package."""
    file = importlib.resources.files("sapcli.networks") / "data" / INDEX_NAME
    content = json.loads(lzma.decompress(file.read_bytes()))
    classifiers = [tuple(ClassDimension(*item) for item in items) for items in content["classifiers"]]
    preprocessings = [
        Preprocessing(**item | {key: tuple(item[key]) for key in ("input_size", "mean", "std")})
        for item in content["preprocessings"]
    ]
    return tuple(
        KnownArchitecture(
            name, classifiers[classifier], digest, base64.b64decode(sketch), preprocessings[preprocessing]
        )
        for name, classifier, preprocessing, digest, sketch in content["architectures"]
    )


def _views(checkpoint: Checkpoint) -> Iterator[dict[str, tuple[int, ...]]]:
    """The shapes of a checkpoint's weights by name, under each prefix that its names may have."""
    weights = {
        name: checkpoint.entries[entry].shape
        for name, entry in checkpoint.unwrapped_names.items()
        if not is_beside_network(name)
    }
    # safetensors' `save_model` leaves tied tensors out, and says in the metadata which name stands for them.
    left_out = {name: weights[kept] for name, kept in checkpoint.metadata.items() if kept in weights}
    weights = left_out | weights
    for prefix in candidate_prefixes(weights):
        if all(name.startswith(prefix) for name in weights):
            yield {name.removeprefix(prefix): shape for name, shape in weights.items()}


def _equal(shapes: Shapes) -> Iterator[Candidate]:
    digests: dict[tuple[ClassDimension, ...], str] = {}
    for known in known_architectures():
        dimensions = known.class_dimensions
        if dimensions not in digests:
            digests[dimensions] = digest_of(shapes, dimensions)
        if digests[dimensions] == known.digest:
            count = count_classes(dimensions, shapes)
            if count is not None:
                yield Candidate(known.name, count, known.preprocessing, 1.0)


def _most_similar(views: Iterable[Shapes]) -> tuple[Candidate, ...]:
    sketches = [sketch_of(view) for view in views]

    def likeness(known: KnownArchitecture) -> float:
        return max((similarity(sketch, known.sketch) for sketch in sketches), default=0.0)

    candidates = [Candidate(known.name, None, known.preprocessing, likeness(known)) for known in known_architectures()]
    return tuple(sorted(candidates, key=lambda candidate: -candidate.similarity)[:_NEAREST])


def _lasting(shapes: Shapes) -> Mapping[str, tuple[int, ...]]:
    """The shapes without BatchNorm's batch counters, which old files lack."""
    return {name: tuple(shape) for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
