"""`sap verify`: a corrected checkpoint against its own metadata."""

from __future__ import annotations

from collections.abc import Sequence

from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.commands.line import console
from sapcli.commands.line.inputs import given_bases
from sapcli.commands.line.next_step import DATA, tell_next
from sapcli.commands.line.outputs import STDIO, write_text
from sapcli.errors import CheckpointError, UsageError
from sapcli.machine.text import printable
from sapcli.repairs.evidence.verification import verify as check_claim
from sapcli.settings import ResultFormat


def verify(source: str, original: str | None, bases: Sequence[str], quiet: bool, output_format: ResultFormat) -> None:
    """`sap verify`."""
    if bases and original is None:
        raise UsageError("--bases needs the original weights to project", "name them with --input ORIGINAL")
    if [source, original, *bases].count(STDIO) > 1:
        raise UsageError("only one input can be read from stdin", "give files for the others")
    findings = check_claim(
        open_checkpoint(source),
        None if original is None else open_checkpoint(original),
        [given_bases(file) for file in bases],
    )
    wrong = [finding for finding in findings if not finding.holds]
    if output_format is ResultFormat.JSON:
        from sapcli.reports.documents import FindingDocument, VerificationDocument

        document = VerificationDocument(
            checkpoint=source, holds=not wrong, findings=tuple(map(FindingDocument.of, findings))
        )
        write_text(None, document.to_json(), is_json=True)
    elif not quiet:
        for finding in findings:
            console.print_result(f"{'yes' if finding.holds else 'NO '}  {printable(finding.text)}")
    if wrong:
        raise CheckpointError(
            f"{source} is not what its metadata says: it does not hold that"
            f" {'; '.join(finding.text for finding in wrong)}",
            wrong[0].hint,
        )
    baseline = () if original is None else ("--baseline", original)
    tell_next(console.Terminal(quiet), "eval", source, DATA, *baseline)
