"""`sap project`: the whole run, from whichever artifacts are given, for one checkpoint or several."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sapcli.activations.bases import Bases
from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.commands.line import console
from sapcli.commands.line.inputs import (
    Inputs,
    TrustedSource,
    given_bases,
    introduce,
    tell_of_images,
)
from sapcli.commands.line.next_step import same_inputs, tell_next
from sapcli.commands.line.options import OutputOptions, SelectionOptions
from sapcli.commands.line.output_check import Reads, check_outputs
from sapcli.commands.line.outputs import (
    STDIO,
    about_output,
    check_summary,
    destination_checkpoint,
    one_stdin,
    one_stdout,
    report_forms,
    write_text,
)
from sapcli.commands.line.project_options import ProjectionOptions, RecordOptions, WritingOptions
from sapcli.errors import GateError, SapError, UsageError, unexpected
from sapcli.machine.files import atomic_write
from sapcli.repairs.correction import Correction
from sapcli.repairs.layer_plan import check_patterns
from sapcli.repairs.metadata import repair_metadata
from sapcli.repairs.pipeline import Repair, run_repair
from sapcli.repairs.session import Samples, Session
from sapcli.reports.summaries import append_summary, repair_rows, repair_summary
from sapcli.reports.what_else import what_else
from sapcli.settings import PlanFormat, ProjectionSettings, ReportForm, ResultFormat


@dataclass(frozen=True)
class Request:
    """What `sap project` is asked for.

    Attributes:
        selection: How trusted samples are chosen.
        trusted: Those that are given.
        projection: How the weights are changed.
        output: Where the corrected checkpoint goes.
        writing: In which form.
        record: What is written about the run.
        require_gain: The gain below which nothing is written, in points.
        dry_run: Whether to tell what would be done, and do nothing.
        format: How the result is written.
    """

    selection: SelectionOptions
    trusted: str | None
    projection: ProjectionOptions
    output: OutputOptions
    writing: WritingOptions
    record: RecordOptions
    require_gain: float | None = None
    dry_run: bool = False
    format: ResultFormat = ResultFormat.TEXT


def project(checkpoints: Sequence[str], inputs: Inputs, request: Request) -> None:
    """`sap project`; several checkpoints share one trusted set."""
    one_stdout(request.output, request.writing.result)
    for checkpoint in checkpoints:
        one_stdin(
            CHECKPOINT=checkpoint,
            trusted=request.trusted,
            bases=request.projection.bases,
            forget=request.projection.forget,
        )
    if len(checkpoints) > 1:
        _check_several(checkpoints, request)
    trust = TrustedSource(request.selection, request.trusted)
    terminal = inputs.terminal()
    written: list[Path] = []
    for checkpoint in checkpoints:
        others = [name for name in checkpoints if name != checkpoint]
        _project(replace(inputs, checkpoint=checkpoint), request, trust, terminal, others, written)


def _check_several(checkpoints: Sequence[str], request: Request) -> None:
    """Make sure that every one of several checkpoints has its own output."""
    for name, given in (
        ("--bases", request.projection.bases is not None),
        ("--report", bool(request.record.report)),
        ("- as CHECKPOINT", STDIO in checkpoints),
        ("-o -", request.output.output == STDIO),
    ):
        if given:
            raise UsageError(f"{name} serves one checkpoint only, not {len(checkpoints)}", "repair them one by one")
    folder = request.output.output
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"-o {folder} is no folder for {len(checkpoints)} checkpoints", "make the folder first")
    places = {(Path(folder or Path(name).parent), Path(name).stem) for name in checkpoints}
    if len(places) < len(checkpoints):
        hint = "repair them one by one" + ("" if folder is None else ", or leave out -o")
        raise UsageError("two of the checkpoints have the same file name", hint)


def _project(
    inputs: Inputs,
    request: Request,
    trust: TrustedSource,
    terminal: console.Terminal,
    others: Sequence[str],
    written: list[Path],
) -> None:
    """Repair one checkpoint, or one of several; the others are read too, and what was written for them is kept."""
    settings, record = request.projection.to_settings(), request.record
    session = inputs.session(terminal, request.selection.validation)
    checkpoint = session.checkpoint
    # A dry run writes nothing, so nothing is in its way.
    force = request.output.force or request.dry_run
    output = destination_checkpoint(
        checkpoint,
        replace(request.output, force=force),
        request.writing,
        inputs.model.weights,
        in_folder=bool(others),
    )
    shown = output.shown(checkpoint)
    report_files = report_forms(record.report or (), force)
    check_summary(record.summary)
    if request.require_gain is not None and session.validation is None:
        raise UsageError("--require-gain needs validation images to measure the gain on", "give them with --val DATA")
    session.check_data(test=bool(report_files))
    outputs = [("-o", file) for file in output.files(checkpoint)] + [("--summary", record.summary), *inputs.writes()]
    outputs += [("-o", path) for path in written] + [("--report", file) for file in record.report or ()]
    check_outputs(outputs, _reads(inputs, request, checkpoint, others))
    trust.check(session)
    forgotten = None
    if request.projection.forget is not None:
        forgotten = trust.given(session, request.projection.forget, forget=True)
    check_patterns(session.weight_names, settings.layers, settings.skip_layers)
    introduce(session, session.training)
    terminal.note(_announcement(session, request, settings, output.path))
    for remark in about_output(checkpoint, output.path):
        terminal.note(remark)
    if checkpoint.metadata.get("sap.repaired") == "true":
        terminal.warn(f"{checkpoint.source} was repaired before, with alpha {checkpoint.metadata.get('sap.alpha')}")
    if request.dry_run:
        # What only a plan needs is imported here: it takes a quarter of a second.
        from sapcli.commands.inspect import print_plan

        selects, captures = request.trusted is None, request.projection.bases is None
        count = min(request.selection.count, len(session.training.paths))
        if not selects:
            count = len(trust.samples(session).indices)
        form = PlanFormat.JSON if request.writing.result is ResultFormat.JSON else None
        if session.ranks.is_first:
            print_plan(session, settings, count, selects=selects, captures=captures, output_format=form)
        tell_next(terminal, "project", inputs.checkpoint, inputs.data, options=same_inputs(inputs))
        return

    bases, samples = _artifacts(session, request, settings, trust)
    forget = None
    if forgotten is not None:
        forget = session.bases(session.trusted_samples(forgotten))
    repair, correction = run_repair(session, settings, bases, samples, forget)
    for images in filter(None, (session.training_images, session.validation_images)):
        tell_of_images(terminal, images)
    rows = repair_rows(repair)
    _print_closing(terminal, repair, rows, inputs.run.verbose)
    alternative = what_else(repair, session.fitted)
    if alternative is not None:
        terminal.note(alternative)
    recording = _Recording(session, repair, correction, bases, samples, settings)
    gate = request.require_gain
    if gate is not None and not _reaches(repair, gate):
        recording.write(rows, record.summary, report_files, force=force)
        if request.writing.result is ResultFormat.JSON:
            recording.print_result(None, gate)
        found = "nothing beats the unchanged model" if repair.gain is None else f"it is {repair.gain.points:+.2f}"
        raise GateError(
            f"the gain on {repair.validation} validation images is below --require-gain {gate:g}: {found}",
            "no checkpoint was written; look at the data, or ask for less",
        )
    # The checkpoint first: whatever becomes of the records, the repair is not lost.
    metadata = repair_metadata(session, repair, correction, settings, bases, forget)
    alpha = repair.choice.alpha
    if session.ranks.is_first:
        output.write(
            session, lambda names: {} if alpha is None else correction.replacements(alpha, names), metadata, force=force
        )
    written += [] if shown is None else [shown]
    failure = None
    try:
        recording.write(rows, record.summary, report_files, force=force)
    except SapError as error:
        kept = "was written to stdout" if shown is None else f"is in {shown}"
        failure = SapError(f"{error.message}; the corrected checkpoint {kept}", error.hint)
        failure.__cause__ = error
    try:
        if request.writing.result is ResultFormat.JSON:
            recording.print_result(str(shown), gate)
        elif shown is not None and session.ranks.is_first:
            console.print_result(str(shown))
    finally:
        if failure is not None:
            raise failure
    if shown is not None and not others and not repair.changed and settings.alpha is None:
        validation = () if request.selection.validation is None else ("--val", request.selection.validation)
        tell_next(terminal, "polish", inputs.checkpoint, inputs.data, *validation, options=same_inputs(inputs))
    elif shown is not None and not others:
        words = (shown, inputs.data, "--baseline", inputs.checkpoint)
        tell_next(terminal, "eval", *words, options=same_inputs(inputs, repaired=True))


def _reads(inputs: Inputs, request: Request, checkpoint: Checkpoint, others: Sequence[str]) -> Reads:
    """What the command reads."""
    reads = inputs.reads(
        checkpoint,
        val=request.selection.validation,
        trusted=request.trusted,
        bases=request.projection.bases,
        forget=request.projection.forget,
    )
    for other in others:
        reads.add_checkpoint_named(other)
    return reads


def _announcement(session: Session, request: Request, settings: ProjectionSettings, destination: Path | None) -> str:
    """What will happen, in a line."""
    trusted = f"trust {request.selection.count:,} of {len(session.training.paths):,} training images"
    if request.trusted is not None:
        trusted = "trust the samples that are given"
    elif request.projection.bases is not None:
        trusted = "use the bases that are given"
    chosen_on = "the trusted samples" if session.validation is None else "the validation images"
    alpha = f"choose alpha on {chosen_on}" if settings.alpha is None else f"project with alpha {settings.alpha:g}"
    return f"plan: {trusted}, {alpha}, write {'stdout' if destination is None else destination}"


def _artifacts(
    session: Session, request: Request, settings: ProjectionSettings, trust: TrustedSource
) -> tuple[Bases, Samples | None]:
    """The bases, given or made, and the trusted samples where they are needed."""
    bases = samples = None
    if request.projection.bases is not None:
        bases = given_bases(request.projection.bases)
        session.check_bases(bases, request.projection.bases)
    if bases is None or request.trusted is not None or (settings.alpha is None and session.validation is None):
        samples = trust.samples(session)
    if bases is None:
        assert samples is not None
        bases = session.bases(samples)
    return bases, samples


@dataclass(frozen=True)
class _Recording:
    """What is written about a repair that was done."""

    session: Session
    repair: Repair
    correction: Correction
    bases: Bases
    samples: Samples | None
    settings: ProjectionSettings

    def write(
        self, rows: Sequence[tuple[str, str]], summary: Path | None, files: Mapping[Path, ReportForm], *, force: bool
    ) -> None:
        """Append the summary, and write the report in every form that is asked for.

        Raises:
            SapError: One of them could not be written; the others were, where they could be.
        """
        failed: list[SapError] = []
        with _collecting(failed, f"the summary {summary}"):
            if self.session.ranks.is_first:
                append_summary(summary, repair_summary(self.session.checkpoint.source, rows))
        if files:
            with _collecting(failed, "the report"):
                self._write_report(files, failed, force=force)
        if failed:
            raise SapError("; ".join(error.message for error in failed), failed[0].hint) from failed[0]

    def print_result(self, output: str | None, required_gain: float | None) -> None:
        """Write what was done to stdout, as JSON in one line; `output` is the file that was written."""
        if not self.session.ranks.is_first:
            return
        from sapcli.reports.documents import GateDocument, ProjectDocument

        session, gate = self.session, None
        if required_gain is not None:
            gate = GateDocument(required_gain=required_gain, met=_reaches(self.repair, required_gain))
        document = ProjectDocument.of(
            self.repair,
            checkpoint=session.checkpoint.source,
            output=output,
            importance=self.settings.importance.value,
            architecture=session.architecture.name,
            classes=session.architecture.num_classes,
            device=str(session.settings.device),
            input_digest=session.checkpoint.digest,
            gate=gate,
        )
        write_text(None, document.to_json(indent=None), is_json=True)

    def _write_report(self, files: Mapping[Path, ReportForm], failed: list[SapError], *, force: bool) -> None:
        """What only a report needs is imported and measured here."""
        from sapcli.reports.pages import render_report
        from sapcli.reports.repair_report import report_repair

        command = shlex.join(["sap", *sys.argv[1:]])
        report = report_repair(
            self.session, self.repair, self.correction, self.bases, self.samples, self.settings, command
        )
        if not self.session.ranks.is_first:
            return
        for file, form in files.items():
            with _collecting(failed, f"the report {file}"):
                content = render_report(report, form)
                with atomic_write(file, replace=force) as handle:
                    handle.write(content)
                self.session.progress.note(f"report: {file}")


@contextmanager
def _collecting(failed: list[SapError], what: str) -> Iterator[None]:
    """Keep an error for later, whatever it is: what is left to do is done first."""
    try:
        yield
    except SapError as error:
        failed.append(error)
    except Exception as error:
        failure = unexpected(error, f"{what} could not be made")
        failure.__cause__ = error
        failed.append(failure)


def _print_closing(terminal: console.Terminal, repair: Repair, rows: Sequence[tuple[str, str]], verbose: bool) -> None:
    """The closing summary, and what is weak about the repair."""
    terminal.rows("repair", rows)
    if repair.changed and repair.gain is not None and repair.gain.points < 0:
        terminal.warn(f"alpha {repair.choice.alpha:g} lowers the validation accuracy; --alpha auto would not")
    for point in repair.weak_points:
        terminal.warn(point)
    if verbose:
        for name, reason in repair.plan.skipped.items():
            terminal.note(f"  {name}: {reason}")


def _reaches(repair: Repair, points: float) -> bool:
    return repair.changed and repair.gain is not None and repair.gain.points >= points
