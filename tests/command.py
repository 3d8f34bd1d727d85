"""The command line as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from small_project import Outcome

SAP = (sys.executable, "-m", "sapcli")


def sap(*arguments: str | Path, stdin: bytes = b"", folder: Path | None = None) -> Outcome:
    """Run `sap` with these arguments in a working folder."""
    process = subprocess.run(
        [*SAP, *map(str, arguments)], input=stdin, capture_output=True, cwd=folder, check=False, timeout=600
    )
    return Outcome(process.returncode, process.stdout, process.stderr.decode())
