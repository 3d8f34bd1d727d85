"""What a repair would do and what it takes: `sap inspect`, and `sap project --dry-run`."""

from __future__ import annotations

from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.commands.line.console import Terminal
from sapcli.commands.line.inputs import note_settings
from sapcli.commands.line.next_step import DATA, same_model, tell_next
from sapcli.commands.line.options import ModelOptions, RunOptions
from sapcli.commands.line.outputs import write_text
from sapcli.machine.results import are_shown as results_are_shown
from sapcli.repairs.alpha_search import Evidence, usual_trials
from sapcli.repairs.evidence.estimate import Workload
from sapcli.repairs.evidence.inspection import Inspection, inspect_checkpoint, inspect_classifier, usual_workload
from sapcli.repairs.evidence.unfamiliar_views import images_compared
from sapcli.repairs.pipeline import batchnorm_indices
from sapcli.repairs.session import Session
from sapcli.reports.inspection_report import render_inspection
from sapcli.settings import PlanFormat, ProjectionSettings


def inspect(source: str, model: ModelOptions, run: RunOptions, output_format: PlanFormat | None) -> None:
    """`sap inspect`."""
    terminal = Terminal(run.quiet)
    note_settings(terminal, run.settings)
    settings = run.to_settings()
    workload = usual_workload(settings.batch_size)
    checkpoint = open_checkpoint(source, weights=model.weights)
    _print(inspect_checkpoint(checkpoint, model.to_source(), settings.device, workload), output_format)
    tell_next(terminal, "project", source, DATA, options=same_model(model, run.settings.names))


def _print(inspection: Inspection, output_format: PlanFormat | None) -> None:
    """A table on a terminal and JSON otherwise, where no format was asked for."""
    if output_format is None:
        output_format = PlanFormat.TABLE if results_are_shown() else PlanFormat.JSON
    write_text(None, render_inspection(inspection, output_format), is_json=output_format is PlanFormat.JSON)


def print_plan(
    session: Session,
    settings: ProjectionSettings,
    trusted: int,
    *,
    selects: bool,
    captures: bool,
    output_format: PlanFormat | None,
) -> None:
    """`sap project --dry-run`: what the run would do, without running it.

    Args:
        session: The checkpoint and the data.
        settings: How the weights are to be changed.
        trusted: The number of trusted samples.
        selects: Whether they are chosen first, which scores all training images.
        captures: Whether bases are made of them.
        output_format: How it is written; by where it goes where `None`.
    """
    workload = _workload(session, settings, trusted, selects=selects, captures=captures)
    _print(inspect_classifier(session.checkpoint, session.classifier, settings, workload), output_format)


def _workload(
    session: Session, settings: ProjectionSettings, trusted: int, *, selects: bool, captures: bool
) -> Workload:
    """What a repair runs, for an estimate; see `print_plan`."""
    validation = 0 if session.validation is None else len(session.validation.paths)
    evidence = Evidence.FIXED if settings.alpha is not None else Evidence.KNEE
    if settings.alpha is None and validation:
        evidence = Evidence.VALIDATION
    looks, trials = usual_trials(evidence, settings.importance.takes_fraction, validation)
    return Workload(
        scored=len(session.training.paths) if selects else 0,
        trusted=trusted,
        captured=captures,
        judged=trusted if evidence is Evidence.KNEE else validation,
        trials=trials,
        batchnorm=len(batchnorm_indices(session, settings)),
        batch_size=session.batch_size,
        looks=looks,
        all_rows=session.settings.all_rows,
        compared=images_compared(len(session.training.paths) - trusted) if evidence is Evidence.KNEE else 0,
    )
