"""HTML pages and Markdown from templates. Everything that comes from files or users is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from sapcli.datasets.thumbnails import thumbnail
from sapcli.machine.text import markdown_cell, printable
from sapcli.repairs.evidence.suspects import Suspect
from sapcli.reports.schema import ClassChange, Picture, PolishReport, RepairReport, to_json
from sapcli.settings import ReportForm

_IMAGE_ADDRESS = re.compile(r"data:image/(jpeg|png);base64,[A-Za-z0-9+/]+=*")


def picture(root: Path, suspect: Suspect) -> Picture:
    """The suspect's picture, read from the data folder `root`."""
    return Picture(suspect.path, suspect.given, suspect.suggested, suspect.score, thumbnail(root / suspect.path))


def render(template: str, **values: object) -> str:
    """The template's text; names that are not UTF-8 show a replacement character."""
    text = _environment().get_template(template).render(**values)
    return text.encode("utf-8", "replace").decode()


def render_report(report: RepairReport | PolishReport, form: ReportForm) -> bytes:
    """The report in one of its forms."""
    if form is ReportForm.JSON:
        return to_json(report)
    if isinstance(report, PolishReport):
        return _render_polish(report, form).encode()
    return (render_html(report) if form is ReportForm.HTML else render_markdown(report)).encode()


def render_html(report: RepairReport) -> str:
    """The report as one page that needs nothing else."""
    from sapcli.reports import figures

    drawings: dict[str, str] = {"losses": figures.loss_figure(report.losses)}
    if report.search.attempts:
        drawings["alpha"] = figures.alpha_figure(report.search)
    if report.measurement is not None:
        confusion = report.measurement.confusion
        drawings["classes"] = figures.class_figure(_most_changed(report.measurement.classes))
        drawings["before"] = figures.confusion_figure(confusion, confusion.before, "before")
        drawings["after"] = figures.confusion_figure(confusion, confusion.after, "after")
    # The figures are made of escaped text already.
    return render("report.html.j2", report=report, figures={name: Markup(svg) for name, svg in drawings.items()})


def render_markdown(report: RepairReport) -> str:
    """The report as Markdown, short enough for the description of a pull request."""
    classes = () if report.measurement is None else _most_changed(report.measurement.classes, shown=10)
    return render("report.md.j2", report=report, classes=classes)


def _render_polish(report: PolishReport, form: ReportForm) -> str:
    """The report of a polish as a page, or as Markdown."""
    measured = () if report.measurement is None else report.measurement.classes
    if form is not ReportForm.HTML:
        return render("polish.md.j2", report=report, classes=_most_changed(measured, shown=10))
    from sapcli.reports import figures

    drawings = {"losses": figures.loss_figure(report.losses)}
    if measured:
        drawings["classes"] = figures.class_figure(_most_changed(measured))
    # The figures are made of escaped text already.
    return render("polish.html.j2", report=report, figures={name: Markup(svg) for name, svg in drawings.items()})


def _most_changed(classes: Sequence[ClassChange], shown: int = 30) -> list[ClassChange]:
    """The classes whose accuracy changed most, in the order of the model's outputs; all where they are few."""

    def change(entry: ClassChange) -> float:
        return 0.0 if entry.before is None or entry.after is None else abs(entry.after - entry.before)

    chosen = {id(entry) for entry in sorted(classes, key=change, reverse=True)[:shown]}
    return [entry for entry in classes if id(entry) in chosen]


def contact_sheet(root: Path, model: str, samples: int, suspects: Sequence[Suspect], shown: int = 200) -> str:
    """A page with the pictures of the first `shown` suspects.

    Args:
        root: The data folder.
        model: The checkpoint's name.
        samples: How many samples there are in all.
        suspects: The most suspicious first.
        shown: How many to show; more make the page heavy.
    """
    pictures = [picture(root, suspect) for suspect in suspects[:shown]]
    return render(
        "suspects.html.j2", data=str(root), model=model, samples=samples, total=len(suspects), pictures=pictures
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sapcli.reports"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "points": _points,
        "sparkline": _sparkline,
        "cell": markdown_cell,
        "printable": printable,
        "image_address": _image_address,
    }
    return environment


def _points(value: float) -> str:
    return f"{value:+.2f}"


def _sparkline(shares: Sequence[float]) -> str:
    """The points of a line over a box of 100 by 28, its vertical axis from 0 to 1."""
    step = 100 / max(len(shares) - 1, 1)
    return " ".join(f"{position * step:.1f},{27 - 26 * share:.1f}" for position, share in enumerate(shares))


def _image_address(address: str | None) -> str | None:
    """`address` where it is that of an image held in the page: a report that was read from a file may say anything."""
    return address if address is not None and _IMAGE_ADDRESS.fullmatch(address) else None
