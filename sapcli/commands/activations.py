"""`sap activations`: the bases of every layer's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, cast

from sapcli.activations.bases import Bases
from sapcli.activations.bases_file import write_bases
from sapcli.commands.line import console
from sapcli.commands.line.inputs import Inputs, TrustedSource, introduce, tell_of_images
from sapcli.commands.line.options import OutputOptions, SelectionOptions
from sapcli.commands.line.output_check import check_outputs
from sapcli.commands.line.outputs import STDIO, destination_file, one_stdin, open_output


def activations(inputs: Inputs, selection: SelectionOptions, trusted: str | None, output: OutputOptions) -> None:
    """`sap activations`."""
    one_stdin(CHECKPOINT=inputs.checkpoint, trusted=trusted)
    beside = Path() if inputs.checkpoint == STDIO else Path(inputs.checkpoint)
    default = (beside if beside.is_dir() else beside.parent) / "bases.safetensors"
    destination = destination_file(output, default)
    terminal = inputs.terminal()
    session = inputs.session(terminal, selection.validation)
    session.check_data()
    reads = inputs.reads(session.checkpoint, val=selection.validation, trusted=trusted)
    check_outputs([("-o", destination), *inputs.writes()], reads)
    trust = TrustedSource(selection, trusted)
    trust.check(session)
    introduce(session, session.training)
    samples = trust.samples(session)
    session.ensure_order_checked()
    bases = session.bases(samples)
    _note_coverage(terminal, bases, inputs.run.verbose)
    tell_of_images(terminal, samples.images)
    with open_output(destination, output.force) as handle:
        write_bases(bases, cast("BinaryIO", handle))
    if destination is not None:
        console.print_result(str(destination))


def _note_coverage(terminal: console.Terminal, bases: Bases, verbose: bool) -> None:
    """How many weights have bases, and with --verbose why the others have none."""
    total = len(bases.pieces) + len(bases.skipped)
    terminal.note(f"{len(bases.pieces)} of {total} weights of two or more dimensions multiply activations")
    if verbose:
        for name, reason in bases.skipped.items():
            terminal.note(f"  {name}: {reason}")
