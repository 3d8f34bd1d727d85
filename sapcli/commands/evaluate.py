"""What each command does, between the options as typed and what is printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sapcli import console
from sapcli.bases import Bases, write_bases
from sapcli.cache import Cache
from sapcli.checkpoint import open_checkpoint
from sapcli.contents import find_contents, from_text
from sapcli.errors import CheckpointError, GateError, UsageError
from sapcli.evaluation import Metrics, measure, paired_gain
from sapcli.evidence import guessing
from sapcli.inputs import Inputs, Trust, given_bases, introduce, name_unreadable
from sapcli.options import OutputOptions, SelectionOptions
from sapcli.outputs import STDIO, check_appendable, destination_file, one_stdin, open_output
from sapcli.pipeline import TRUSTED_IMAGES
from sapcli.report import EvaluationReport, render_evaluation
from sapcli.scoring import Outcomes
from sapcli.session import Session
from sapcli.settings import OutputFormat
from sapcli.summaries import append_summary, evaluation_summary
from sapcli.verification import verify as check_claim


def select(inputs: Inputs, selection: SelectionOptions, output: OutputOptions) -> None:
    """`sap select`."""
    destination = destination_file(output, None)
    terminal = inputs.terminal()
    session = inputs.session(terminal, selection.validation)
    session.check_data()
    introduce(session, session.training)
    trusted = session.select(selection.to_settings())
    name_unreadable(terminal, session.training_images)
    with open_output(destination) as handle:
        handle.write(trusted.to_json_lines().encode("utf-8", "surrogateescape"))
    if destination is not None:
        console.print_result(str(destination))


def activations(inputs: Inputs, selection: SelectionOptions, trusted: str | None, output: OutputOptions) -> None:
    """`sap activations`."""
    one_stdin(CHECKPOINT=inputs.checkpoint, trusted=trusted)
    beside = Path() if inputs.checkpoint == STDIO else Path(inputs.checkpoint)
    default = (beside if beside.is_dir() else beside.parent) / "bases.safetensors"
    destination = destination_file(output, default)
    terminal = inputs.terminal()
    session = inputs.session(terminal, selection.validation)
    session.check_data()
    introduce(session, session.training)
    samples = Trust(selection, trusted).samples(session)
    bases = session.bases(samples)
    _say_coverage(terminal, bases, inputs.run.verbose)
    name_unreadable(terminal, samples.images)
    if destination is None:
        write_bases(bases, sys.stdout.buffer)
    else:
        write_bases(bases, destination)
        console.print_result(str(destination))


def evaluate(
    inputs: Inputs,
    baseline: str | None,
    min_accuracy: float | None,
    output_format: OutputFormat | None,
    output: OutputOptions,
    summary: Path | None = None,
) -> None:
    """`sap eval`."""
    check_appendable(summary)
    one_stdin(CHECKPOINT=inputs.checkpoint, baseline=baseline)
    destination = destination_file(output, None)
    terminal = inputs.terminal()
    session = inputs.session(terminal)
    evaluation = _evaluate(session, terminal)
    reference = None
    if baseline is not None:
        other = inputs.for_checkpoint(baseline).session(terminal)
        other.like = session.architecture
        reference = _evaluate(other, terminal)
        if str(other.architecture.preprocessing) != str(session.architecture.preprocessing):
            terminal.warn(
                "the two checkpoints see differently prepared images: what they differ in is not the repair alone"
            )
    gain = None if reference is None else paired_gain(reference.outcomes, evaluation.outcomes)
    if output_format is None:
        on_terminal = destination is None and sys.stdout.isatty()
        output_format = OutputFormat.TABLE if on_terminal else OutputFormat.JSON
    report = EvaluationReport(
        evaluation.metrics, tuple(evaluation.unreadable), None if reference is None else reference.metrics, gain
    )
    with open_output(destination) as handle:
        handle.write(render_evaluation(report, output_format).encode("utf-8", "surrogateescape"))
    append_summary(summary, evaluation_summary(inputs.checkpoint, report))
    if min_accuracy is not None and not evaluation.metrics.top1 >= min_accuracy:
        raise GateError(
            f"top-1 accuracy is {evaluation.metrics.top1:.2f}, below --min-accuracy {min_accuracy:g}",
            "look at the checkpoint and the data, or ask for less",
        )


def verify(source: str, original: str | None, bases: Sequence[str], quiet: bool) -> None:
    """`sap verify`."""
    if bases and original is None:
        raise UsageError("--bases needs the original weights to project", "name them with --input ORIGINAL")
    if [source, original, *bases].count(STDIO) > 1:
        raise UsageError("only one input can be read from stdin", "give files for the others")
    findings = check_claim(
        open_checkpoint(source),
        None if original is None else open_checkpoint(original),
        [given_bases(file) for file in bases],
    )
    wrong = [finding for finding in findings if not finding.holds]
    if not quiet:
        for finding in findings:
            console.print_result(f"{'yes' if finding.holds else 'NO '}  {console.printable(finding.text)}")
    if wrong:
        raise CheckpointError(
            f"{source} is not what its metadata says: it does not hold that"
            f" {'; '.join(finding.text for finding in wrong)}",
            wrong[0].hint,
        )


def cache_info(folder: Path | None) -> None:
    """`sap cache info`."""
    info = Cache(folder, console.Terminal()).info()
    console.print_result(f"{info.folder}: {info.entries} entries, {info.bytes / 2**20:.1f} MiB")


def cache_clear(folder: Path | None) -> None:
    """`sap cache clear`."""
    info = Cache(folder, console.Terminal()).clear()
    console.print_result(f"{info.folder}: {info.entries} entries removed, {info.bytes / 2**20:.1f} MiB")


@dataclass(frozen=True)
class _Evaluation:
    """A checkpoint on the images that it is judged on."""

    outcomes: Outcomes
    metrics: Metrics
    unreadable: list[str]


def _evaluate(session: Session, terminal: console.Terminal) -> _Evaluation:
    dataset = session.evaluation()
    introduce(session, dataset)
    images = session.images(dataset)
    where = dataset.root if dataset.split is None else dataset.root / dataset.split
    trusted = find_contents(dataset, from_text(session.checkpoint.metadata.get(TRUSTED_IMAGES, "")))
    if trusted:
        terminal.warn(
            f"{len(trusted)} of the {len(dataset.paths)} images on {where} are trusted samples that"
            f" {session.checkpoint.source} was repaired with: they flatter it"
        )
    outcomes = session.score(images, f"evaluating {session.checkpoint.source} on {where}")
    name_unreadable(terminal, images)
    for point in guessing(outcomes.accuracy, len(dataset.classes)):
        terminal.warn(f"{session.checkpoint.source}: {point}")
    return _Evaluation(
        outcomes, measure(outcomes, dataset.classes), [dataset.paths[index] for index in sorted(images.unreadable)]
    )


def _say_coverage(terminal: console.Terminal, bases: Bases, verbose: bool) -> None:
    """How many weights have bases, and with --verbose why the others have none."""
    total = len(bases.pieces) + len(bases.skipped)
    terminal.note(f"{len(bases.pieces)} of {total} weights of two or more dimensions multiply activations")
    if verbose:
        for name, reason in bases.skipped.items():
            terminal.note(f"  {name}: {reason}")
