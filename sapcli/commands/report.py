"""`sap report`: the report of a repair, rendered again from its JSON."""

from __future__ import annotations

from pathlib import Path

from sapcli.commands.line.options import OutputOptions
from sapcli.commands.line.output_check import Reads, check_outputs
from sapcli.commands.line.outputs import destination_file, report_forms, write_text
from sapcli.errors import SapError
from sapcli.settings import ReportForm


def report(result: Path, form: ReportForm | None, output: OutputOptions) -> None:
    """`sap report`."""
    from sapcli.reports.pages import render_report
    from sapcli.reports.schema import from_json

    destination = destination_file(output, None)
    if form is None and destination is not None:
        (form,) = report_forms([destination], output.force, "-o").values()
    reads = Reads()
    reads.add_file("the report that is read", result)
    check_outputs([("-o", destination)], reads)
    form = form or ReportForm.MARKDOWN
    read = from_json(result)
    try:
        content = render_report(read, form).decode()
    except (ValueError, ArithmeticError, LookupError, TypeError, RecursionError, RuntimeError) as error:
        raise SapError(
            f"{result} cannot be rendered: {type(error).__name__}: {error}",
            "make it again with `sap project --report FILE.json`",
        ) from error
    write_text(destination, content, output.force, is_json=form is ReportForm.JSON)
