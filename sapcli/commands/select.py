"""`sap select`: the trusted samples."""

from __future__ import annotations

from sapcli.commands.line import console
from sapcli.commands.line.inputs import Inputs, introduce, tell_of_images
from sapcli.commands.line.next_step import same_inputs, tell_next
from sapcli.commands.line.options import OutputOptions, SelectionOptions
from sapcli.commands.line.output_check import check_outputs
from sapcli.commands.line.outputs import destination_file, write_text
from sapcli.machine.text import json_array
from sapcli.settings import SamplesFormat


def select(inputs: Inputs, selection: SelectionOptions, output: OutputOptions, output_format: SamplesFormat) -> None:
    """`sap select`."""
    destination = destination_file(output, None)
    terminal = inputs.terminal()
    session = inputs.session(terminal, selection.validation)
    session.check_data()
    reads = inputs.reads(session.checkpoint, val=selection.validation)
    check_outputs([("-o", destination), *inputs.writes()], reads)
    introduce(session, session.training)
    trusted = session.select(selection.to_settings())
    tell_of_images(terminal, session.training_images)
    if not session.ranks.is_first:
        return
    lines = trusted.to_json_lines()
    write_text(
        destination, json_array(lines) if output_format is SamplesFormat.JSON else lines, output.force, is_json=True
    )
    if destination is not None:
        console.print_result(str(destination))
    given = () if destination is None else ("--trusted", destination)
    tell_next(terminal, "project", inputs.checkpoint, inputs.data, *given, options=same_inputs(inputs))
