"""Whole commands on anything: random folders of files that are nearly right, random options, a random environment.

Whatever they are given, they end with a status of their own and without a traceback, leave every file as it was that
they were not told to write, and nothing in the folder of temporary files. `make test-faults` runs 2,000 examples, which
is the profile `thorough` of `tests/conftest.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.small_project import Project, run_here

from sapcli.commands.app import app
from sapcli.machine.files import remove_unfinished

_MORE_MEMORY = 8 << 30

OUTPUTS = ("out.safetensors", "out.json", "out.html", "out.md", "out.csv", "out.txt")

NUMBERS = (
    "0",
    "1",
    "9",
    "30",
    "-1",
    "1e3",
    "1e400",
    "nan",
    "inf",
    "9" * 400,
    "99999999999999999999",
    "0x10",
    "",
    "1,2",
)
TEXTS = (
    "",
    " ",
    "\x00",
    "\n",
    "é\u202e",
    "\udcff",
    "../..",
    "-",
    "--",
    "train",
    "network.py:tiny",
    "a" * 300,
    "[bold]",
    "%s",
)
FILES = (
    *("model.safetensors", "model.pth", "model.safetensors.index.json", "data", "data/train", "data/val", "data.tar"),
    *("labels.csv", "list.txt", "trusted.jsonl", "config.json", "map.json", "network.py", "good.sap.safetensors"),
    *("report.json", "given.safetensors", "nowhere", "nowhere/at/all", ".", "-", "/dev/null", "loop", "empty"),
)
SWITCHES = ("--force", "--quiet", "--verbose", "--dry-run", "--strict-images", "--keep-classifier", "--all-rows")
CHOICES = {
    "--format": ("json", "csv", "table", "paths", "jsonl", "md"),
    "--split": ("train", "val", "test"),
    "--strategy": ("lowest", "class-balanced"),
    "--batchnorm": ("keep", "update"),
    "--importance": ("sap", "gpm"),
    "--precision": ("float32", "auto"),
    "--apply": ("csv", "links"),
    "--interpolation": ("bilinear", "bicubic"),
    "--device": ("cpu", "cuda:99", "auto"),
}
WITH_NUMBER = (
    *("-n", "--alpha", "--batch-size", "--seed", "--crop-pct", "--input-size", "--mean", "--std", "--min-score"),
    *("--min-accuracy", "--require-gain"),
)
WITH_TEXT = ("--layers", "--skip-layers", "--arch", "--arch-arg")
WITH_FILE = ("--val", "--labels", "--class-map", "--trusted", "--bases", "--baseline", "--forget", "--input", "--truth")
WITH_OUTPUT = ("-o", "--report", "--summary", "--html", "--apply-to")
COMMANDS = ("project", "eval", "select", "activations", "inspect", "verify", "suspects", "report", "config")

USUAL = {
    "-n": ("9", "4"),
    "--alpha": ("auto", "300", "100,3000"),
    "--batch-size": ("1", "5"),
    "--seed": ("0", "7"),
    "--crop-pct": ("1", "0.9"),
    "--input-size": ("3,8,8", "8"),
    "--mean": ("0.5", "0.4,0.5,0.6"),
    "--std": ("0.5",),
    "--min-score": ("0", "0.5"),
    "--min-accuracy": ("0", "100"),
    "--require-gain": ("0", "50"),
    "--layers": ("4", "0"),
    "--skip-layers": ("4",),
    "--arch-arg": ("num_classes=3", "a=1"),
    "--arch": ("network.py:tiny", "resnet18"),
    "--val": ("data/val", "data"),
    "--labels": ("labels.csv",),
    "--class-map": ("map.json",),
    "--truth": ("labels.csv",),
    "--trusted": ("trusted.jsonl", "data/train"),
    "--bases": ("given.safetensors",),
    "--input": ("model.safetensors",),
    "--baseline": ("model.safetensors",),
    "--forget": ("trusted.jsonl", "data/val"),
}
PROGRAM = typer.main.get_command(app)

number, text, file = st.sampled_from(NUMBERS) | st.integers().map(str), st.sampled_from(TEXTS), st.sampled_from(FILES)
JSON = st.recursive(
    st.integers() | st.floats() | st.booleans() | st.none() | st.text(max_size=5) | st.sampled_from(TEXTS[:3]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def options_of(command: str) -> list[str]:
    """The options of these tests that a command has."""
    has = {name for parameter in PROGRAM.commands[command].params for name in parameter.opts}  # type: ignore[attr-defined]
    return sorted(has & {*SWITCHES, *CHOICES, *WITH_NUMBER, *WITH_TEXT, *WITH_FILE, *WITH_OUTPUT})


def option(command: str) -> st.SearchStrategy[tuple[str, ...]]:
    """An option, mostly one that the command has, with a value of its kind, mostly a usual one."""
    return with_a_value(st.sampled_from(options_of(command) or ["--quiet"])) | with_a_value(
        st.sampled_from([*SWITCHES, *CHOICES, *WITH_NUMBER, *WITH_TEXT, *WITH_FILE, *WITH_OUTPUT])
    )


def with_a_value(names: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    def values(name: str) -> st.SearchStrategy[tuple[str, ...]]:
        if name in SWITCHES:
            return st.just((name,))
        if name in CHOICES:
            return st.tuples(st.just(name), st.sampled_from(CHOICES[name]))
        if name in WITH_OUTPUT:
            return st.tuples(st.just(name), st.sampled_from(OUTPUTS))
        any_value = number if name in WITH_NUMBER else text if name in WITH_TEXT else file
        usual = st.sampled_from(USUAL[name])
        return st.tuples(st.just(name), st.one_of(usual, usual, any_value))

    return names.flatmap(values)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with its arguments: mostly those that it needs, beside options that it may not have."""
    command = draw(st.sampled_from(COMMANDS))
    needs = {
        "report": ["report.json"],
        "config": [],
        "inspect": ["model.safetensors"],
        "verify": ["good.sap.safetensors"],
    }
    arguments = list(needs.get(command, ["model.safetensors", "data"]))
    for place in range(len(arguments)):
        if draw(st.integers(0, 5)) == 0:
            arguments[place] = draw(file)
    needs_network = command not in {"report", "config"}
    network = ["--arch", "network.py:tiny"] if needs_network and draw(st.integers(0, 9)) else []
    count = ["-n", "9"] if command in {"project", "select", "activations"} and draw(st.integers(0, 5)) else []
    options = [part for parts in draw(st.lists(option(command), max_size=3)) for part in parts]
    return [command, *arguments, *network, *count, *options]


@dataclass(frozen=True)
class Change:
    """What is done to a file of the project: cut, overwritten in the middle, or replaced."""

    name: str
    kind: str
    content: bytes
    place: int

    def apply(self, folder: Path) -> None:
        """Do it to the project in `folder`."""
        path = folder / self.name
        if self.kind == "removed":
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return
        if path.is_dir():
            path = next((inner for inner in sorted(path.rglob("*")) if inner.is_file()), path / "new")
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_bytes() if path.exists() else b""
        middle = self.place % (len(before) + 1)
        path.write_bytes(
            {
                "cut": before[:middle],
                "overwritten": before[:middle] + self.content + before[middle + len(self.content) :],
                "replaced": self.content,
            }[self.kind]
        )


def changes() -> st.SearchStrategy[Change]:
    """Damage, and other content of the right form."""
    names = st.sampled_from(
        [name for name in FILES if name[0] not in "-/." and not name.startswith(("nowhere", "loop"))]
    )
    objects = JSON.map(lambda value: json.dumps(value).encode())
    return st.builds(
        Change,
        name=names | st.sampled_from(["sap.toml", "pyproject.toml", "data/train/blue/00.png"]),
        kind=st.sampled_from(["cut", "overwritten", "replaced", "removed"]),
        content=st.binary(max_size=12)
        | objects
        | st.text(max_size=20).map(lambda value: value.encode(errors="replace")),
        place=st.integers(0, 4000),
    )


ENVIRONMENTS = st.dictionaries(
    st.sampled_from(
        [
            *(
                "SAP_ALPHA",
                "SAP_BATCH_SIZE",
                "SAP_SEED",
                "SAP_ARCH",
                "SAP_FORMAT",
                "SAP_LABELS",
                "SAP_QUIET",
                "SAP_DEVICE",
            ),
            *("COLUMNS", "NO_COLOR", "GITHUB_ACTIONS", "LC_ALL", "FORCE_COLOR", "TERM"),
        ]
    ),
    st.sampled_from([*(value for value in NUMBERS if value), "true", "cpu", "C", "dumb", "labels.csv", "\udcff"]),
    max_size=2,
)


@pytest.fixture(scope="module")
def template(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small project with every kind of input, of a few images."""
    folder = tmp_path_factory.mktemp("template") / "project"
    shutil.copytree(original.folder, folder)
    for split in ("train", "val"):
        for name in ("blue", "green", "red"):
            for image in sorted((folder / "data" / split / name).iterdir())[8:]:
                image.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        repair = run_here(
            *("project", "model.safetensors", "data", "--arch", "network.py:tiny", "-n", "9", "--workers", "0"),
            *("-o", "good.sap.safetensors", "--report", "report.json", "--cache-dir", folder.parent / "cache"),
        )
        assert repair.status == 0, repair.stderr
        bases = run_here(
            *("activations", "model.safetensors", "data", "--arch", "network.py:tiny", "-n", "9", "--workers", "0"),
            *("-o", "given.safetensors", "--cache-dir", folder.parent / "cache"),
        )
        assert bases.status == 0, bases.stderr
    weights = load_file(folder / "model.safetensors")
    torch.save({"state_dict": weights, "epoch": 3}, folder / "model.pth")
    save_file(weights, folder / "shard.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "shard.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"label_names": ["blue", "green", "red"]}))
    (folder / "labels.csv").write_text("path,label\ntrain/blue/00.png,red\ntrain/green/01.png,1\n")
    (folder / "list.txt").write_text("data/train/blue/00.png\ndata/train/green/00.png\ndata/train/red/00.png\n")
    (folder / "trusted.jsonl").write_text("".join(json.dumps({"index": index}) + "\n" for index in range(9)))
    (folder / "map.json").write_text(json.dumps({"blue": 0, "green": 1, "red": 2}))
    with tarfile.open(folder / "data.tar", "w") as archive:
        archive.add(folder / "data" / "train", "train")
    (folder / "loop").symlink_to("loop")
    (folder / "empty").touch()
    return folder


@pytest.fixture
def quiet_numbers() -> Iterator[None]:
    """Random weights make random warnings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def files_in(folder: Path) -> dict[str, bytes | None]:
    """The content of every file below a folder, `None` for what is no file."""
    paths = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in paths
        if "__pycache__" not in path.parts
    }


def may_be_written(name: str, arguments: list[str]) -> bool:
    """Whether a command line names a file as its output, or it has the name that the output has by itself."""
    named = {value for key, value in itertools.pairwise(arguments) if key in WITH_OUTPUT}
    if arguments[0] == "activations" and name == "bases.safetensors":
        return True
    # A file, or an index and shards whose names tell their content.
    usual = ".sap" in name or re.search(r"\.[0-9a-f]{12}\.safetensors$", name) is not None
    by_itself = usual and arguments[0] == "project" and name not in FILES
    corrected = "--apply" in arguments and name.split("/")[0] in {"corrected", "corrected.csv"}
    shards = any(name.startswith(value.removesuffix(".safetensors")) for value in named)
    return by_itself or corrected or shards or name.split("/")[0] in named


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """No more memory than this: what asks for it gets the error of two lines that a lack of memory is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MORE_MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@given(arguments=command_lines(), damage=st.lists(changes(), max_size=2), environment=ENVIRONMENTS)
@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.filterwarnings("ignore")
def test_any_command_on_any_files(
    template: Path,
    tmp_path_factory: pytest.TempPathFactory,
    quiet_numbers: None,
    arguments: list[str],
    damage: list[Change],
    environment: dict[str, str],
) -> None:
    place = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
    folder, temporary = place / "project", place / "temporary"
    shutil.copytree(template, folder, symlinks=True, copy_function=link_or_copy)
    temporary.mkdir()
    for change in damage:
        path = folder / change.name
        if path.is_file():
            content = path.read_bytes()  # a file of the folder's own, in the place of the link
            path.unlink()
            path.write_bytes(content)
        elif path.is_dir():
            shutil.rmtree(path)
            shutil.copytree(template / change.name, path)
        change.apply(folder)
    before = files_in(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setenv("SAP_CACHE", str(place / "cache"))
        patch.setenv("SAP_WORKERS", "0")
        for name, value in environment.items():
            patch.setenv(name, value)
        outcome = run_here(*arguments)
    remove_unfinished()
    event(f"{arguments[0]} ends with {outcome.status}")
    told = f"{arguments} {environment} {damage}\n{outcome.stderr}"
    assert outcome.status in (0, 1, 2, 3), told
    assert "Traceback" not in outcome.stderr, told
    after = files_in(folder)
    for name in before.keys() | after.keys():
        if before.get(name, b"") != after.get(name, b"") or (name in before) != (name in after):
            assert may_be_written(name, arguments), f"{name} was changed: {told}"
            assert name not in before or "--force" in arguments or "--summary" in arguments, f"{name}: {told}"
    assert not list(temporary.iterdir()), told
    shutil.rmtree(place)


def link_or_copy(source: str, destination: str) -> object:
    """Another name of the same file, as long as nothing is written through it."""
    os.link(source, destination)
    return destination


def test_the_template_is_right(template: Path) -> None:
    for name in ("model.safetensors", "model.pth", "model.safetensors.index.json"):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(template)
            outcome = run_here("inspect", name, "--arch", "network.py:tiny")
        assert outcome.status == 0, outcome.stderr
