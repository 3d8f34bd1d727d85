"""`sap eval`: a checkpoint on the images that it is judged on, and the difference to another one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sapcli.activations.scoring import Outcomes
from sapcli.commands.line import console
from sapcli.commands.line.inputs import Inputs, introduce, tell_of_images
from sapcli.commands.line.next_step import same_inputs, tell_next
from sapcli.commands.line.options import OutputOptions
from sapcli.commands.line.output_check import check_outputs
from sapcli.commands.line.outputs import check_summary, destination_file, one_stdin, write_text
from sapcli.datasets.contents import find_contents, from_text
from sapcli.errors import GateError
from sapcli.machine.results import are_shown as results_are_shown
from sapcli.repairs.evidence.evaluation import Metrics, measure, paired_gain
from sapcli.repairs.evidence.weak_points import guessing
from sapcli.repairs.metadata import TRUSTED_IMAGES
from sapcli.repairs.session import Session
from sapcli.reports.evaluation_report import EvaluationReport, render_evaluation
from sapcli.reports.summaries import append_summary, evaluation_summary
from sapcli.settings import OutputFormat


def evaluate(
    inputs: Inputs,
    baseline: str | None,
    min_accuracy: float | None,
    output_format: OutputFormat | None,
    output: OutputOptions,
    summary: Path | None = None,
) -> None:
    """`sap eval`."""
    check_summary(summary)
    one_stdin(CHECKPOINT=inputs.checkpoint, baseline=baseline)
    destination = destination_file(output, None)
    terminal = inputs.terminal()
    session = inputs.session(terminal)
    other = None
    if baseline is not None:
        # A class map that is suggested is that of the checkpoint itself.
        images = replace(inputs.images, suggest_class_map=None)
        other = replace(inputs.for_checkpoint(baseline), images=images).session(terminal)
    checkpoints = [session.checkpoint] if other is None else [session.checkpoint, other.checkpoint]
    check_outputs([("-o", destination), ("--summary", summary), *inputs.writes()], inputs.reads(*checkpoints))
    evaluation = _evaluate(session, terminal)
    reference = None
    if other is not None:
        other.like = session.architecture
        same = other.architecture.preprocessing == session.architecture.preprocessing
        reference = _evaluate(other, terminal, images_told=same)
        if str(other.architecture.preprocessing) != str(session.architecture.preprocessing):
            terminal.warn(
                "the two checkpoints see differently prepared images: what they differ in is not the repair alone"
            )
    gain = None if reference is None else paired_gain(reference.outcomes, evaluation.outcomes)
    if output_format is None:
        on_terminal = destination is None and results_are_shown()
        output_format = OutputFormat.TABLE if on_terminal else OutputFormat.JSON
    report = EvaluationReport(
        evaluation.metrics, tuple(evaluation.unreadable), None if reference is None else reference.metrics, gain
    )
    if session.ranks.is_first:
        is_json = output_format is OutputFormat.JSON
        write_text(destination, render_evaluation(report, output_format), output.force, is_json=is_json)
        append_summary(summary, evaluation_summary(inputs.checkpoint, report))
    if session.checkpoint.metadata.get("sap.repaired") == "true":
        words = (inputs.checkpoint, inputs.data, "--html", "suspects.html")
        tell_next(terminal, "suspects", *words, options=same_inputs(inputs, repaired=True))
    else:
        tell_next(terminal, "project", inputs.checkpoint, inputs.data, options=same_inputs(inputs))
    if min_accuracy is not None and not evaluation.metrics.top1 >= min_accuracy:
        raise GateError(
            f"top-1 accuracy is {evaluation.metrics.top1:.2f}, below --min-accuracy {min_accuracy:g}",
            "look at the checkpoint and the data, or ask for less",
        )


@dataclass(frozen=True)
class _Evaluation:
    """A checkpoint on the images that it is judged on."""

    outcomes: Outcomes
    metrics: Metrics
    unreadable: list[str]


def _evaluate(session: Session, terminal: console.Terminal, *, images_told: bool = False) -> _Evaluation:
    dataset = session.evaluation()
    introduce(session, dataset)
    images = session.images(dataset)
    where = dataset.where
    trusted = find_contents(dataset, from_text(session.checkpoint.metadata.get(TRUSTED_IMAGES, "")))
    if trusted:
        terminal.warn(
            f"{len(trusted)} of the {len(dataset.paths)} images on {where} are trusted samples that"
            f" {session.checkpoint.source} was repaired with: they flatter it"
        )
    outcomes = session.judge(images, f"evaluating {session.checkpoint.source} on {where}")
    if not images_told:
        tell_of_images(terminal, images)
    session.check_class_order(images, outcomes, stop=False)
    for point in guessing(outcomes.accuracy, len(dataset.classes)):
        terminal.warn(f"{session.checkpoint.source}: {point}")
    return _Evaluation(
        outcomes, measure(outcomes, dataset.classes), [dataset.paths[index] for index in sorted(images.unreadable)]
    )
