"""`sap select`: the trusted samples."""

from __future__ import annotations

from sapcli.commands.line import console
from sapcli.commands.line.inputs import Inputs, introduce, note_unchecked_order, tell_of_images
from sapcli.commands.line.options import OutputOptions, SelectionOptions
from sapcli.commands.line.outputs import destination_file, open_output


def select(inputs: Inputs, selection: SelectionOptions, output: OutputOptions) -> None:
    """`sap select`."""
    destination = destination_file(output, None)
    terminal = inputs.terminal()
    session = inputs.session(terminal, selection.validation)
    session.check_data()
    introduce(session, session.training)
    trusted = session.select(selection.to_settings())
    note_unchecked_order(session)
    tell_of_images(terminal, session.training_images)
    with open_output(destination) as handle:
        handle.write(trusted.to_json_lines().encode("utf-8", "surrogateescape"))
    if destination is not None:
        console.print_result(str(destination))
