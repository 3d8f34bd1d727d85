"""`sap polish`: a few epochs of training on the noisy data, for who has no training code."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sapcli.commands.line import console
from sapcli.commands.line.inputs import Inputs, introduce, tell_of_images
from sapcli.commands.line.next_step import same_inputs, tell_next
from sapcli.commands.line.options import OutputOptions
from sapcli.commands.line.output_check import check_outputs
from sapcli.commands.line.outputs import (
    about_output,
    check_summary,
    destination_checkpoint,
    one_stdout,
    report_forms,
    write_text,
)
from sapcli.commands.line.polish_options import PolishOptions
from sapcli.commands.line.project_options import RecordOptions, WritingOptions
from sapcli.errors import GateError, SapError, UsageError
from sapcli.machine.files import atomic_write
from sapcli.polishing.judging import Result
from sapcli.polishing.metadata import polish_metadata
from sapcli.polishing.pipeline import Polish, check_polish, run_polish
from sapcli.repairs.session import Session
from sapcli.reports.summaries import append_summary, polish_summary
from sapcli.settings import PolishSettings, ReportForm, ResultFormat

_MARK = "polished"
# Of cuBLAS, the same sums every time; read once, when it is first used.
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@dataclass(frozen=True)
class PolishRequest:
    """What `sap polish` is asked for.

    Attributes:
        options: How the model is trained on.
        output: Where the result goes.
        writing: In which form.
        record: What is written about the run.
        require_gain: The gain below which nothing is written, in points.
    """

    options: PolishOptions
    output: OutputOptions
    writing: WritingOptions
    record: RecordOptions
    require_gain: float | None = None


def polish(inputs: Inputs, request: PolishRequest) -> None:
    """`sap polish`; of several processes, the first speaks and writes."""
    one_stdout(request.output, request.writing.result)
    os.environ.setdefault(*_WORKSPACE)
    settings = request.options.to_settings()
    terminal = inputs.terminal()
    session = inputs.session(terminal, request.options.validation)
    checkpoint = session.checkpoint
    output = destination_checkpoint(checkpoint, request.output, request.writing, inputs.model.weights, mark=_MARK)
    report_files = report_forms(request.record.report or (), request.output.force)
    check_summary(request.record.summary)
    if request.require_gain is not None and session.validation is None:
        raise UsageError("--require-gain needs validation images to measure the gain on", "give them with --val DATA")
    session.check_data(test=bool(report_files))
    shown = output.shown(checkpoint)
    outputs: list[tuple[str, Path | None]] = [("-o", file) for file in output.files(checkpoint)]
    outputs += [("--summary", request.record.summary), *inputs.writes()]
    outputs += [("--report", file) for file in report_files]
    check_outputs(outputs, inputs.reads(checkpoint, val=request.options.validation))
    check_polish(session, settings)
    introduce(session, session.training)
    terminal.note(_announcement(session, settings, output.path))
    for remark in about_output(checkpoint, output.path):
        terminal.note(remark)
    done = run_polish(session, settings)
    session.ensure_order_checked()
    for images in filter(None, (session.training_images, session.validation_images)):
        tell_of_images(terminal, images)
    rows = polish_rows(done)
    terminal.rows("polish", rows)
    for point in done.weak_points:
        terminal.warn(point)
    gate = request.require_gain
    if gate is not None and not _reaches(done, gate):
        _record(session, done, rows, request, report_files)
        if request.writing.result is ResultFormat.JSON:
            _print_document(session, done, None, gate)
        found = (
            "the model stays as it was" if done.gain is None or not done.changed else f"it is {done.gain.points:+.2f}"
        )
        raise GateError(
            f"the gain on {done.validation} validation images is below --require-gain {gate:g}: {found}",
            "no checkpoint was written; look at the data, or ask for less",
        )
    # The checkpoint first: whatever becomes of the records, the work is not lost.
    if session.ranks.is_first:
        output.write(session, done.replacements, polish_metadata(session, done), force=request.output.force)
    failure = None
    try:
        _record(session, done, rows, request, report_files)
    except SapError as error:
        kept = "was written to stdout" if shown is None else f"is in {shown}"
        failure = SapError(f"{error.message}; the polished checkpoint {kept}", error.hint)
        failure.__cause__ = error
    try:
        if request.writing.result is ResultFormat.JSON:
            _print_document(session, done, str(shown), gate)
        elif shown is not None and session.ranks.is_first:
            console.print_result(str(shown))
    finally:
        if failure is not None:
            raise failure
    if shown is not None:
        words = (shown, inputs.data, "--baseline", inputs.checkpoint)
        tell_next(terminal, "eval", *words, options=same_inputs(inputs, repaired=True))


def _print_document(session: Session, done: Polish, output: str | None, required_gain: float | None) -> None:
    """Write what was done to stdout, as JSON; `output` is the file that was written."""
    if not session.ranks.is_first:
        return
    from sapcli.reports.documents import GainDocument, GateDocument, PolishDocument, ScoresDocument

    gate = None
    if required_gain is not None:
        gate = GateDocument(required_gain=required_gain, met=_reaches(done, required_gain))
    document = PolishDocument(
        checkpoint=session.checkpoint.source,
        output=output,
        changed=done.changed,
        result=str(done.judgement.result),
        reason=done.judgement.reason,
        repaired=done.repaired,
        alpha=done.alpha,
        epochs=len(done.course.epochs),
        steps=done.course.steps,
        restarts=done.course.restarts,
        trained=done.trained,
        held_out=done.held_out,
        validation_images=done.validation,
        recipe=str(done.recipe),
        augmentation=done.augmentation,
        before=None if done.before is None else ScoresDocument.of(done.before),
        after=None if done.after is None else ScoresDocument.of(done.after),
        gain=None if done.gain is None else GainDocument.of(done.gain),
        gate=gate,
        weak_points=tuple(done.weak_points),
        input_digest=session.checkpoint.digest,
    )
    write_text(None, document.to_json(), is_json=True)


def _record(
    session: Session,
    done: Polish,
    rows: Sequence[tuple[str, str]],
    request: PolishRequest,
    files: Mapping[Path, ReportForm],
) -> None:
    """Append the summary, and write the report in every form that is asked for."""
    if session.ranks.is_first:
        append_summary(request.record.summary, polish_summary(session.checkpoint.source, rows))
    if not files:
        return
    # What only a report needs is imported and measured here.
    from sapcli.reports.pages import render_report
    from sapcli.reports.polish_report import report_polish

    report = report_polish(session, done, dict(rows), shlex.join(["sap", *sys.argv[1:]]))
    if not session.ranks.is_first:
        return
    for file, form in files.items():
        content = render_report(report, form)
        with atomic_write(file, replace=request.output.force) as handle:
            handle.write(content)
        session.progress.note(f"report: {file}")


def _announcement(session: Session, settings: PolishSettings, destination: Path | None) -> str:
    """What will happen, in a line."""
    start = "repair the model, " if settings.repair_first else ""
    labels = "labels as they are" if settings.labels_as_given else "labels blended with the model's own answers"
    judge = "keep what is best on the validation images" if session.validation else "hold some images out"
    return (
        f"plan: {start}train it on {len(session.training.paths):,} images with {labels}, {judge}, write"
        f" {'stdout' if destination is None else destination}"
    )


def polish_rows(done: Polish) -> Sequence[tuple[str, str]]:
    """What a polish did, as names and words."""
    course = done.course
    start = "the model as it was given"
    if done.repaired:
        start = "the repaired model" + ("" if done.alpha is None else f", alpha {done.alpha:g}")
    restarts = f", after {course.restarts} runs at a higher one" if course.restarts else ""
    rows = [
        ("start", start),
        ("trained", f"{len(course.epochs)} epochs, {course.steps:,} steps on {done.trained:,} images"),
        ("recipe", f"{done.recipe}" + (f"; in the end at {course.learning_rate:.3g}{restarts}" if restarts else "")),
        ("augmented", done.augmentation),
        ("result", f"{done.judgement.result}: {done.judgement.reason}"),
    ]
    if done.before is not None:
        rows.append(("before", f"{done.before.top1:.2f}% of the validation labels"))
    if done.after is not None and done.gain is not None and done.judgement.result is not Result.UNCHANGED:
        gain = done.gain
        rows.append(("after", f"{done.after.top1:.2f}%, {gain.points:+.2f} points [{gain.low:+.2f}, {gain.high:+.2f}]"))
    return rows


def _reaches(done: Polish, points: float) -> bool:
    return done.changed and done.gain is not None and done.gain.points >= points
