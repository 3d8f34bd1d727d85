"""No input gets code run: every command on hostile files, in a process of which nothing was imported before.

All tests hold their runs to `support.no_code`. Here the files are made to get code run, in each way that is known, and
contain a mark by which their text is known wherever it goes; and the modules that a command imports are watched too.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.no_code import MARK
from support.small_project import Project

import sapcli

TRAP = f'import os\nos.environ["{MARK}"] = "sprung"\n\n\ndef make(num_classes=3):\n    raise SystemExit("{MARK}")\n'

RUN = """
import io, json, os, sys
from support import no_code
from support.command_line import run

report, results = sys.argv[1:]
os.environ[no_code.REPORT] = report
no_code.begin([])  # what is imported later belongs to a command
statuses = {}
streams = sys.stdin, sys.stdout, sys.stderr
for number, (folder, arguments) in enumerate(json.load(sys.stdin)):
    os.chdir(folder)
    sys.stdin = io.TextIOWrapper(io.BytesIO())
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    try:
        status = run(arguments)
    except BaseException as error:
        status = repr(error)
    said = sys.stderr.buffer.getvalue().decode(errors="replace")
    sys.stdin, sys.stdout, sys.stderr = streams
    with open(report, "r+") as file:
        statuses[number] = [file.read().splitlines(), status, said]
        file.truncate(0)
with open(results, "w") as file:
    json.dump({"statuses": statuses, "sprung": no_code.MARK in os.environ}, file)
os._exit(0)
"""


@dataclass(frozen=True)
class Seen:
    """What the hook saw in a run, the status, and what the run said."""

    found: list[str]
    status: object
    said: str


class Call:
    """What a pickle calls when it is loaded without care."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.parts


def write_images(folder: Path) -> None:
    """Files under an image's name whose formats have programs of their own, or programs that show them."""
    texts = {
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n("
        + MARK.encode()
        + b") run\n%%EOF\n",
        "script.png": f"#!/usr/bin/env python3\n{TRAP}".encode(),
        "svg.png": f'<svg xmlns="http://www.w3.org/2000/svg"><script>{MARK}</script></svg>'.encode(),
        "pdf.png": b"%PDF-1.4\n1 0 obj << /S /Launch /F (" + MARK.encode() + b") >>\n%%EOF\n",
        "iptc.png": b"\x1c\x03\x3c\x00\x02\x01\x01" + b"\x1c\x03\x14\x00\x01\x01" + MARK.encode(),
        "xpm.png": f'/* XPM */\nstatic char *{MARK}[] = {{\n"2 1 1 1",\n"a c #ff0000",\n"aa"}};\n'.encode(),
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    for number, form in enumerate(("GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "TGA", "SGI", "PCX")):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{form}.png", form)


def write_traps(folder: Path) -> None:
    """Modules and settings that lie in the working folder."""
    for module in (
        "trap",
        "torch",
        "typer",
        "numpy",
        "timm",
        "rich",
        "json",
        "sitecustomize",
        "usercustomize",
        "network2",
    ):
        (folder / f"{module}.py").write_text(TRAP)
    (folder / "sapcli_plugins").mkdir()
    (folder / "sapcli_plugins" / "__init__.py").write_text(TRAP)
    (folder / ".env").write_text(f"PYTHONSTARTUP=trap.py\n{MARK}=1\n")


def write_checkpoints(folder: Path) -> None:
    """Checkpoints that name code, in each of their forms."""
    weights = load_file(folder / "model.safetensors")
    for name, config in (
        ("names-file", {"architecture": "trap.py:make"}),
        ("names-module", {"architecture": "trap:make"}),
        ("names-hub", {"architecture": "hf_hub:sap_trap/sap_trap"}),
        ("names-local", {"architecture": "timm:local-dir:trap"}),
        (
            "arguments",
            {"architecture": "resnet18", "model_args": {"block": f"__import__('{MARK}')", "act_layer": "trap:make"}},
        ),
        ("pretrained", {"architecture": "resnet18", "model_args": {"pretrained": True}}),
        ("file", {"architecture": "resnet18", "model_args": {"checkpoint_path": "model.pth"}}),
        (
            "names",
            {"architecture": "resnet18", "label_names": ["{{ sap_trap }}", "${sap_trap}", "__import__('sap_trap')"]},
        ),
        (
            "settings",
            {"architecture": "resnet18", "pretrained_cfg": {"url": "http://127.0.0.1:9/x", "custom_load": "trap"}},
        ),
    ):
        (folder / name).mkdir()
        save_file(weights, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
        flat = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
        save_file(weights, folder / f"{name}.safetensors", flat | {"config": json.dumps(config)})
    for name, content in {
        "system": Call(os.system, f"touch {MARK}"),
        "exec": Call(exec, TRAP),
        "eval": Call(eval, f"__import__('os').mkdir('{MARK}')"),
        "import": Call(__import__, "trap"),
        "popen": Call(subprocess.Popen, ["touch", MARK]),
        "network": torch.nn.Linear(2, 2),
    }.items():
        torch.save({"state_dict": weights, "epoch": content}, folder / f"{name}.pth")
        torch.save(
            {"state_dict": weights, "epoch": content}, folder / f"{name}.pt", _use_new_zipfile_serialization=False
        )
        (folder / f"{name}-plain.bin").write_bytes(pickle.dumps({"state_dict": content}, 2))
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "script.pt")
    with zipfile.ZipFile(folder / "code.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/code/__init__.py", TRAP)
        archive.writestr("archive/version", "3\n")


def write_data(folder: Path) -> None:
    """Lists, class maps, reports and archives with code in every field."""
    texts = [
        f"__import__('{MARK}')",
        f"=cmd|'{MARK}'!A0",
        "{{ sap_trap }}",
        "{% include 'sap_trap' %}",
        f"$({MARK})",
        f"`{MARK}`",
    ]
    with (folder / "labels.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [("path", "label"), *((f"blue/{number:02}.png", text) for number, text in enumerate(texts))]
        )
    (folder / "map.json").write_text(json.dumps(dict.fromkeys(texts, 0) | {"!!python/object/apply:os.system": 1}))
    (folder / "map.csv").write_text("folder,class\n" + "\n".join(f'"{text}",0' for text in texts))
    (folder / "list.txt").write_text("\n".join([f"|touch {MARK}", f"http://127.0.0.1:9/{MARK}", *texts]))
    (folder / "trusted.jsonl").write_text(json.dumps({"index": f"__import__('{MARK}')"}))
    (folder / "report.json").write_text(json.dumps({"format": 1, "title": texts, "__class__": "trap"}))
    with tarfile.open(folder / "data.tar", "w") as archive:
        for name in (f"../{MARK}", "train/a/sitecustomize.py", "train/a/1.png", "train/b/1.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(TRAP)
            archive.addfile(entry, io.BytesIO(TRAP.encode()))
    images = folder / "images" / "train"
    for name in ("blue", "green", "red"):
        (images / name).mkdir(parents=True)
        write_images(images / name)


TINY = ("--arch", "network.py:tiny")
COMMON = ("--cache-dir", "cache", "--workers", "0")
CHECKPOINTS = (
    "names-file",
    "names-module",
    "names-hub",
    "names-local",
    "arguments",
    "pretrained",
    "file",
    "names",
    "settings",
)
PICKLED = ("system", "exec", "eval", "import", "popen", "network")

COMMANDS: dict[str, tuple[str, ...]] = {
    "version": ("--version",),
    "help": ("--help",),
    "config": ("config",),
    "project": ("project", "model.safetensors", "data", *TINY, *COMMON, "-n", "30", "-o", "out.safetensors",
                "--report", "out.html", "--report", "out.json", "--report", "out.md", "--summary", "summary.md"),
    "eval": ("eval", "out.safetensors", "data", *TINY, *COMMON, "--split", "val", "--baseline", "model.safetensors"),
    "verify": ("verify", "out.safetensors", "--input", "model.safetensors"),
    "suspects": ("suspects", "out.safetensors", "data", *TINY, *COMMON, "--html", "s.html", "--apply", "csv"),
    "report": ("report", "out.json", "-o", "again.html"),
    "select": ("select", "model.safetensors", "data", *TINY, *COMMON, "-n", "30", "-o", "selected.jsonl"),
    "activations": ("activations", "model.safetensors", "data", *TINY, *COMMON, "-n", "30", "-o", "bases.safetensors"),
    "bases from elsewhere": ("project", "model.safetensors", "data", *TINY, *COMMON, "--bases", "names.safetensors"),
    "images of many formats": ("select", "model.safetensors", "images", *TINY, *COMMON, "-n", "6"),
    "pages with pictures of them": ("suspects", "out.safetensors", "images", *TINY, *COMMON, "--html", "t.html"),
    "an archive": ("select", "model.safetensors", "data.tar", *TINY, *COMMON, "-n", "6"),
    "labels": ("select", "model.safetensors", "data/train", *TINY, *COMMON, "-n", "6", "--labels", "labels.csv"),
    "a label file as data": ("select", "model.safetensors", "labels.csv", *TINY, *COMMON, "-n", "6"),
    "a list as data": ("select", "model.safetensors", "list.txt", *TINY, *COMMON, "-n", "6"),
    "a map in JSON": ("select", "model.safetensors", "data", *TINY, *COMMON, "-n", "6", "--class-map", "map.json"),
    "a map in CSV": ("select", "model.safetensors", "data", *TINY, *COMMON, "-n", "6", "--class-map", "map.csv"),
    "a trusted list": ("project", "model.safetensors", "data", *TINY, *COMMON, "--trusted", "trusted.jsonl"),
    "a report from elsewhere": ("report", "report.json"),
    "an index": ("inspect", "map.json"),
    "an argument": ("inspect", "model.safetensors", "--arch", "resnet18", "--arch-arg", f"block=__import__('{MARK}')"),
    "an architecture's name": ("inspect", "model.safetensors", "--arch", "__import__('os')"),
    "cache": ("cache", "info", "--cache-dir", "cache"),
    **{f"config.json: {name}": ("inspect", name) for name in CHECKPOINTS},
    **{f"metadata: {name}": ("inspect", f"{name}.safetensors") for name in CHECKPOINTS},
    **{f"config.json, repaired: {name}": ("project", name, "data", *COMMON, "-n", "9") for name in CHECKPOINTS[:4]},
    **{f"pickle: {name}{end}": ("inspect", name + end) for name in PICKLED for end in (".pth", ".pt", "-plain.bin")},
    "TorchScript": ("inspect", "script.pt"),
    "code in an archive": ("inspect", "code.pth"),
}  # fmt: skip

SETTINGS = {
    "arch": 'arch = "trap.py:make"\n',
    "a command's arch": '[inspect]\narch = "trap:make"\n',
    "a debugger": "debug = true\nplugins = ['trap']\n",
}


@pytest.fixture(scope="module")
def hostile(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project among traps."""
    folder = tmp_path_factory.mktemp("hostile") / "project"
    shutil.copytree(original.folder, folder)
    write_checkpoints(folder)
    write_data(folder)
    write_traps(folder)
    return folder


def watched(runs: dict[str, tuple[Path, tuple[str, ...]]], folder: Path) -> dict[str, Seen]:
    """Run command lines, each in its working folder, in one process with the hook."""
    report, results = folder / "violations.txt", folder / "seen.json"
    report.touch()
    tests = Path(__file__).parent.parent
    paths = os.pathsep.join([str(tests), str(Path(sapcli.__file__).parent.parent)])
    process = subprocess.run(
        [sys.executable, "-P", "-c", RUN, report, results],
        input=json.dumps([(str(place), arguments) for place, arguments in runs.values()]),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    told = json.loads(results.read_text())
    assert not told["sprung"]
    assert not list(folder.rglob(MARK))
    return {name: Seen(*told["statuses"][str(number)]) for number, name in enumerate(runs)}


@pytest.fixture(scope="module")
def seen(hostile: Path) -> dict[str, Seen]:
    return watched({name: (hostile, arguments) for name, arguments in COMMANDS.items()}, hostile)


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_runs_but_the_tool(seen: dict[str, Seen], name: str) -> None:
    run = seen[name]
    assert not run.found
    assert run.status in (0, 1, 2, 3), run.said
    assert "Traceback" not in run.said


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("file", ["sap.toml", "pyproject.toml"])
def test_a_settings_file_runs_no_code(hostile: Path, tmp_path: Path, file: str, name: str) -> None:
    for needed in ("model.safetensors", "network.py", "trap.py"):
        shutil.copy(hostile / needed, tmp_path)
    text = SETTINGS[name]
    in_project = "[tool.sap]\n" + text.replace("[inspect]", "[tool.sap.inspect]")
    (tmp_path / file).write_text(text if file == "sap.toml" else in_project)
    (run,) = watched({name: (tmp_path, ("inspect", "model.safetensors"))}, tmp_path).values()
    assert not run.found
    assert run.status in (0, 1, 2), run.said


def test_settings_of_matplotlib_run_nothing(original: Project, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(original.folder, folder)
    (folder / "matplotlibrc").write_text(f"text.usetex: True\ntext.latex.preamble: {MARK}\n")
    (run,) = watched({"project": (folder, COMMANDS["project"])}, folder).values()
    assert not run.found
    assert run.status == 0, run.said


WORK = ("project", "eval", "verify", "suspects", "report", "select", "activations", "images of many formats")


@pytest.mark.parametrize("name", WORK)
def test_the_commands_did_their_work(seen: dict[str, Seen], name: str) -> None:
    assert seen[name].status == 0, seen[name].said
