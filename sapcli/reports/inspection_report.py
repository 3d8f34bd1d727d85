"""An inspection, rendered: for a terminal, for programs."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sapcli.checkpoints.safetensors_file import DTYPE_NAMES
from sapcli.machine.text import printable
from sapcli.repairs.evidence.estimate import Estimate
from sapcli.repairs.evidence.inspection import Inspection, PlannedWeight
from sapcli.settings import PlanFormat

_LABELS_SHOWN = 5
_ENTRIES_SHOWN = 3
_TEXT_SHOWN = 100


def render_inspection(inspection: Inspection, output_format: PlanFormat) -> str:
    """The inspection as text that ends in a newline."""
    if output_format is PlanFormat.JSON:
        return json.dumps(_document(inspection), indent=2) + "\n"
    text = io.StringIO()
    console = Console(file=text, highlight=False, soft_wrap=True, width=shutil.get_terminal_size().columns)
    _print_facts(console, _facts(inspection))
    console.print(_weight_table(inspection.weights))
    if inspection.estimate is not None:
        _print_facts(console, _costs(inspection.estimate))
    return text.getvalue()


def _document(inspection: Inspection) -> dict[str, object]:
    checkpoint, architecture = inspection.checkpoint, inspection.architecture
    document: dict[str, object] = {
        "checkpoint": checkpoint.source,
        "form": checkpoint.form.value,
        "entries": len(checkpoint.entries),
        "dtypes": {DTYPE_NAMES[dtype]: count for dtype, count in inspection.dtypes.items()},
        "parameters": inspection.parameters,
        "architecture": None if architecture is None else architecture.name,
    }
    if architecture is None:
        document["problem"] = inspection.problem
        document["candidates"] = [candidate.name for candidate in inspection.candidates]
        document["candidates_fit"] = any(candidate.num_classes is not None for candidate in inspection.candidates)
        document["candidates_preprocessing"] = {
            candidate.name: str(candidate.preprocessing) for candidate in inspection.candidates
        }
    else:
        document["architecture_source"] = architecture.source
        document["arguments"] = dict(architecture.arguments)
        document["classes"] = architecture.num_classes
        document["label_names"] = architecture.label_names
        settings = asdict(architecture.preprocessing)
        # What is not known is null.
        document["preprocessing"] = settings | {key: settings[key] or None for key in ("mean", "std")}
    return document | {
        "metadata": dict(checkpoint.metadata),
        "earlier_repair": inspection.earlier_repair or None,
        "extra_entries": list(inspection.extra_entries),
        "weights": [_weight_document(weight) for weight in inspection.weights],
        "estimate": None if inspection.estimate is None else _estimate_document(inspection.estimate),
    }


def _weight_document(weight: PlannedWeight) -> dict[str, object]:
    return {
        "name": weight.name,
        "shape": list(weight.shape),
        "projected": weight.projected,
        "reason": weight.reason,
        "row_length": weight.row_length,
        "groups": weight.groups,
        "windows": len(weight.views),
    }


def _estimate_document(estimate: Estimate) -> dict[str, object]:
    return {
        "device": estimate.device,
        "seconds": round(estimate.seconds, 3),
        "memory_bytes": estimate.memory_bytes,
        "workload": asdict(estimate.workload),
        "operations_per_second": {name: round(rate) for name, rate in estimate.rates.measured.items()},
        "stages": [
            {"name": stage.name, "operations": round(stage.operations), "seconds": round(stage.seconds, 3)}
            for stage in estimate.stages
        ],
    }


def _facts(inspection: Inspection) -> list[tuple[str, str]]:
    checkpoint, architecture = inspection.checkpoint, inspection.architecture
    dtypes = ", ".join(f"{count:,} {DTYPE_NAMES[dtype]}" for dtype, count in inspection.dtypes.items())
    facts = [("checkpoint", f"{checkpoint.source}: {checkpoint.form.value}, {len(checkpoint.entries):,} tensors")]
    if architecture is None:
        facts.append(("architecture", f"not known: {inspection.problem}"))
    else:
        arguments = "".join(f", {name}={value!r}" for name, value in architecture.arguments.items())
        facts.append(("architecture", f"{architecture.name}{arguments} (from {architecture.source})"))
        facts.append(("classes", f"{architecture.num_classes:,}{_labels(architecture.label_names)}"))
        preprocessing = architecture.preprocessing
        facts.append(("preprocessing", f"{preprocessing} (from {preprocessing.source})"))
    facts += [("parameters", f"{inspection.parameters:,}"), ("numbers", dtypes)]
    if inspection.extra_entries:
        facts.append(("kept as they are", _some(inspection.extra_entries)))
    repair = inspection.earlier_repair
    if repair:
        told = ", ".join(f"{name} {repair[name]}" for name in ("alpha", "evidence") if repair.get(name))
        facts.append(("repaired before", f"{told or 'without a change'}{_gain(repair.get('gain', ''))}"))
    facts += [
        (f"metadata {name}", text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]}...")
        for name, text in checkpoint.metadata.items()
        if not (repair and name.startswith("sap."))
    ]
    return facts


def _gain(text: str) -> str:
    """What a repair noted of its gain, in words; nothing where it noted none, or not as we do."""
    try:
        noted = json.loads(text)
        low, high = noted["interval"]
        return f", {noted['points']:+.2f} points [{low:+.2f}, {high:+.2f}]"
    except (ValueError, TypeError, LookupError):
        return ""


def _labels(names: tuple[str, ...] | None) -> str:
    if names is None:
        return ""
    return ": " + ", ".join(names[:_LABELS_SHOWN]) + (", ..." if len(names) > _LABELS_SHOWN else "")


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - _ENTRIES_SHOWN
    return ", ".join(names[:_ENTRIES_SHOWN]) + (f" and {more} more tensors" if more > 0 else "")


def _weight_table(weights: tuple[PlannedWeight, ...]) -> Table:
    projected = sum(weight.projected for weight in weights)
    table = Table(
        title=f"{projected} of {len(weights)} weights of two or more dimensions are projected", title_justify="left"
    )
    table.add_column("weight", overflow="fold")
    table.add_column("shape", justify="right")
    table.add_column("row", justify="right")
    table.add_column("groups", justify="right")
    table.add_column("projected", overflow="fold")
    for weight in weights:
        numbers = ["-" if number is None else str(number) for number in (weight.row_length, weight.groups)]
        told = "yes" if weight.reason is None else f"no: {weight.reason}"
        table.add_row(Text(printable(weight.name)), "x".join(map(str, weight.shape)), *numbers, Text(printable(told)))
    return table


def _costs(estimate: Estimate) -> list[tuple[str, str]]:
    work = estimate.workload
    parts = [(f"{work.scored:,} images scored", work.scored), (f"{work.trusted:,} trusted", work.trusted)]
    parts += [(f"{work.trials} values of alpha, each on {work.judged:,}", work.trials)]
    parts += [(f"BatchNorm on {work.batchnorm:,}", work.batchnorm)]
    parts += [(f"{work.compared:,} compared under strange views", work.compared)]
    measured = ", ".join(f"{name} {rate / 1e9:,.1f}" for name, rate in estimate.rates.measured.items())
    return [
        (f"a repair on {estimate.device}", f"about {_duration(estimate.seconds)} beside the decoding of images"),
        ("memory", f"about {_size(estimate.memory_bytes)}"),
        ("of", ", ".join(text for text, count in parts if count)),
        *(
            (stage.name, f"{stage.operations / 1e9:,.1f} GFLOP, {_duration(stage.seconds)}")
            for stage in estimate.stages
        ),
        ("measured GFLOP/s", measured),
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def _print_facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    rows = list(facts)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        console.print(Text(f"{printable(name):<{width}}  {printable(text)}"))
