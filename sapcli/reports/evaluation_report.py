"""What was found, rendered: for a terminal, for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sapcli.machine.text import printable
from sapcli.repairs.evidence.evaluation import Gain, Metrics
from sapcli.settings import OutputFormat


@dataclass(frozen=True)
class EvaluationReport:
    """A checkpoint's metrics, and where there is a baseline its metrics and the difference."""

    metrics: Metrics
    unreadable: tuple[str, ...]
    baseline: Metrics | None = None
    gain: Gain | None = None


def render_evaluation(report: EvaluationReport, output_format: OutputFormat) -> str:
    """The report as text that ends in a newline."""
    if output_format is OutputFormat.TABLE:
        return _table(report)
    if output_format is OutputFormat.CSV:
        return _csv(report)
    return json.dumps(_document(report), indent=2) + "\n"


def _summary(metrics: Metrics) -> dict[str, object]:
    """The numbers of one checkpoint, in the units of timm's scripts: percent, nats."""
    return {
        "top1": _rounded(metrics.top1),
        "top5": _rounded(metrics.top5),
        "loss": _rounded(metrics.loss),
        "ece": _rounded(metrics.ece),
        "images": metrics.images,
    }


def _document(report: EvaluationReport) -> dict[str, object]:
    document = _summary(report.metrics)
    document["classes"] = {
        entry.name: {"accuracy": _rounded(entry.accuracy), "images": entry.images} for entry in report.metrics.classes
    }
    document["unreadable"] = list(report.unreadable)
    if report.baseline is not None and report.gain is not None:
        document["baseline"] = _summary(report.baseline)
        document["gain"] = _rounded(report.gain.points)
        document["gain_interval"] = [_rounded(report.gain.low), _rounded(report.gain.high)]
    return document


def _csv(report: EvaluationReport) -> str:
    """A header and one row; the values of the baseline are called `baseline.top1` and so on."""
    columns = _summary(report.metrics)
    if report.baseline is not None and report.gain is not None:
        columns |= {f"baseline.{name}": value for name, value in _summary(report.baseline).items()}
        columns |= {
            "gain": _rounded(report.gain.points),
            "gain_interval.low": _rounded(report.gain.low),
            "gain_interval.high": _rounded(report.gain.high),
        }
    text = io.StringIO()
    writer = csv.DictWriter(text, columns.keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerow(columns)
    return text.getvalue()


def _table(report: EvaluationReport) -> str:
    table = Table(title_justify="left")
    table.add_column("")
    checkpoints = [report.metrics] if report.baseline is None else [report.baseline, report.metrics]
    for name in ("this",) if report.baseline is None else ("baseline", "this", "difference"):
        table.add_column(name, justify="right")

    def row(name: str, values: list[float | None], digits: int, unit: str = "") -> None:
        cells = ["-" if value is None else f"{value:.{digits}f}{unit}" for value in values]
        if len(values) == 2:
            first, second = values
            cells.append("-" if first is None or second is None else f"{second - first:+.{digits}f}")
        table.add_row(Text(printable(name)), *cells)

    row("top-1", [metrics.top1 for metrics in checkpoints], 2, "%")
    row("top-5", [metrics.top5 for metrics in checkpoints], 2, "%")
    row("loss", [metrics.loss for metrics in checkpoints], 4)
    row("calibration error", [metrics.ece for metrics in checkpoints], 4)
    row("images", [metrics.images for metrics in checkpoints], 0)
    table.add_section()
    accuracies = [{entry.name: entry.accuracy for entry in metrics.classes} for metrics in checkpoints]
    for name in accuracies[-1]:
        row(name, [of_class.get(name) for of_class in accuracies], 2, "%")
    text = io.StringIO()
    console = Console(file=text, highlight=False, width=None if len(checkpoints) else 80)
    console.print(table)
    if report.gain is not None:
        gain = report.gain
        console.print(f"gain {gain.points:+.2f} points, 95% interval [{gain.low:+.2f}, {gain.high:+.2f}]")
    return text.getvalue()


def _rounded(value: float | None) -> float | None:
    """Six digits after the point, more than any number of images resolves; `None` for what is not a number."""
    return None if value is None or math.isnan(value) else round(value, 6)
