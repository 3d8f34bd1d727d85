"""The study at its smallest size: every kind of noise and every method, on one small network."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.study.cells import NOISES, PRESETS
from benchmarks.study.methods import METHODS
from benchmarks.study.tables import write_tables

ROOT = Path(__file__).resolve().parents[2]
NAMES = {method.name for method in METHODS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, after it has run."""
    folder = tmp_path_factory.mktemp("study")
    command = [sys.executable, "-m", "benchmarks.study", "--preset", "tiny", "--folder", str(folder), "--jobs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, "--device", "cpu"], cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return folder / "tiny"


def results(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    return {
        cell.noise: json.loads((folder / cell.name / "result.json").read_text())["methods"]
        for cell in PRESETS["tiny"].cells
    }


def test_every_method_ends_well_on_every_noise(folder: Path) -> None:
    found = results(folder)
    assert set(found) == set(NOISES)
    for noise, methods in found.items():
        failed = {name: method["error"] for name, method in methods.items() if "error" in method}
        assert not failed, noise
        # Training on right labels is the same as training where none is wrong; the best recipe is tried once.
        limits = {method.name for method in METHODS if method.limit}
        assert NAMES - limits <= set(methods), noise
        assert all(math.isfinite(method["test"]) for method in methods.values()), noise
    assert limits <= set(found["symmetric-25"])


def test_the_repair_gains_where_labels_are_wrong_at_random(folder: Path) -> None:
    methods = results(folder)["symmetric-25"]
    assert methods["project"]["test"] > methods["unchanged"]["test"]
    assert methods["polish"]["test"] > methods["unchanged"]["test"]
    assert methods["polish"]["area of suspects"] > methods["unchanged"]["area of suspects"]


def test_the_tables_hold_every_cell(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tables.md"
    write_tables(PRESETS["tiny"], folder, file)
    text = file.read_text()
    assert text.count("| tiny_convolutions, ") >= 3 * len(NOISES)
    assert f"**Not run**: 0 of {len(NOISES)} cells" in text
    unchanged = results(folder)["symmetric-50"]["unchanged"]["test"]
    assert f"| tiny_convolutions, symmetric-50, plain | {unchanged:.1f} |" in text
