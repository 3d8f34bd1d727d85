"""`sap noise`: wrong labels made on purpose, for studies of label noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from sapcli.commands.line import console
from sapcli.commands.line.options import OutputOptions
from sapcli.commands.line.output_check import Reads, check_outputs
from sapcli.commands.line.outputs import check_writable, destination_file, write_text
from sapcli.datasets.dataset import Dataset, Role, open_dataset
from sapcli.datasets.folders import subfolders
from sapcli.datasets.labels.label_files import read_labels
from sapcli.datasets.labels.noise import confusions, noisy_labels
from sapcli.errors import DatasetError, UsageError
from sapcli.repairs.evidence.suspects import render_labels
from sapcli.reports.documents import NoiseDocument
from sapcli.settings import NoiseKind, ResultFormat


@dataclass(frozen=True)
class NoiseRequest:
    """Which noise, and where it goes.

    Attributes:
        kind: The kind of noise.
        rate: The share of the labels of each class that becomes wrong, in [0, 1].
        pairs: For asymmetric noise, `CLASS=TAKEN_FOR`.
        groups: For hierarchical noise, names of classes with commas between them.
        seed: For the choice of images and of labels.
        truth: Where the right labels go.
        labels: The label file that has the right ones, instead of the folders.
        split: The split of the data.
        format: How the result is told.
    """

    kind: NoiseKind
    rate: float
    pairs: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    seed: int = 0
    truth: Path | None = None
    labels: Path | None = None
    split: str | None = None
    format: ResultFormat = ResultFormat.TEXT


def noise(data: Path, request: NoiseRequest, output: OutputOptions, context: typer.Context) -> None:
    """`sap noise`."""
    pairs, groups = _pairs(request.pairs), [tuple(group.split(",")) for group in request.groups]
    for given, option, kind in ((pairs, "--pair", NoiseKind.ASYMMETRIC), (groups, "--group", NoiseKind.HIERARCHICAL)):
        if given and request.kind is not kind:
            raise UsageError(f"{option} is for --kind {kind}, and the kind is {request.kind}", f"leave {option} out")
    destination = destination_file(output, None)
    if destination is None and request.format is ResultFormat.JSON:
        raise UsageError("the labels and --format json cannot both go to stdout", "name a file with -o FILE")
    if request.truth is not None:
        check_writable(request.truth, output.force, "--truth")
    reads = Reads()
    reads.add_file("--labels", request.labels)
    reads.add_data(data)
    reads.add_settings(context)
    check_outputs([("-o", destination), ("--truth", request.truth)], reads)
    dataset = _opened(data, request)
    if len(dataset.classes) < 2:
        raise UsageError(f"{data}: labels of a single class cannot be wrong", "give a folder with more classes")
    taken_for = confusions(request.kind, dataset.classes, pairs, groups)
    right = np.asarray(dataset.labels)
    noisy = noisy_labels(right, dataset.classes, taken_for, request.rate, request.seed)
    write_text(destination, _rendered(dataset, noisy), output.force)
    if request.truth is not None:
        write_text(request.truth, _rendered(dataset, right), output.force)
    wrong = int((noisy != right).sum())
    words = f"{wrong:,} of {len(right):,} labels are wrong: {request.kind}, {request.rate:.0%}, {taken_for.words}"
    console.Terminal().note(f"{data}: {words}, seed {request.seed}")
    if request.format is ResultFormat.JSON:
        document = NoiseDocument(
            output=str(destination),
            truth=None if request.truth is None else str(request.truth),
            kind=request.kind.value,
            rate=request.rate,
            seed=request.seed,
            images=len(right),
            wrong=wrong,
            taken_for=taken_for.words,
        )
        write_text(None, document.to_json(), is_json=True)
    elif destination is not None:
        console.print_result(str(destination))


def _rendered(dataset: Dataset, labels: np.ndarray) -> str:
    return render_labels(
        {path: dataset.classes[label] for path, label in zip(dataset.paths, labels.tolist(), strict=True)}
    )


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, other = text.partition("=")
        if not equals:
            raise UsageError(f"--pair {text}: expected CLASS=TAKEN_FOR", "write it like --pair cat=dog")
        pairs.append((name, other))
    return pairs


def _opened(data: Path, request: NoiseRequest) -> Dataset:
    """The images, with as many classes as the data have: no model says how many there are."""
    counts = []
    file = request.labels if request.labels is not None else data if data.is_file() else None
    if file is not None:
        rows = read_labels(file).rows
        counts.append(len({row.label for row in rows if not row.is_unlabelled}))
    folders = subfolders(data) if data.is_dir() else ()
    counts += [len(folders), *(len(subfolders(data / folder)) for folder in folders)]
    failure: DatasetError | None = None
    for count in dict.fromkeys(count for count in counts if count):
        try:
            dataset = open_dataset(data, Role.LEARN, count, split=request.split, labels=request.labels)
        except DatasetError as error:
            failure = failure or error
        else:
            assert dataset is not None
            return dataset
    raise failure or DatasetError(f"{data}: there are no class folders", "give a folder of class folders, or --labels")
