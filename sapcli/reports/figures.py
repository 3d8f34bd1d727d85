"""The figures of a report, as SVG to stand in a page: its text is the page's, and so are its colours, light or dark."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

from sapcli.machine.text import printable
from sapcli.repairs.alpha_search import Evidence
from sapcli.reports.plotting import Axes, Figure, Rectangle, style
from sapcli.reports.schema import ClassChange, Confusion, LossHistogram, Search

# Matplotlib knows no CSS: it draws with these colours, and the page's variables take their place.
_INK, _SOFT, _LINE, _CARD = "#010101", "#020202", "#030303", "#040404"
_BEFORE, _AFTER, _TRUSTED = "#050505", "#060606", "#070707"
_VARIABLES = {
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _LINE: "var(--line)",
    _CARD: "var(--card)",
    _BEFORE: "var(--before)",
    _AFTER: "var(--after)",
    _TRUSTED: "var(--trusted)",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sap",
    # Names from files may hold dollar signs.
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "grid.color": _LINE,
    "axes.axisbelow": True,
}
# Inches; a page of a phone's width shows them at about their size.
_WIDTH = 5.2
_LONGEST_NAME = 22
# Beyond so many classes the numbers in a confusion matrix are too small to read.
_NUMBERED_CLASSES = 12


def alpha_figure(search: Search) -> str:
    """Score against alpha with 95% intervals, the choice and the unchanged model marked."""
    with _figure(2.9, "Score of every alpha that was tried") as (axes, text):
        if search.unchanged is not None:
            unchanged = search.unchanged
            axes.axhspan(unchanged.low, unchanged.high, color=_BEFORE, alpha=0.2, linewidth=0)
            axes.axhline(unchanged.value, color=_BEFORE, linewidth=1.5, linestyle=(0, (4, 3)), label="unchanged model")
        for attempt in search.attempts:
            chosen = attempt.alpha == search.alpha
            score = attempt.score
            axes.errorbar(
                [attempt.alpha],
                [score.value],
                yerr=[[max(score.value - score.low, 0)], [max(score.high - score.value, 0)]],
                fmt="o",
                markersize=8 if chosen else 4.5,
                fillstyle="none" if attempt.samples < search.samples else "full",
                color=_AFTER if chosen else _SOFT,
                elinewidth=2 if chosen else 1,
                label=f"alpha {attempt.alpha:g}, chosen" if chosen else None,
                zorder=3 if chosen else 2,
            )
        axes.plot(
            [attempt.alpha for attempt in search.attempts],
            [attempt.score.value for attempt in search.attempts],
            color=_SOFT,
            linewidth=1,
            alpha=0.5,
        )
        if search.log_scale:
            _logarithmic(axes)
        axes.set_xlabel("alpha" if search.log_scale else "fraction of the energy")
        kept = search.evidence is Evidence.KNEE
        axes.set_ylabel("trusted samples kept right, %" if kept else "validation accuracy, %")
        axes.grid(axis="y", linewidth=0.6)
        _legend(axes)
    return text.getvalue()


def class_figure(classes: Sequence[ClassChange]) -> str:
    """The accuracy of each class before and after, one line a class."""
    with _figure(0.8 + 0.27 * len(classes), "Accuracy of each class before and after") as (axes, text):
        rows = range(len(classes))
        before = [entry.before or 0.0 for entry in classes]
        after = [entry.after or 0.0 for entry in classes]
        axes.hlines(rows, before, after, color=_SOFT, linewidth=2, alpha=0.6)
        axes.scatter(before, rows, s=34, color=_BEFORE, zorder=3, label="before")
        axes.scatter(after, rows, s=46, color=_AFTER, zorder=4, label="after")
        axes.set_yticks(rows, [_name(entry.name) for entry in classes], color=_INK)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="both", linewidth=0.6)
        axes.set_xlabel("accuracy, %")
        _legend(axes)
    return text.getvalue()


def confusion_figure(confusion: Confusion, counts: Sequence[Sequence[int]], title: str) -> str:
    """One confusion matrix; a cell's shade is its part of the row."""
    rows, columns = len(confusion.labels), len(confusion.predictions)
    with _figure(4.6 * max(rows, 4) / max(columns, 4), f"Confusion matrix {title}", width=4.6) as (axes, text):
        numbered = columns <= _NUMBERED_CLASSES
        for row, line in enumerate(counts):
            total = max(sum(line), 1)
            for column, count in enumerate(line):
                share = count / total
                axes.add_patch(Rectangle((column, row), 0.94, 0.94, facecolor=_LINE, alpha=0.35, linewidth=0))
                if count:
                    axes.add_patch(Rectangle((column, row), 0.94, 0.94, facecolor=_AFTER, alpha=share, linewidth=0))
                if numbered and count:
                    axes.text(
                        column + 0.47,
                        row + 0.47,
                        str(count),
                        ha="center",
                        va="center",
                        fontsize=9.5,
                        color=_CARD if share > 0.55 else _INK,
                    )
        axes.set_xlim(0, columns)
        axes.set_ylim(rows, 0)
        ticks: dict[str, Any] = {"fontsize": 10 if numbered else 7.5, "color": _INK}
        axes.set_xticks(
            [column + 0.47 for column in range(columns)], [_name(name) for name in confusion.predictions], **ticks
        )
        axes.tick_params(axis="x", labelrotation=90)
        axes.set_yticks([row + 0.47 for row in range(rows)], [_name(name) for name in confusion.labels], **ticks)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
    return text.getvalue()


def loss_figure(losses: LossHistogram) -> str:
    """The training samples by loss: all, the trusted among them, and all again after the repair."""
    with _figure(2.9, "Training samples by loss") as (axes, text):
        left, right = losses.edges[:-1], losses.edges[1:]
        widths = [high - low for low, high in zip(left, right, strict=True)]
        axes.bar(left, losses.before, widths, align="edge", color=_BEFORE, alpha=0.55, label="all samples")
        axes.bar(left, losses.trusted, widths, align="edge", color=_TRUSTED, label="trusted")
        if losses.after is not None:
            axes.stairs(losses.after, losses.edges, color=_AFTER, linewidth=1.8, label="all, after the repair")
        _logarithmic(axes)
        axes.set_xlabel("cross-entropy with the given label, nats")
        axes.set_ylabel("samples")
        axes.grid(axis="y", linewidth=0.6)
        _legend(axes)
    return text.getvalue()


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")


def _name(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…"


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=10, handlelength=1.4)


@contextmanager
def _figure(height: float, description: str, width: float = _WIDTH) -> Iterator[tuple[Axes, io.StringIO]]:
    """Axes to draw on, and the text that holds the SVG when the context is left."""
    text = io.StringIO()
    with style(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), text
        drawn = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    text.write(svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))
