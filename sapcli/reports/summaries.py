"""Short reports: Markdown for the page of a CI job, rows of facts, a table for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sapcli.errors import SapError
from sapcli.machine.files import write_error
from sapcli.machine.reading import check_text
from sapcli.machine.results import place_of
from sapcli.machine.text import markdown_cell
from sapcli.repairs.alpha_search import KNEE, Evidence
from sapcli.repairs.pipeline import Repair
from sapcli.reports.evaluation_report import EvaluationReport


def repair_rows(repair: Repair) -> list[tuple[str, str]]:
    """What a repair did, as names and words."""
    choice, plan = repair.choice, repair.plan
    skipped = len(plan.skipped)
    rows = [("projected", f"{len(plan.projected)} weights" + (f", {skipped} left as they are" if skipped else ""))]
    if repair.trusted:
        rows.insert(0, ("trusted", f"{repair.trusted} samples"))
    why = {
        Evidence.FIXED: "as given",
        Evidence.VALIDATION: f"the best of {len(choice.trials)} on the validation images",
        Evidence.KNEE: f"the smallest that keeps {KNEE:.0%} of the trusted samples right",
    }[choice.evidence]
    if choice.alpha is None:
        rows = [("result", f"{_why_unchanged(repair)}: the weights are written as they were")]
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
    return rows


def _why_unchanged(repair: Repair) -> str:
    if repair.comparison is not None:
        return f"there is nothing to repair, as far as training images tell: {repair.comparison.words}"
    return "nothing clearly beats the unchanged model"


def repair_table(checkpoint: str, repair: Repair) -> str:
    """What a repair did, as a small table in HTML, for a notebook."""
    from sapcli.reports.pages import render

    return render("small.html.j2", checkpoint=checkpoint, rows=repair_rows(repair), weak_points=repair.weak_points)


def repair_summary(checkpoint: str, rows: Sequence[tuple[str, str]]) -> str:
    """What a repair did, as a table."""
    return _summary("project", checkpoint, rows)


def polish_summary(checkpoint: str, rows: Sequence[tuple[str, str]]) -> str:
    """What a polish did, as a table."""
    return _summary("polish", checkpoint, rows)


def _summary(command: str, checkpoint: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"### sap {command}: {markdown_cell(checkpoint)}", "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {markdown_cell(name)} | {markdown_cell(text)} |" for name, text in rows)]) + "\n\n"


def evaluation_summary(checkpoint: str, report: EvaluationReport) -> str:
    """The metrics of a checkpoint, beside those of the baseline where there is one."""
    metrics, baseline = report.metrics, report.baseline
    columns = [metrics] if baseline is None else [baseline, metrics]
    lines = [f"### sap eval: {markdown_cell(checkpoint)}", ""]
    lines += ["| | this |", "|---|---:|"] if baseline is None else ["| | baseline | this |", "|---|---:|---:|"]
    for name, texts in (
        ("top-1", [f"{column.top1:.2f}%" for column in columns]),
        ("top-5", [f"{column.top5:.2f}%" for column in columns]),
        ("loss", [f"{column.loss:.4f}" for column in columns]),
        ("images", [f"{column.images:,}" for column in columns]),
    ):
        lines.append(f"| {name} | {' | '.join(texts)} |")
    if report.gain is not None:
        gain = report.gain
        lines += ["", f"**{gain.points:+.2f} points**, 95% interval {gain.low:+.2f} to {gain.high:+.2f}"]
    return "\n".join(lines) + "\n\n"


def append_summary(file: Path | None, text: str) -> None:
    """Append to the file, where there is one.

    Raises:
        SapError: It cannot be written.
    """
    if file is None:
        return
    check_text(file)
    try:
        with place_of(file).open("a", encoding="utf-8", errors="replace") as handle:
            handle.write(text)
    except OSError as error:
        raise write_error(str(file), error, SapError) from error
