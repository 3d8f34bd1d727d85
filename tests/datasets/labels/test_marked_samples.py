"""Lists with a yes or no for each sample: which ones are meant, for the forget set and for the trusted set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.data_folders import opened, write_classes

from sapcli.datasets.dataset import Dataset
from sapcli.datasets.labels.marked_samples import read_marked, read_mask
from sapcli.errors import DatasetError
from sapcli.repairs.selection import marked_samples


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return opened(write_classes(tmp_path / "data"))


def meant(lines: list[str], dataset: Dataset, *, wrong: bool) -> tuple[int, ...]:
    marked = read_marked(lines, "list.csv", wrong=wrong)
    assert marked is not None
    return marked_samples(marked, "list.csv", dataset).indices


ISSUES = [True, False, False, True, False, False]


@pytest.mark.parametrize(
    "header",
    [",is_label_issue,label_quality", "index,is_label_issue,label_quality", "id;is_label_issue;label_quality"],
)
def test_a_table_by_index(dataset: Dataset, header: str) -> None:
    by = ";" if ";" in header else ","
    lines = [header, *(f"{index}{by}{issue}{by}0.5" for index, issue in reversed(list(enumerate(ISSUES))))]
    assert meant(lines, dataset, wrong=True) == (0, 3)
    assert meant(lines, dataset, wrong=False) == (1, 2, 4, 5)


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("1", "0"), ("yes", "no")])
def test_a_column_keep(dataset: Dataset, yes: str, no: str) -> None:
    lines = ["path,keep", *(f"{path},{yes if index < 2 else no}" for index, path in enumerate(dataset.paths)), ""]
    assert meant(lines, dataset, wrong=False) == (0, 1)
    assert meant(lines, dataset, wrong=True) == (2, 3, 4, 5)


def test_lines_in_the_order_of_the_images(dataset: Dataset) -> None:
    assert meant(["is_label_issue", *map(str, ISSUES)], dataset, wrong=True) == (0, 3)
    with pytest.raises(DatasetError, match="has 5 lines without a path"):
        meant(["is_label_issue", *map(str, ISSUES[:5])], dataset, wrong=True)


def test_json_lines(dataset: Dataset) -> None:
    lines = [f'{{"path": "{path}", "mislabeled": {str(path == "cat/1.png").lower()}}}' for path in dataset.paths]
    assert meant(lines, dataset, wrong=True) == (dataset.paths.index("cat/1.png"),)


@pytest.mark.parametrize("wrong", [True, False])
def test_masks_and_indices(tmp_path: Path, dataset: Dataset, wrong: bool) -> None:
    np.save(tmp_path / "mask.npy", np.array(ISSUES))
    assert marked_samples(read_mask(tmp_path / "mask.npy", wrong=wrong), "mask", dataset).indices == (0, 3)
    np.save(tmp_path / "indices.npy", np.array([4, 2]))
    assert marked_samples(read_mask(tmp_path / "indices.npy", wrong=wrong), "indices", dataset).indices == (2, 4)


@pytest.mark.parametrize("lines", [["cat/0.png"], ["3", "4"], ['{"index": 3}'], ["keep/0.png,1"], []])
def test_other_lists_are_left_to_others(lines: list[str]) -> None:
    assert read_marked(lines, "list", wrong=True) is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,keep", "cat/0.png,maybe"], r"line 2: keep is 'maybe'"),
        (["path,keep", "cat/0.png"], r"line 2: 1 fields where the header has 2"),
        (["index,keep", "x,True"], r"line 2: the index is 'x'"),
        (["index,keep", "9,True"], r"line 2 has index 9"),
        (["path,keep", "cat/9.png,True"], r"line 2 names cat/9.png"),
        (["path,keep,is_label_issue", "cat/0.png,True,False"], "each of the columns"),
        (["path,keep", "cat/0.png,False"], "names no sample"),
        (["path,keep", "cat/0.png,True", "cat/0.png,True"], "stands there twice"),
    ],
)
def test_lists_that_are_wrong(dataset: Dataset, lines: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        meant(lines, dataset, wrong=False)
