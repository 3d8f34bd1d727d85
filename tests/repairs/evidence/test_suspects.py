"""Suspects: their ranking, how well they find wrong labels, and the labels that come of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from support.data_folders import label_of, opened, write_classes

from sapcli.activations.scoring import Outcomes
from sapcli.datasets.dataset import Dataset
from sapcli.errors import DatasetError
from sapcli.repairs.evidence.suspects import (
    Suspect,
    area_under_curve,
    corrected_labels,
    link_corrected,
    measure_detection,
    rank_suspects,
    read_truth,
    render_labels,
    render_suspects,
)
from sapcli.reports.pages import contact_sheet
from sapcli.settings import SuspectsFormat


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """bird/0, bird/1, cat/0, cat/1, dog/0, dog/1."""
    return opened(write_classes(tmp_path / "data"))


@pytest.fixture
def outcomes() -> Outcomes:
    """Of the third, unreadable, nothing; bird/1 looks like a dog and dog/0 very much like a cat."""
    return Outcomes(
        indices=torch.tensor([0, 1, 3, 4, 5]),
        labels=torch.tensor([0, 0, 1, 2, 2]),
        losses=torch.tensor([0.1, 1.5, 0.9, 4.0, 0.2]),
        predictions=torch.tensor([0, 2, 1, 1, 2]),
        confidences=torch.tensor([0.9, 0.6, 0.4, 0.9, 0.8]),
        ranks=torch.tensor([0, 1, 0, 2, 0]),
        ties=torch.ones(5, dtype=torch.int64),
    )


def test_the_samples_that_the_model_contradicts_come_by_descending_loss(dataset: Dataset, outcomes: Outcomes) -> None:
    assert rank_suspects(dataset, outcomes) == (
        Suspect("dog/0.png", "dog", "cat", 4.0),
        Suspect("bird/1.png", "bird", "dog", 1.5),
    )


def test_the_list_can_be_cut_by_number_and_by_score(dataset: Dataset, outcomes: Outcomes) -> None:
    assert [suspect.path for suspect in rank_suspects(dataset, outcomes, count=1)] == ["dog/0.png"]
    assert [suspect.path for suspect in rank_suspects(dataset, outcomes, min_score=2)] == ["dog/0.png"]


def test_detection_counts_only_samples_with_a_known_truth(dataset: Dataset, outcomes: Outcomes) -> None:
    truth = {"bird/0.png": 0, "bird/1.png": 0, "cat/1.png": 0, "dog/0.png": 1}
    detection = measure_detection(dataset, outcomes, rank_suspects(dataset, outcomes), truth)
    assert (detection.samples, detection.wrong, detection.found) == (4, 2, 1)
    assert (detection.precision, detection.recall) == (0.5, 0.5)
    assert detection.area == 0.75  # of the pairs (0.9, 4.0) x (0.1, 1.5), all but one are in order


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [
        ([1, 2, 3, 4], [False, False, True, True], 1.0),
        ([4, 3, 2, 1], [False, False, True, True], 0.0),
        ([1, 1, 1, 1], [False, True, False, True], 0.5),
        ([1, 2, 2, 3], [False, False, True, True], 0.875),
    ],
)
def test_the_area_under_the_curve_is_the_chance_of_a_pair_in_order(
    scores: list[float], positive: list[bool], area: float
) -> None:
    assert area_under_curve(torch.tensor(scores, dtype=torch.float32), torch.tensor(positive)) == area


def test_there_is_no_area_without_both_kinds() -> None:
    assert math.isnan(area_under_curve(torch.ones(3), torch.zeros(3, dtype=torch.bool)))


def test_the_truth_may_be_written_from_the_split_on_and_tell_of_other_images(tmp_path: Path) -> None:
    dataset = opened(write_classes(tmp_path / "data" / "train").parent)
    file = tmp_path / "truth.csv"
    file.write_text("path,given,true\ntrain/cat/0.png,cat,dog\ndog/1.png,dog,dog\ntest/dog/9.png,dog,dog\n")
    assert read_truth(file, dataset) == {"train/cat/0.png": 2, "train/dog/1.png": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [("path,true\ncat/0.png,horse\n", "line 2: 'horse'"), ("path,true\nelsewhere.png,cat\n", "none of the 6 images")],
)
def test_a_truth_of_other_data_is_an_error(tmp_path: Path, dataset: Dataset, content: str, message: str) -> None:
    file = tmp_path / "truth.csv"
    file.write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_truth(file, dataset)


def test_the_list_is_written_in_four_forms() -> None:
    suspects = [Suspect("a,b.png", "cat", "dog", 1.5)]
    lines = render_suspects(suspects * 2, SuspectsFormat.JSONL)
    assert json.loads(render_suspects(suspects * 2, SuspectsFormat.JSON)) == list(map(json.loads, lines.splitlines()))
    assert json.loads(render_suspects([], SuspectsFormat.JSON)) == []
    assert json.loads(render_suspects(suspects, SuspectsFormat.JSONL)) == {
        "path": "a,b.png",
        "given": "cat",
        "suggested": "dog",
        "score": 1.5,
    }
    assert render_suspects(suspects, SuspectsFormat.CSV) == 'path,given,suggested,score\n"a,b.png",cat,dog,1.5\n'
    assert render_suspects(suspects, SuspectsFormat.PATHS) == "a,b.png\n"


def test_corrected_labels_are_a_label_file_for_the_same_data(tmp_path: Path, dataset: Dataset) -> None:
    labels = corrected_labels(dataset, [Suspect("dog/0.png", "dog", "cat", 4.0)])
    file = tmp_path / "corrected.csv"
    file.write_text(render_labels(labels))
    corrected = opened(dataset.root, labels=file)
    assert corrected.paths == dataset.paths
    assert label_of(corrected, "dog/0.png") == "cat"
    assert [label_of(corrected, path) for path in dataset.paths if path != "dog/0.png"] == [
        label_of(dataset, path) for path in dataset.paths if path != "dog/0.png"
    ]


def test_links_are_a_data_folder_with_the_corrected_labels(tmp_path: Path, dataset: Dataset) -> None:
    folder = tmp_path / "corrected"
    link_corrected(dataset, corrected_labels(dataset, [Suspect("dog/0.png", "dog", "cat", 4.0)]), folder)
    corrected = opened(folder)
    assert len(corrected.paths) == len(dataset.paths)
    assert label_of(corrected, "cat/dog-0.png") == "cat"
    assert (folder / "cat" / "dog-0.png").resolve() == (dataset.root / "dog" / "0.png").resolve()
    with pytest.raises(DatasetError, match="not empty"):
        link_corrected(dataset, {}, folder)


def test_links_never_leave_their_folder_by_the_name_of_a_class(tmp_path: Path, dataset: Dataset) -> None:
    named = Dataset(dataset.root, None, ("../out", "cat", "dog"), dataset.paths, dataset.labels)
    with pytest.raises(DatasetError, match="name of a folder"):
        link_corrected(named, corrected_labels(named, []), tmp_path / "corrected")
    assert not (tmp_path / "out").exists()


def test_a_contact_sheet_escapes_names_and_survives_missing_images(dataset: Dataset) -> None:
    suspects = [Suspect("dog/0.png", "<u>dog</u>", "cat", 4.0), Suspect('"><script>', "cat", "dog", 1.0)]
    page = contact_sheet(dataset.root, "model<i>", 6, suspects)
    assert "data:image/jpeg;base64," in page
    assert "unreadable" in page
    assert "<script" not in page
    assert "<u>dog" not in page
    assert "model&lt;i&gt;" in page
