"""`sap activations`: the bases of every layer's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from sapcli.activations.bases import Bases
from sapcli.activations.bases_file import write_bases
from sapcli.commands.line import console
from sapcli.commands.line.inputs import Inputs, TrustedSource, introduce, tell_of_images
from sapcli.commands.line.next_step import same_inputs, tell_next
from sapcli.commands.line.options import OutputOptions, SelectionOptions
from sapcli.commands.line.output_check import check_outputs
from sapcli.commands.line.outputs import STDIO, destination_file, one_stdin, one_stdout, open_output, write_text
from sapcli.repairs.session import Samples, Session
from sapcli.settings import ResultFormat

if TYPE_CHECKING:
    from sapcli.reports.documents import ActivationsDocument


def activations(
    inputs: Inputs,
    selection: SelectionOptions,
    trusted: str | None,
    output: OutputOptions,
    output_format: ResultFormat,
) -> None:
    """`sap activations`."""
    one_stdout(output, output_format)
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
    if not session.ranks.is_first:
        return
    with open_output(destination, output.force) as handle:
        write_bases(bases, cast("BinaryIO", handle))
    if output_format is ResultFormat.JSON:
        write_text(None, _document(session, samples, bases, str(destination)).to_json(), is_json=True)
    elif destination is not None:
        console.print_result(str(destination))
    if destination is not None:
        words = (inputs.checkpoint, inputs.data, "--bases", destination)
        tell_next(terminal, "project", *words, options=same_inputs(inputs))


def _document(session: Session, samples: Samples, bases: Bases, output: str) -> ActivationsDocument:
    from sapcli.reports.documents import ActivationsDocument, BasisDocument

    weights = tuple(
        BasisDocument(
            name=name,
            windows=len(pieces),
            row_length=max(piece.view.row_length for piece in pieces),
            groups=max(piece.view.groups for piece in pieces),
            rows=max(piece.basis.rows for piece in pieces),
            directions=max(piece.basis.values.shape[-1] for piece in pieces),
        )
        for name, pieces in bases.pieces.items()
    )
    return ActivationsDocument(
        checkpoint=session.checkpoint.source,
        output=output,
        samples=len(samples.indices),
        weights=weights,
        skipped=dict(bases.skipped),
        weights_digest=bases.checkpoint,
        samples_digest=bases.samples,
    )


def _note_coverage(terminal: console.Terminal, bases: Bases, verbose: bool) -> None:
    """How many weights have bases, and with --verbose why the others have none."""
    total = len(bases.pieces) + len(bases.skipped)
    terminal.note(f"{len(bases.pieces)} of {total} weights of two or more dimensions multiply activations")
    if verbose:
        for name, reason in bases.skipped.items():
            terminal.note(f"  {name}: {reason}")
