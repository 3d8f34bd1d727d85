"""`sap suspects`: the training samples whose labels a repaired model contradicts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sapcli.commands.line.console import is_exact
from sapcli.commands.line.inputs import Inputs, introduce, tell_of_images
from sapcli.commands.line.next_step import same_inputs, tell_next
from sapcli.commands.line.options import OutputOptions
from sapcli.commands.line.output_check import check_outputs
from sapcli.commands.line.outputs import check_writable, destination_file, open_output, write_text
from sapcli.commands.line.suspects_options import SuspectsOptions
from sapcli.datasets.dataset import Dataset
from sapcli.errors import UsageError
from sapcli.machine.files import atomic_write
from sapcli.repairs.evidence.suspects import (
    Detection,
    Suspect,
    corrected_labels,
    link_corrected,
    measure_detection,
    rank_suspects,
    read_truth,
    render_labels,
    render_suspects,
)
from sapcli.repairs.evidence.weak_points import guessing
from sapcli.settings import LabelForm, SuspectsFormat


def suspects(inputs: Inputs, options: SuspectsOptions, output: OutputOptions) -> None:
    """`sap suspects`."""
    destination = destination_file(output, None)
    if options.html is not None:
        check_writable(options.html, output.force, "--html")
    correction = None if options.apply is None else _CorrectedLabels.of(options, output.force)
    terminal = inputs.terminal()
    session = inputs.session(terminal)
    dataset = session.training
    written = None if correction is None else correction.path
    outputs = [("-o", destination), ("--html", options.html), ("--apply-to", written), *inputs.writes()]
    if correction is not None and correction.form is LabelForm.LINKS:
        correction.check_outside(dataset.root)
        if dataset.contained:
            raise UsageError(f"the images of {dataset.root} lie inside of files", "use --apply csv instead of links")
    check_outputs(outputs, inputs.reads(session.checkpoint, truth=options.truth))
    truth = None if options.truth is None else read_truth(options.truth, dataset)
    introduce(session, dataset)
    if session.checkpoint.metadata.get("sap.repaired") != "true":
        terminal.warn(
            f"{session.checkpoint.source} is not marked as repaired, and a model that memorised its labels contradicts"
            " few of them; run `sap project` first"
        )
    outcomes = session.training_outcomes()
    tell_of_images(terminal, session.training_images)
    for point in guessing(outcomes.accuracy, len(dataset.classes)):
        terminal.warn(f"{session.checkpoint.source}: {point}")
    found = rank_suspects(dataset, outcomes, options.count, options.min_score)
    contradicted = int((~outcomes.correct).sum())
    listed = "" if len(found) == contradicted else f", {len(found):,} of them listed"
    terminal.note(f"{contradicted:,} of {len(outcomes):,} labels are contradicted{listed}")
    if options.null:
        with open_output(destination, output.force) as handle:
            handle.write(b"".join(os.fsencode(suspect.path) + b"\0" for suspect in found))
    else:
        exact = destination is not None or is_exact()
        text = render_suspects(found, options.format, exact=exact)
        write_text(
            destination, text, output.force, is_json=options.format in (SuspectsFormat.JSONL, SuspectsFormat.JSON)
        )
    if options.html is not None:
        from sapcli.reports.pages import contact_sheet

        page = contact_sheet(dataset.root, session.checkpoint.source, len(outcomes), found)
        with atomic_write(options.html, replace=output.force) as handle:
            handle.write(page.encode())
        terminal.note(f"contact sheet: {options.html}")
    if correction is not None:
        correction.write(dataset, found)
        terminal.note(f"corrected labels: {correction.path}")
    words = ("--html", "suspects.html") if options.html is None else ("--apply", "csv")
    if found and (options.html is None or correction is None):
        given = (inputs.checkpoint, inputs.data, *words)
        tell_next(terminal, "suspects", *given, options=same_inputs(inputs, repaired=True))
    if truth is not None:
        terminal.rows("against the truth", _detection_rows(measure_detection(dataset, outcomes, found, truth)))


@dataclass(frozen=True)
class _CorrectedLabels:
    """Where the labels go with the suggestions in the suspects' place."""

    form: LabelForm
    path: Path
    replace: bool

    @classmethod
    def of(cls, options: SuspectsOptions, force: bool) -> _CorrectedLabels:
        """What the options ask for, made sure of before the work begins."""
        assert options.apply is not None
        if options.apply is LabelForm.LINKS:
            return cls(options.apply, options.apply_to or Path("corrected"), force)
        path = options.apply_to or Path("corrected.csv")
        check_writable(path, force, "--apply-to")
        return cls(options.apply, path, force)

    def check_outside(self, data: Path) -> None:
        """Make sure that the links do not become images of the data folder."""
        if Path(os.path.realpath(self.path)).is_relative_to(os.path.realpath(data)):
            raise UsageError(f"{self.path} lies in the data folder {data}", "name another folder with --apply-to")

    def write(self, dataset: Dataset, found: tuple[Suspect, ...]) -> None:
        """Write them."""
        labels = corrected_labels(dataset, found)
        if self.form is LabelForm.LINKS:
            link_corrected(dataset, labels, self.path)
            return
        with atomic_write(self.path, replace=self.replace) as handle:
            handle.write(render_labels(labels).encode("utf-8", "surrogateescape"))


def _detection_rows(detection: Detection) -> list[tuple[str, str]]:
    return [
        ("wrong labels", f"{detection.wrong} of {detection.samples}"),
        ("precision", f"{detection.precision:.3f}"),
        ("recall", f"{detection.recall:.3f} ({detection.found} found)"),
        ("area under ROC", f"{detection.area:.4f}"),
    ]
