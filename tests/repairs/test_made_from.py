"""Artifacts and what they were made from: nothing of other data, code or preprocessing is used without a word."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from support.small_project import Project, make_project, run_here

import sapcli.datasets.file_digests
from sapcli.repairs import artifact_files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A trained project; not to be changed."""
    return make_project(tmp_path_factory.mktemp("made"))


@pytest.fixture
def project(made: Project, tmp_path: Path) -> Project:
    return Project(Path(shutil.copytree(made.folder, tmp_path / "project")))


def options(project: Project) -> tuple[str, ...]:
    return ("--arch", f"{project.folder}/network.py:tiny", "-n", "30", "--workers", "0")


def selected(project: Project, data: Path, cache: Path, *more: str) -> tuple[bytes, str]:
    """What `sap select` finds in the data, and what it says."""
    # As another process would: with nothing in memory.
    sapcli.datasets.file_digests._remembered.clear()
    ended = run_here("select", project.checkpoint, data, *options(project), "--cache-dir", cache, *more)
    assert ended.status == 0, ended.stderr
    return ended.stdout, ended.stderr


# The cache


def bitmaps(data: Path) -> None:
    """The images as uncompressed files, which have one size."""
    for path in data.rglob("*.png"):
        Image.open(path).convert("RGB").save(path.with_suffix(".bmp"))
        path.unlink()


def exchange(data: Path) -> None:
    """Have some training images of two classes change places, size, names and times staying.

    Too few for the classes themselves to look exchanged.
    """
    red, green = data / "train/red", data / "train/green"
    for first in sorted(red.iterdir())[:12]:
        second = green / first.name
        times = [(path.stat().st_atime_ns, path.stat().st_mtime_ns) for path in (first, second)]
        contents = first.read_bytes(), second.read_bytes()
        for path, content, time in zip((second, first), contents, reversed(times), strict=True):
            path.write_bytes(content)
            os.utime(path, ns=time)


def as_it_is(data: Path) -> Path:
    return data


def packed(data: Path) -> Path:
    """A reproducible archive of the data, all its times 0."""
    archive = data.with_name("data.tar")
    with tarfile.open(archive, "w") as file:
        for path in sorted(data.rglob("*.bmp")):
            member = file.gettarinfo(path, str(path.relative_to(data)))
            member.mtime = 0
            with path.open("rb") as content:
                file.addfile(member, content)
    os.utime(archive, ns=(0, 0))
    return archive


def copied(data: Path) -> Path:
    """As `rsync -t` would: in one place, again and again, with the times of the source."""
    place = data.with_name("copy")
    shutil.copytree(data, place, dirs_exist_ok=True)
    for path in place.rglob("*.bmp"):
        os.utime(path, ns=(0, 0))
    return place


@pytest.mark.parametrize("given", [as_it_is, packed, copied])
def test_other_images_under_the_same_names_sizes_and_times(
    project: Project, tmp_path: Path, given: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sapcli.datasets.file_digests, "_SETTLED_NS", 0)
    bitmaps(project.data)
    first, _ = selected(project, given(project.data), tmp_path / "used")
    again, said = selected(project, given(project.data), tmp_path / "used")
    assert again == first
    assert "from the cache" in said
    exchange(project.data)
    wanted, _ = selected(project, given(project.data), tmp_path / "fresh")
    found, said = selected(project, given(project.data), tmp_path / "used")
    assert "from the cache" not in said
    assert found == wanted != first


@pytest.mark.parametrize("package", ["torch", "timm", "torchvision", "pillow", "numpy"])
def test_other_versions_of_what_computes_make_everything_anew(
    project: Project, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    selected(project, project.data, tmp_path / "cache")
    versions = artifact_files.library_versions("timm")
    assert package in versions
    monkeypatch.setattr(artifact_files, "library_versions", lambda _library: {**versions, package: "0.0"})
    _, said = selected(project, project.data, tmp_path / "cache")
    assert "from the cache" not in said


def test_the_treatment_of_the_exif_orientation_is_part_of_the_key(project: Project, tmp_path: Path) -> None:
    selected(project, project.data, tmp_path / "cache")
    assert "from the cache" not in selected(project, project.data, tmp_path / "cache", "--exif", "apply")[1]
    assert "from the cache" in selected(project, project.data, tmp_path / "cache", "--exif", "ignore")[1]


# Bases


@pytest.fixture
def bases(project: Project) -> Path:
    file = project.folder / "bases.safetensors"
    ended = run_here("activations", project.checkpoint, project.data, *options(project), "-o", file)
    assert ended.status == 0, ended.stderr
    return file


def projected(project: Project, bases: Path, *more: str) -> tuple[int, list[str]]:
    """The status of a repair with given bases, and what is said of them."""
    output = project.folder / "out.safetensors"
    ended = run_here(
        *("project", project.checkpoint, project.data, *options(project), "--bases", bases, "--alpha", "1000"),
        *("-o", output, *more),
    )
    said = [line for line in ended.stderr.splitlines() if line.startswith(("warning:", "error:"))]
    return ended.status, [line for line in said if str(bases) in line]


def test_bases_of_the_same_run_say_nothing(project: Project, bases: Path) -> None:
    assert projected(project, bases) == (0, [])
    with safe_open(bases, "pt") as file:
        origin = json.loads(file.metadata()["sap.origin"])
    assert origin["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert len(origin["data"]) == 64


@pytest.mark.parametrize("given", [("--mean", "0.4"), ("--crop-pct", "0.5"), ("--exif", "apply"), ("--std", "0.5")])
def test_bases_of_other_preprocessing_are_refused(project: Project, bases: Path, given: tuple[str, ...]) -> None:
    status, (line,) = projected(project, bases, *given)
    assert status == 1
    assert "prepared in another way" in line
    assert given[0].removeprefix("--").replace("-", "_") in line


def test_bases_of_other_images_are_warned_of(project: Project, bases: Path) -> None:
    path = project.data / "train/red/00.png"
    Image.open(path).rotate(90).save(path)
    status, (line,) = projected(project, bases)
    assert status == 0
    assert "other training images, labels or classes" in line


def test_bases_of_other_labels_are_warned_of(project: Project, bases: Path) -> None:
    labels = project.folder / "labels.csv"
    labels.write_text("path,label\ntrain/red/00.png,green\n")
    status, (line,) = projected(project, bases, "--labels", str(labels))
    assert status == 0
    assert "other training images, labels or classes" in line


def test_bases_of_other_code_are_warned_of(project: Project, bases: Path) -> None:
    network = project.folder / "network.py"
    network.write_text(network.read_text().replace("nn.ReLU()", "nn.GELU()"))
    status, (line,) = projected(project, bases)
    assert status == 0
    assert "other code" in line


def test_bases_of_before_they_said_so_are_used_with_a_warning(project: Project, bases: Path) -> None:
    with safe_open(bases, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    del metadata["sap.origin"]
    save_file(tensors, bases, metadata | {"sap.format": "sap.bases/1"})
    status, (line,) = projected(project, bases)
    assert status == 0
    assert "cannot be checked" in line


@pytest.mark.parametrize("origin", ["[]", "{", "{}", '{"preprocessing": 1, "code": "", "data": ""}'])
def test_bases_with_a_senseless_origin_are_damaged(project: Project, bases: Path, origin: str) -> None:
    with safe_open(bases, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, bases, metadata | {"sap.origin": origin})
    status, (line,) = projected(project, bases)
    assert status == 1
    assert "cannot be read as bases" in line


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("sap.gains", '{"4.weight": "4.weight"}'),
        ("sap.gains", '{"4.weight": "0.weight", "0.weight": "4.weight"}'),
        ("sap.gains", '{"1.weight": "none.weight"}'),
        ("sap.weights", "[" * 100_000),
        ("sap.facts", '{"a":' * 100_000),
    ],
)
def test_bases_that_follow_themselves_or_are_nested_deeply(project: Project, bases: Path, key: str, text: str) -> None:
    with safe_open(bases, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, bases, metadata | {key: text})
    status, (line,) = projected(project, bases)
    assert status == 1
    assert "cannot be read as bases" in line
