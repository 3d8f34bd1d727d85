"""What each command does, between the options as typed and what is printed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sapcli import console, saving
from sapcli.bases import Bases, read_bases, write_bases
from sapcli.cache import Cache
from sapcli.checkpoint import open_checkpoint
from sapcli.contents import find_contents, from_text
from sapcli.errors import CheckpointError, DatasetError, GateError, UsageError
from sapcli.evaluation import Metrics, measure, paired_gain
from sapcli.files import atomic_write, temporary_copy
from sapcli.images import Images
from sapcli.inspection import Inspection, inspect_checkpoint, inspect_classifier, usual_workload
from sapcli.inspection_report import render_inspection
from sapcli.options import DataOptions, ModelOptions, OutputOptions, ProjectionOptions, RunOptions, SelectionOptions
from sapcli.outputs import STDIO, destination_checkpoint, destination_file, one_stdin, open_output, report_forms
from sapcli.pipeline import TRUSTED_IMAGES, Repair, Samples, Session
from sapcli.report import EvaluationReport, render_evaluation
from sapcli.scoring import Outcomes
from sapcli.search import KNEE, Evidence
from sapcli.selection import TrustedSet, parse_trusted
from sapcli.settings import OutputFormat, PlanFormat
from sapcli.verification import verify as check_claim


@dataclass(frozen=True)
class Inputs:
    """The arguments and options that every command on a checkpoint and a data folder has."""

    checkpoint: str
    data: Path
    model: ModelOptions
    images: DataOptions
    run: RunOptions

    def session(self, terminal: console.Terminal, validation: Path | None = None) -> Session:
        """The session that the inputs ask for; opens the checkpoint."""
        settings = self.run.to_settings(self.images.strict_images)
        return Session(
            open_checkpoint(self.checkpoint),
            self.images.to_source(self.data, validation),
            settings,
            terminal,
            Cache(self.run.cache_dir, terminal),
            self.model.to_source(),
        )


def introduce(session: Session) -> None:
    """Say what the checkpoint is and how it runs.

    Called once all has been checked that can be before an image is read, so that an error about it stands alone.
    """
    architecture = session.architecture
    note = session.progress.note
    note(f"model: {architecture.name} ({architecture.source}), {architecture.num_classes} classes")
    note(f"preprocessing: {architecture.preprocessing} ({architecture.preprocessing.source})")
    note(f"device: {session.settings.device}")


def select(inputs: Inputs, selection: SelectionOptions, output: OutputOptions) -> None:
    """`sap select`."""
    destination = destination_file(output, None)
    terminal = console.Terminal(inputs.run.quiet)
    session = inputs.session(terminal, selection.validation)
    session.check_data()
    introduce(session)
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
    terminal = console.Terminal(inputs.run.quiet)
    session = inputs.session(terminal, selection.validation)
    session.check_data()
    introduce(session)
    samples = _trusted_samples(session, selection, trusted)
    bases = session.bases(samples)
    _say_coverage(terminal, bases, inputs.run.verbose)
    name_unreadable(terminal, samples.images)
    if destination is None:
        write_bases(bases, sys.stdout.buffer)
    else:
        write_bases(bases, destination)
        console.print_result(str(destination))


def project(
    inputs: Inputs,
    selection: SelectionOptions,
    trusted: str | None,
    projection: ProjectionOptions,
    require_gain: float | None,
    output: OutputOptions,
    *,
    dry_run: bool = False,
    reports: Sequence[Path] = (),
) -> None:
    """`sap project`."""
    one_stdin(CHECKPOINT=inputs.checkpoint, trusted=trusted, bases=projection.bases, forget=projection.forget)
    settings = projection.to_settings()
    terminal = console.Terminal(inputs.run.quiet)
    session = inputs.session(terminal, selection.validation)
    checkpoint = session.checkpoint
    destination = destination_checkpoint(checkpoint, output)
    report_files = report_forms(reports, output.force)
    if require_gain is not None and session.validation is None:
        raise UsageError("--require-gain needs validation images to measure the gain on", "give them with --val DIR")
    session.check_data(test=bool(report_files))
    introduce(session)
    if checkpoint.metadata.get("sap.repaired") == "true":
        terminal.warn(f"{checkpoint.source} was repaired before, with alpha {checkpoint.metadata.get('sap.alpha')}")
    if dry_run:
        _plan(session, selection, trusted, projection)
        return

    bases = samples = None
    if projection.bases is not None:
        bases = _given_bases(projection.bases)
        session.check_bases(bases, projection.bases)
    if bases is None or trusted is not None or (settings.alpha is None and session.validation is None):
        samples = _trusted_samples(session, selection, trusted)
    if bases is None:
        assert samples is not None
        bases = session.bases(samples)
    forget = None
    if projection.forget is not None:
        forget = session.bases(session.trusted_samples(_given_trusted(session, projection.forget)))
    repair, correction = session.repair(settings, bases, samples, forget)
    name_unreadable(terminal, session.training_images)
    _say_repair(terminal, repair, inputs.run.verbose)
    if report_files:
        from sapcli.pages import render_report
        from sapcli.reporting import report_repair

        command = shlex.join(["sap", *sys.argv[1:]])
        report = report_repair(session, repair, correction, bases, samples, settings, command)
        for file, form in report_files.items():
            with atomic_write(file) as handle:
                handle.write(render_report(report, form))
            terminal.note(f"report: {file}")
    if require_gain is not None and not _reaches(repair, require_gain):
        found = "nothing beats the unchanged model" if repair.gain is None else f"it is {repair.gain.points:+.2f}"
        raise GateError(
            f"the gain on {repair.validation} validation images is below --require-gain {require_gain:g}: {found}",
            "nothing was written; look at the data, or ask for less",
        )
    replacements = correction.replacements(repair.choice.alpha) if repair.choice.alpha is not None else {}
    metadata = session.metadata(repair, correction, settings, bases, forget)
    if destination is None:
        saving.write_checkpoint(checkpoint, sys.stdout.buffer, replacements, metadata)
    else:
        saving.write_checkpoint(checkpoint, destination, replacements, metadata)
        console.print_result(str(saving.output_files(checkpoint, destination)[-1]))


def _plan(session: Session, selection: SelectionOptions, trusted: str | None, projection: ProjectionOptions) -> None:
    """`sap project --dry-run`: what the run would do, without running it."""
    count = min(selection.count, len(session.training.paths))
    if trusted is not None:
        count = len(_trusted_samples(session, selection, trusted).indices)
    settings = projection.to_settings()
    workload = session.workload(settings, count, selects=trusted is None, captures=projection.bases is None)
    inspection = inspect_classifier(session.checkpoint, session.classifier, settings, workload)
    _print_inspection(inspection, None)


def inspect(source: str, model: ModelOptions, run: RunOptions, output_format: PlanFormat | None) -> None:
    """`sap inspect`."""
    settings = run.to_settings(strict_images=False)
    workload = usual_workload(settings.batch_size)
    _print_inspection(
        inspect_checkpoint(open_checkpoint(source), model.to_source(), settings.device, workload), output_format
    )


def _print_inspection(inspection: Inspection, output_format: PlanFormat | None) -> None:
    """A table on a terminal and JSON otherwise, where no format was asked for."""
    if output_format is None:
        output_format = PlanFormat.TABLE if sys.stdout.isatty() else PlanFormat.JSON
    with open_output(None) as handle:
        handle.write(render_inspection(inspection, output_format).encode("utf-8", "surrogateescape"))


def evaluate(
    inputs: Inputs,
    baseline: str | None,
    min_accuracy: float | None,
    output_format: OutputFormat | None,
    output: OutputOptions,
) -> None:
    """`sap eval`."""
    one_stdin(CHECKPOINT=inputs.checkpoint, baseline=baseline)
    destination = destination_file(output, None)
    terminal = console.Terminal(inputs.run.quiet)
    evaluation = _evaluate(inputs, terminal)
    reference = None if baseline is None else _evaluate(replace(inputs, checkpoint=baseline), terminal)
    gain = None if reference is None else paired_gain(reference.outcomes, evaluation.outcomes)
    if output_format is None:
        on_terminal = destination is None and sys.stdout.isatty()
        output_format = OutputFormat.TABLE if on_terminal else OutputFormat.JSON
    report = EvaluationReport(
        evaluation.metrics, tuple(evaluation.unreadable), None if reference is None else reference.metrics, gain
    )
    with open_output(destination) as handle:
        handle.write(render_evaluation(report, output_format).encode("utf-8", "surrogateescape"))
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
        [_given_bases(file) for file in bases],
    )
    wrong = [finding.text for finding in findings if not finding.holds]
    if not quiet:
        for finding in findings:
            console.print_result(f"{'yes' if finding.holds else 'NO '}  {console.printable(finding.text)}")
    if wrong:
        raise CheckpointError(
            f"{source} is not what its metadata says: it does not hold that {'; '.join(wrong)}",
            "do not use it; repair the original again",
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


def _evaluate(inputs: Inputs, terminal: console.Terminal) -> _Evaluation:
    session = inputs.session(terminal)
    dataset = session.evaluation()
    introduce(session)
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
    return _Evaluation(
        outcomes, measure(outcomes, dataset.classes), [dataset.paths[index] for index in sorted(images.unreadable)]
    )


def _trusted_samples(session: Session, selection: SelectionOptions, trusted: str | None) -> Samples:
    """The trusted samples: given as a folder, as a list, or selected."""
    if trusted is not None and trusted != STDIO and Path(trusted).is_dir():
        return session.folder_samples(Path(trusted))
    chosen = session.select(selection.to_settings()) if trusted is None else _given_trusted(session, trusted)
    return session.trusted_samples(chosen)


def _given_trusted(session: Session, source: str) -> TrustedSet:
    """The list of samples in a file or on stdin."""
    name = "stdin" if source == STDIO else source
    try:
        content = sys.stdin.buffer.read() if source == STDIO else Path(source).read_bytes()
    except OSError as error:
        raise DatasetError(f"{source} cannot be read: {error.strerror}", "name a list that exists") from error
    # Paths are bytes that need not be UTF-8; they are looked up as the file system gives them.
    return parse_trusted(content.decode("utf-8", "surrogateescape").split("\n"), name, session.training)


def _given_bases(source: str) -> Bases:
    if source != STDIO:
        return read_bases(Path(source))
    with temporary_copy(source) as handle:
        return read_bases(Path(handle.name), "stdin")


def _reaches(repair: Repair, points: float) -> bool:
    return repair.changed and repair.gain is not None and repair.gain.points >= points


def name_unreadable(terminal: console.Terminal, images: Images) -> None:
    """Name the images that were left out."""
    for index, reason in sorted(images.unreadable.items()):
        terminal.warn(f"{images.dataset.paths[index]} is left out: {reason}")


def _say_coverage(terminal: console.Terminal, bases: Bases, verbose: bool) -> None:
    """How many weights have bases, and with --verbose why the others have none."""
    total = len(bases.pieces) + len(bases.skipped)
    terminal.note(f"{len(bases.pieces)} of {total} weights of two or more dimensions multiply activations")
    if verbose:
        for name, reason in bases.skipped.items():
            terminal.note(f"  {name}: {reason}")


def _say_repair(terminal: console.Terminal, repair: Repair, verbose: bool) -> None:
    """The closing summary."""
    choice, plan = repair.choice, repair.plan
    skipped = len(plan.skipped)
    rows = [("projected", f"{len(plan.projected)} weights" + (f", {skipped} left as they are" if skipped else ""))]
    if repair.trusted:
        rows.insert(0, ("trusted", f"{repair.trusted} samples"))
    why = {
        Evidence.FIXED: "as given",
        Evidence.VALIDATION: f"the best of {len(choice.trials)} on {repair.validation} validation images",
        Evidence.KNEE: f"the smallest that keeps {KNEE:.0%} of the trusted samples right",
    }[choice.evidence]
    if choice.alpha is None:
        rows = [("result", "nothing beats the unchanged model: the weights are written as they were")]
    else:
        rows.append(("alpha", f"{choice.alpha:g}, {why}"))
        if repair.batchnorm_images:
            rows.append(("BatchNorm", f"re-estimated on {repair.batchnorm_images} unlabeled training images"))
    if repair.before is not None:
        rows.append(("before", f"{repair.before.top1:.2f}% of the validation labels"))
    if repair.after is not None and repair.gain is not None and choice.alpha is not None:
        gain = repair.gain
        rows.append(
            ("after", f"{repair.after.top1:.2f}%, {gain.points:+.2f} points [{gain.low:+.2f}, {gain.high:+.2f}]")
        )
        if gain.points < 0:
            terminal.warn(f"alpha {choice.alpha:g} lowers the validation accuracy; --alpha auto would not")
    terminal.rows("repair", rows)
    for point in repair.weak_points:
        terminal.warn(point)
    if verbose:
        for name, reason in plan.skipped.items():
            terminal.note(f"  {name}: {reason}")
