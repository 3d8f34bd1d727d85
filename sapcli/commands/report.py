"""`sap report`: the report of a repair, rendered again from its JSON."""

from __future__ import annotations

from pathlib import Path

from sapcli.commands.line.options import OutputOptions
from sapcli.commands.line.outputs import destination_file, open_output, report_forms
from sapcli.settings import ReportForm


def report(result: Path, form: ReportForm | None, output: OutputOptions) -> None:
    """`sap report`."""
    from sapcli.reports.pages import render_report
    from sapcli.reports.schema import from_json

    destination = destination_file(output, None)
    if form is None and destination is not None:
        (form,) = report_forms([destination], output.force, "-o").values()
    content = render_report(from_json(result), form or ReportForm.MARKDOWN)
    with open_output(destination) as handle:
        handle.write(content)
