"""`sap env`: what the program finds here, for a report of a fault."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
import typer

from sapcli import __version__
from sapcli.commands.line import console
from sapcli.commands.line.crash import without_user
from sapcli.commands.line.outputs import write_text
from sapcli.commands.line.settings_file import SettingsFile
from sapcli.machine.cache import Cache
from sapcli.repairs.evidence.estimate import rates_of
from sapcli.reports.documents import DeviceDocument, EnvironmentDocument
from sapcli.settings import ResultFormat

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)[^;]*(?:;.*extra == ['\"](?P<extra>[\w-]+)['\"])?")
# Libraries that are used where they are there.
_OPTIONAL = ("transformers", "datasets", "pyarrow", "pytorch-lightning", "accelerate")
_VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NO_COLOR", "CI", "AI_AGENT")


def env(context: typer.Context, output_format: ResultFormat) -> None:
    """`sap env`."""
    document = _found(context.find_root().obj)
    if output_format is ResultFormat.JSON:
        write_text(None, document.to_json(), is_json=True)
        return
    rows = [
        ("sap", document.sap),
        ("Python", document.python),
        ("platform", document.platform),
        *document.versions.items(),
        *((f"extra {name}", _installed(packages)) for name, packages in document.extras.items()),
        ("used if there", _installed(document.optional)),
        *((device.name, _device(device)) for device in document.devices),
        ("cache", f"{document.cache}: {document.cache_entries} entries, {document.cache_bytes / 2**20:.1f} MiB"),
        ("settings file", document.settings_file or "none"),
        ("variables", ", ".join(document.variables) or "none"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        console.print_result(f"{name:<{width}}  {text}")


def _found(settings: object) -> EnvironmentDocument:
    cache = Cache(None, console.Terminal()).info()
    needed, extras = _requirements()
    return EnvironmentDocument(
        sap=__version__,
        python=platform.python_version(),
        # Python's own name of the platform, and that of the processor, come from a program that it starts.
        platform="-".join(filter(None, (platform.system(), platform.release(), platform.machine()))),
        versions={name: _version(name) or "missing" for name in needed},
        extras={extra: {name: _version(name) for name in names} for extra, names in extras.items()},
        optional={name: _version(name) for name in _OPTIONAL},
        devices=tuple(_devices()),
        cache=without_user(str(cache.folder)),
        cache_entries=cache.entries,
        cache_bytes=cache.bytes,
        # Its name alone: what is in it may be anybody's business.
        settings_file=Path(settings.path).name if isinstance(settings, SettingsFile) else None,
        variables=tuple(sorted({name for name in os.environ if name.startswith("SAP_")} | _set(_VARIABLES))),
    )


def _set(names: tuple[str, ...]) -> set[str]:
    return {name for name in names if name in os.environ}


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The libraries that the package needs, and those of each extra; none where it runs from a folder."""
    needed: list[str] = []
    extras: dict[str, list[str]] = {}
    try:
        declared = requires("sapcli") or []
    except PackageNotFoundError:
        return ["torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "pydantic", "typer", "rich"], {}
    for text in declared:
        found = _REQUIREMENT.match(text)
        if found is not None and found["name"] != "sapcli":
            (needed if found["extra"] is None else extras.setdefault(found["extra"], [])).append(found["name"])
    return needed, extras


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[DeviceDocument]:
    """The CPU and the GPUs, with what each does a second where it takes a moment to find out."""
    cpu = torch.device("cpu")
    found = [
        DeviceDocument(
            name="cpu",
            kind=platform.machine(),
            memory_bytes=None,
            threads=torch.get_num_threads(),
            operations_per_second=rates_of(cpu),
        )
    ]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        device = torch.device("cuda", number)
        found.append(
            DeviceDocument(
                name=str(device),
                kind=properties.name,
                memory_bytes=properties.total_memory,
                threads=None,
                operations_per_second=rates_of(device),
            )
        )
    if torch.backends.mps.is_available():
        rates = rates_of(torch.device("mps"))
        found.append(
            DeviceDocument(name="mps", kind="Apple GPU", memory_bytes=None, threads=None, operations_per_second=rates)
        )
    return found


def _device(device: DeviceDocument) -> str:
    facts = [device.kind]
    facts += [] if device.threads is None else [f"{device.threads} threads"]
    facts += [] if device.memory_bytes is None else [f"{device.memory_bytes / 2**30:.1f} GiB"]
    facts += [f"{name} {rate / 1e9:,.1f} GFLOP/s" for name, rate in device.operations_per_second.items()]
    return ", ".join(facts)


def _installed(packages: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {found or 'missing'}" for name, found in packages.items()) or "nothing"
