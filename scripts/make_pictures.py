"""Draw the pictures of the README from a report of the demo, as SVG that follows the reader's light or dark theme.

Run `sap demo demo` first; then `python scripts/make_pictures.py demo docs/pictures`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from sapcli.reports.figures import alpha_figure, class_figure
from sapcli.reports.schema import from_json

_THEMES = """<style>
svg { --ink: #1d1f21; --soft: #62666b; --line: #dedcd6; --before: #9a9a94; --after: #0f766e; --trusted: #4f7fd0; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e8e6e1; --soft: #a2a7ad; --line: #33373d; --before: #85898f; --after: #3fbfae; --trusted: #7fa8ef; }
}
</style>"""


def main() -> None:
    """Repair the demo's model once more, with a report, and draw its figures."""
    demo, pictures = map(Path, sys.argv[1:])
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "repair.json"
        command = [sys.executable, "-m", "sapcli", "project", demo / "model.safetensors", demo / "data", "-n", "300"]
        subprocess.run([*command, "-o", Path(folder) / "repaired.safetensors", "--report", result], check=True)
        report = from_json(result)
    (pictures / "alpha.svg").write_text(_themed(alpha_figure(report.search)))
    if report.measurement is not None:
        (pictures / "classes.svg").write_text(_themed(class_figure(report.measurement.classes)))


def _themed(svg: str) -> str:
    """The figure with the page's colours of its own, since it stands in no page."""
    end = svg.index(">") + 1
    return svg[:end] + _THEMES + svg[end:]


if __name__ == "__main__":
    main()
