"""Every row of the tables of forms in docs/inputs.md: made and given as is written there, with the result there."""

from __future__ import annotations

import collections
import csv
import gzip
import importlib
import io
import json
import os
import pickle
import re
import shlex
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from support.small_project import run_here

DOCUMENT = Path(__file__).parents[2] / "docs" / "inputs.md"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SYNSETS = tuple(f"n{2000000 + 1000 * number:08}" for number in range(10))
# What a line may use that is not part of the project's own set-up.
_OPTIONAL = ("datasets", "huggingface_hub", "lightning", "pandas", "pyarrow", "scipy", "transformers")
_MODULES = {
    module.__name__.rpartition(".")[2]: module
    for module in (collections, csv, gzip, io, json, os, pickle, re, shutil, tarfile, zipfile, timm, torch, Image)
}


@dataclass(frozen=True)
class Form:
    """A row: what it is, the line of Python that makes it, the command, and `yes` or a part of the hint."""

    name: str
    code: str
    command: str
    result: str


def forms() -> Iterator[Form]:
    """The rows of the tables under the heading about forms."""
    section = DOCUMENT.read_text().partition("\n## Every form\n")[2]
    for line in section.splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[2].startswith("`sap "):
            name, code, command, result = cells
            yield Form(name, code.strip("`"), command.strip("`"), result.strip("`"))


FORMS = tuple(forms())


def pictures(seed: int, count: int) -> tuple[np.ndarray, list[int]]:
    """Images of noise, each class with a colour of its own, and their classes in no order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % len(NAMES)).tolist()
    colours = np.random.default_rng(0).integers(0, 255, (len(NAMES), 1, 1, 3))
    images = np.clip(colours[labels] + generator.normal(0, 50, (count, 32, 32, 3)), 0, 255).astype(np.uint8)
    return images, labels


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that docs/inputs.md describes above the tables."""
    folder = tmp_path_factory.mktemp("prepared")
    for split, (seed, count) in {"train": (1, 30), "val": (2, 20), "test": (3, 20)}.items():
        for number, (pixels, label) in enumerate(zip(*pictures(seed, count), strict=True)):
            place = folder / "data" / split / NAMES[label] / f"{number:04}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)
            if split == "test":
                (folder / "flat").mkdir(exist_ok=True)
                shutil.copy(place, folder / "flat")
    save_file(network().state_dict(), folder / "model.safetensors")
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=10)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        module.get_classifier().weight *= 5
    return module.eval()


@pytest.fixture(scope="module")
def expected(prepared: Path) -> Mapping[str, float]:
    """What `sap eval` says of the test images in class folders."""
    return measured("eval", "model.safetensors", "data/test", folder=prepared)


def measured(*arguments: str, folder: Path) -> Mapping[str, float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        outcome = run_here(*arguments, "--format", "json", "--workers", "0")
    assert outcome.status == 0, outcome.stderr
    return {key: json.loads(outcome.stdout)[key] for key in ("images", "top1", "loss")}


def make(code: str) -> None:
    """Run a line of the table in the working folder."""
    images, labels = pictures(3, 20)
    names: dict[str, object] = {
        **_MODULES,
        "np": np,
        "Path": Path,
        "images": images,
        "labels": labels,
        "names": list(NAMES),
        "synsets": list(SYNSETS),
        "files": sorted(path.as_posix() for path in Path("flat").iterdir()),
        "model": network(),
    }
    for module in _OPTIONAL:
        if re.search(rf"\b{module}\b", code):
            found = pytest.importorskip(module)
            names[module] = found
            if found.__file__ is None:  # Only a folder of that name: the tests' own `datasets`.
                pytest.skip(f"{module} is not installed")
            if module == "scipy":
                importlib.import_module("scipy.io")
            if module == "pyarrow":
                importlib.import_module("pyarrow.parquet")
    exec(code, names)


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_every_form(
    form: Form, prepared: Path, expected: Mapping[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make(form.code)
    command = shlex.split(form.command)[1:]
    if form.result == "yes" and command[0] == "eval":
        assert measured(*command, folder=folder) == pytest.approx(dict(expected), abs=1e-4)
        return
    outcome = run_here(*command, "--workers", "0")
    if form.result == "yes":
        assert outcome.status == 0, outcome.stderr
    else:
        assert outcome.status in (1, 2), outcome.stderr
        assert form.result in " ".join(outcome.stderr.split())
        assert len(outcome.stderr.rstrip().rpartition("error: ")[2].splitlines()) == 2


def test_there_are_many() -> None:
    assert len(FORMS) >= 60
    assert len({form.name for form in FORMS}) == len(FORMS)
