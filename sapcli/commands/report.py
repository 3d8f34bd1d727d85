"""`sap report`: the report of a repair, rendered again from its JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from sapcli.commands.line.console import print_result
from sapcli.commands.line.options import OutputOptions
from sapcli.commands.line.output_check import Reads, check_outputs
from sapcli.commands.line.outputs import check_writable, destination_file, report_forms, write_text
from sapcli.errors import SapError
from sapcli.settings import ReportForm


def report(
    result: Path,
    form: ReportForm | None,
    output: OutputOptions,
    model_card: Path | None,
    context: typer.Context,
) -> None:
    """`sap report`; with a model card and no other output, the card alone is written."""
    from sapcli.reports.model_card import write_card
    from sapcli.reports.pages import render_report
    from sapcli.reports.schema import from_json

    destination = destination_file(output, None)
    if form is None and destination is not None:
        (form,) = report_forms([destination], output.force, "-o").values()
    reads = Reads()
    reads.add_file("the report that is read", result)
    reads.add_settings(context)
    if model_card is not None:
        # It is meant to be changed.
        check_writable(model_card, True, "--model-card")
    check_outputs([("-o", destination), ("--model-card", model_card)], reads)
    is_asked_for = model_card is None or output.output is not None or form is not None
    form = form or ReportForm.MARKDOWN
    read = from_json(result)
    if model_card is not None:
        with _rendering(result):
            write_card(model_card, read)
    if not is_asked_for:
        print_result(str(model_card))
        return
    with _rendering(result):
        content = render_report(read, form).decode()
    write_text(destination, content, output.force, is_json=form is ReportForm.JSON)


@contextmanager
def _rendering(result: Path) -> Iterator[None]:
    """Have what no page can show of a report be an error about it."""
    try:
        yield
    except (ValueError, ArithmeticError, LookupError, TypeError, RecursionError, RuntimeError) as error:
        raise SapError(
            f"{result} cannot be rendered: {type(error).__name__}: {error}",
            "make it again with `sap project --report FILE.json`",
        ) from error
