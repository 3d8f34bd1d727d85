"""The results of the study as tables in Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.cells import Cell, Preset
from benchmarks.study.methods import METHODS
from benchmarks.study.runner import RESULT

# A method of ours that ends so far below the unchanged model has missed its promise.
HARMED = 0.3
_LIMITS = tuple(method.name for method in METHODS if method.limit)
_OURS = tuple(method.name for method in METHODS if method.is_ours)

Result = Mapping[str, Any]
Group = tuple[str, str, str]
"""Network, noise and training: the cells that differ in their seed alone."""


def read_results(folder: Path) -> list[Result]:
    """The results that are there: a file in the folder of each cell, or `CELL.json`."""
    files = [*folder.glob(f"*/{RESULT}"), *folder.glob("*.json")]
    return [json.loads(file.read_text()) for file in sorted(files)]


def write_tables(preset: Preset, folder: Path, file: Path) -> None:
    """Write the tables of all results in a folder, and what was not run."""
    results = read_results(folder)
    parts = [accuracies(results), gaps(results), areas(results), seconds(results), harm(results)]
    parts.append(not_run(results, preset.cells))
    file.write_text("\n\n".join(parts) + "\n")


def accuracies(results: Sequence[Result]) -> str:
    """Test accuracy, a row a cell."""
    return _table("Test accuracy, %", results, lambda result, name: _number(result, name, "test"))


def gaps(results: Sequence[Result]) -> str:
    """The share of the way from the unchanged model to one trained on right labels alone, in per cent."""

    def share(result: Result, name: str) -> float | None:
        before, after = _number(result, "unchanged", "test"), _number(result, name, "test")
        limit = _number(result, _LIMITS[0], "test")
        if before is None or after is None or limit is None or limit <= before or name in _LIMITS:
            return None
        return 100 * (after - before) / (limit - before)

    return _table("Share of the gap to training on right labels alone, %", results, share)


def areas(results: Sequence[Result]) -> str:
    """How well the loss tells wrong labels from right ones."""
    return _table(
        "Area under the ROC curve of the loss against wrong labels",
        results,
        lambda result, name: None if name in _LIMITS else _number(result, name, "area of suspects"),
        digits=3,
    )


def seconds(results: Sequence[Result]) -> str:
    """What each method took."""
    return _table("Seconds", results, lambda result, name: _number(result, name, "seconds"))


def harm(results: Sequence[Result]) -> str:
    """How often a method of ours made a model worse."""
    lines = ["**Models made worse by a method of ours**", ""]
    for name in _OURS:
        changes = [
            (_number(result, name, "test"), _number(result, "unchanged", "test"), Cell(**result["cell"]).name)
            for result in results
        ]
        known = [(after - before, cell) for after, before, cell in changes if after is not None and before is not None]
        worse = [f"{cell} ({change:+.2f})" for change, cell in known if change < -HARMED]
        lines.append(f"- {name}: {len(worse)} of {len(known)}" + (f": {', '.join(worse)}" if worse else ""))
    return "\n".join(lines)


def not_run(results: Sequence[Result], cells: Sequence[Cell]) -> str:
    """What of the preset has no result."""
    by_name = {Cell(**result["cell"]).name: result for result in results}
    missing = [cell.name for cell in cells if cell.name not in by_name]
    partly = []
    for name, result in by_name.items():
        left = [
            method.name
            for method in METHODS
            if _number(result, method.name, "test") is None and not (method.limit and not result["wrong labels"])
        ]
        if left:
            partly.append(f"- {name}: {', '.join(left)}")
    return "\n".join(
        [f"**Not run**: {len(missing)} of {len(cells)} cells: {', '.join(missing) or 'none'}.", "", *partly]
    )


def _table(title: str, results: Sequence[Result], value: Any, digits: int = 1) -> str:
    groups: dict[Group, list[Result]] = defaultdict(list)
    for result in results:
        cell = Cell(**result["cell"])
        groups[cell.network, cell.noise, cell.training].append(result)
    names = [method.name for method in METHODS]
    names = [name for name in names if any(value(result, name) is not None for result in results)]
    lines = [f"**{title}**", "", "| network, noise, training | " + " | ".join(names) + " |"]
    lines.append("|---|" + "---:|" * len(names))
    for group, members in sorted(groups.items()):
        found = [[each for result in members if (each := value(result, name)) is not None] for name in names]
        shown = [_mean(values, digits) for values in found]
        lines.append(f"| {', '.join(group)} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _mean(values: Sequence[float], digits: int) -> str:
    """The mean, and with several seeds its standard error."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"


def _number(result: Result, method: str, what: str) -> float | None:
    found = result["methods"].get(method, {}).get(what)
    return None if found is None else float(found)
