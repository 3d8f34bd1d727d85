"""Images known by what their files contain."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.data_folders import opened, write_image

import sapcli.datasets.file_digests
from sapcli.datasets.contents import contents_of, find_contents, from_text, to_text
from sapcli.datasets.dataset import Dataset, Role


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    for number in range(4):
        write_image(tmp_path / "train" / ("cat" if number % 2 else "dog") / f"{number}.png", number)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    shutil.move(tmp_path / "val/cat/1.png", tmp_path / "val/dog/renamed.png")
    write_image(tmp_path / "val/cat/other.png", 77)
    return opened(tmp_path, num_classes=2)


def test_copies_are_found_under_other_names(dataset: Dataset) -> None:
    validation = opened(dataset.root, Role.CHOOSE, num_classes=2)
    wanted = contents_of(dataset, [dataset.paths.index("train/cat/1.png"), dataset.paths.index("train/dog/2.png")])
    found = find_contents(validation, wanted.values())
    assert {validation.paths[index] for index in found} == {"val/dog/renamed.png", "val/dog/2.png"}
    assert set(found.values()) == set(wanted.values())


def test_the_same_size_is_not_the_same_content(dataset: Dataset) -> None:
    first, second = dataset.root / "train/cat/1.png", dataset.root / "train/cat/3.png"
    second.write_bytes(first.read_bytes()[:-1] + b"\0")
    contents = contents_of(dataset, [dataset.paths.index("train/cat/1.png"), dataset.paths.index("train/cat/3.png")])
    assert len(set(contents.values())) == 2


def test_only_files_of_a_fitting_size_are_read(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = contents_of(dataset, [0]).values()
    (dataset.root / dataset.paths[0]).write_bytes(b"short")
    for path in dataset.paths[1:]:
        (dataset.root / path).write_bytes(b"longer than it was before, and no image any more" * 40)
    monkeypatch.setattr(sapcli.datasets.file_digests, "_read", lambda _: pytest.fail("a file was read"))
    assert find_contents(dataset, contents) == {}


def test_files_that_are_gone_have_no_content(dataset: Dataset) -> None:
    contents = contents_of(dataset, range(4))
    (dataset.root / dataset.paths[2]).unlink()
    assert sorted(contents_of(dataset, range(4))) == [0, 1, 3]
    assert sorted(find_contents(dataset, contents.values())) == [0, 1, 3]


def test_text_is_the_same_in_any_order_and_short(dataset: Dataset) -> None:
    contents = list(contents_of(dataset, range(4)).values())
    assert to_text(contents) == to_text(contents[::-1]) == to_text(contents + contents)
    assert from_text(to_text(contents)) == set(contents)
    assert len(to_text([bytes([0] * 6 + [number // 256, number % 256]) for number in range(1000)])) < 11_000
