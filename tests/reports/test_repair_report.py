"""The report of a repair: its numbers, and what `sap project --report` and `sap report` write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.digits import SIZES, Trained
from support.processes import sap

from sapcli.activations.scoring import Outcomes
from sapcli.repairs.alpha_search import Evidence
from sapcli.reports.repair_report import confusion, cumulative_energy, wilson
from sapcli.reports.schema import from_json

COUNT = ("-n", "60")


def _outcomes(labels: list[int], predictions: list[int]) -> Outcomes:
    count = len(labels)
    return Outcomes(
        torch.arange(count),
        torch.tensor(labels),
        torch.ones(count),
        torch.tensor(predictions),
        torch.ones(count),
        torch.zeros(count, dtype=torch.int64),
        torch.ones(count, dtype=torch.int64),
    )


def test_wilsons_interval_is_that_of_the_literature() -> None:
    # Newcombe, Statistics in Medicine 1998, table I: 81 of 263 and 0 of 20.
    estimate = wilson(81 / 263, 263)
    assert (round(estimate.low, 2), round(estimate.high, 2)) == (25.53, 36.62)
    estimate = wilson(0.0, 20)
    assert (round(estimate.low, 2), round(estimate.high, 2)) == (0.0, 16.11)


def test_a_confusion_matrix_counts_labels_by_row() -> None:
    before = _outcomes([0, 0, 1, 2], [0, 1, 1, 0])
    after = _outcomes([0, 0, 1, 2], [0, 0, 1, 2])
    found = confusion(before, after, ("a", "b", "c"))
    assert found.labels == found.predictions == ("a", "b", "c")
    assert found.before == ((1, 1, 0), (0, 1, 0), (1, 0, 0))
    assert found.after == ((2, 0, 0), (0, 1, 0), (0, 0, 1))


def test_of_many_classes_those_with_errors_are_shown_and_the_others_share_a_column() -> None:
    labels = list(range(40)) * 2
    predictions = [label if label % 2 else (label + 1) % 40 for label in labels]
    found = confusion(_outcomes(labels, predictions), _outcomes(labels, labels), tuple(map(str, range(40))))
    assert found.labels == tuple(map(str, range(0, 40, 2)))
    assert found.predictions == (*found.labels, "others")
    assert all(sum(row) == 2 for row in (*found.before, *found.after))
    assert all(row[-1] == 2 for row in found.before)


def test_directions_are_counted_up_to_99_percent_of_the_energy() -> None:
    directions, spectrum = cumulative_energy(torch.tensor([[0.98, 0.015, 0.005, 0.0], [0.5, 0.5, 0.0, 0.0]]))
    assert directions == 2.0
    assert spectrum[0] == pytest.approx(0.74)
    assert spectrum[-1] == pytest.approx(1.0)


def test_a_report_tells_of_the_repair_that_was_made(noisy: Trained, tmp_path: Path) -> None:
    output, document, page = (tmp_path / name for name in ("m.safetensors", "r.json", "r.html"))
    reports = ("--report", document, "--report", page)
    ended = sap("project", noisy.checkpoint, noisy.data, *COUNT, "--alpha", "3000", "-o", output, *reports)
    assert ended.status == 0, ended.stderr
    report = from_json(document)
    assert report.changed
    assert (report.search.evidence, report.search.alpha) == (Evidence.FIXED, 3000)
    assert report.measurement is not None
    assert not report.measurement.noisy
    assert report.measurement.images == SIZES["test"]
    assert sum(map(sum, report.measurement.confusion.after)) == SIZES["test"]
    assert sum(report.losses.before) == sum(report.losses.after or ()) == SIZES["train"]
    assert sum(report.losses.trusted) == report.trusted == 60
    assert report.suspicion is not None
    assert report.suspicion.shown[0].image is not None
    assert page.stat().st_size < 3_000_000

    judged = json.loads(sap("eval", output, noisy.data, "--baseline", noisy.checkpoint).stdout)
    assert report.measurement.after.top1 == pytest.approx(judged["top1"])
    assert report.measurement.gain.value == pytest.approx(judged["gain"])

    again = sap("report", document, "-o", "-", "--format", "html")
    assert again.stdout == page.read_bytes()
    assert sap("report", document).stdout.startswith(b"## Repair of")


def test_a_report_changes_nothing_in_the_checkpoint(noisy: Trained, tmp_path: Path) -> None:
    plain, reported = tmp_path / "plain.safetensors", tmp_path / "reported.safetensors"
    arguments = ("project", noisy.checkpoint, noisy.data, *COUNT, "--alpha", "1000", "-o")
    assert sap(*arguments, plain).status == 0
    assert sap(*arguments, reported, "--report", tmp_path / "r.md").status == 0
    assert plain.read_bytes() == reported.read_bytes()
    assert load_file(plain).keys() == load_file(noisy.checkpoint).keys()


def test_a_search_is_reported_with_every_alpha(noisy: Trained, tmp_path: Path) -> None:
    document = tmp_path / "r.json"
    output = tmp_path / "m.safetensors"
    ended = sap("project", noisy.checkpoint, noisy.data, *COUNT, "-o", output, "--report", document)
    assert ended.status == 0, ended.stderr
    search = from_json(document).search
    assert search.evidence is Evidence.VALIDATION
    assert search.samples == SIZES["val"]
    assert search.unchanged is not None
    best = max(attempt.score.value for attempt in search.attempts)
    assert (search.alpha is None) == (best <= search.unchanged.value)
    assert all(attempt.score.low <= attempt.score.value <= attempt.score.high for attempt in search.attempts)


def test_without_validation_images_the_knee_is_reported(noisy: Trained, tmp_path: Path) -> None:
    shutil.copytree(noisy.data / "train", tmp_path / "data" / "train")
    document = tmp_path / "r.json"
    output = tmp_path / "m.safetensors"
    ended = sap("project", noisy.checkpoint, tmp_path / "data", *COUNT, "-o", output, "--report", document)
    assert ended.status == 0, ended.stderr
    report = from_json(document)
    assert report.search.evidence is Evidence.KNEE
    assert report.measurement is None
    assert "no held-out images" in report.verdict
    assert 0 < report.search.samples <= 60


@pytest.mark.parametrize(("name", "status"), [("report.pdf", 2), ("missing/report.html", 1), ("taken.md", 1)])
def test_a_report_that_cannot_be_written_stops_the_run_before_it_begins(
    noisy: Trained, tmp_path: Path, name: str, status: int
) -> None:
    (tmp_path / "taken.md").touch()
    output = tmp_path / "m.safetensors"
    ended = sap("project", noisy.checkpoint, noisy.data, *COUNT, "-o", output, "--report", tmp_path / name)
    assert ended.status == status
    assert len(ended.stderr.splitlines()) == 2
    assert not output.exists()
