"""What stands in the place of a data folder: a label file is the data, wherever its images lie."""

from __future__ import annotations

import csv
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from support.data_folders import CLASSES, label_of, opened, write_classes, write_image

from sapcli.datasets.dataset import Role, open_dataset
from sapcli.errors import DatasetError


def write_rows(file: Path, rows: Iterable[tuple[object, object]]) -> Path:
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([("path", "label"), *rows])
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        write_classes(tmp_path / "data" / split, images=4)
    return tmp_path / "data"


def test_training_and_validation_rows_in_one_split_folder(data: Path) -> None:
    rows = [(f"train/{name}/{number}.png", name) for name in CLASSES for number in range(4)]
    write_rows(data / "train.csv", rows[::2])
    write_rows(data / "val.csv", rows[1::2])
    assert opened(data / "train.csv", undivided=True).paths == tuple(sorted(path for path, _ in rows[::2]))
    validation = opened(data / "val.csv", Role.CHOOSE, dedicated=True, label_names=CLASSES)
    assert validation.paths == tuple(sorted(path for path, _ in rows[1::2]))


@pytest.mark.parametrize("name", ["train.csv", "val.csv", "some.csv"])
def test_rows_of_several_split_folders(data: Path, name: str) -> None:
    rows = [(f"{split}/{label}/0.png", label) for split in ("train", "test") for label in CLASSES]
    write_rows(data / name, rows)
    assert len(opened(data / name, undivided=True).paths) == 6
    assert len(opened(data / name, Role.CHOOSE, dedicated=True).paths) == 6


def test_a_list_of_all_splits_is_divided_by_them_and_that_is_said(data: Path) -> None:
    write_rows(
        data / "all.csv", [(f"{split}/{label}/0.png", label) for split in ("train", "test") for label in CLASSES]
    )
    training = opened(data / "all.csv")
    assert {path.partition("/")[0] for path in training.paths} == {"train"}
    assert any("'test', 'train'" in note for note in training.notes)
    assert {path.partition("/")[0] for path in opened(data / "all.csv", Role.JUDGE).paths} == {"test"}
    assert open_dataset(data / "all.csv", Role.CHOOSE, 3) is None


def test_a_plain_list_of_all_splits_is_divided_by_them(data: Path) -> None:
    rows = [f"{split}/{label}/0.png" for split in ("train", "test") for label in CLASSES]
    (data / "all.txt").write_text("\n".join(rows))
    assert opened(data / "all.txt").paths == tuple(sorted(rows[:3]))
    test = open_dataset(data / "all.txt", Role.CONFIRM, 3)
    assert test is not None
    assert test.paths == tuple(sorted(rows[3:]))
    (data / "val.txt").write_text("\n".join(rows[:3]))
    assert opened(data / "val.txt", Role.CHOOSE, dedicated=True).paths == tuple(sorted(rows[:3]))


def test_images_beside_above_and_elsewhere(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / "pictures" / f"{number}.png")
        write_image(tmp_path / "far" / "away" / f"{number}.png")
    (tmp_path / "lists").mkdir()
    file = write_rows(
        tmp_path / "lists" / "all.csv",
        [
            *((f"../pictures/{number}.png", name) for number, name in enumerate(CLASSES)),
            *((tmp_path / "far" / "away" / f"{number}.png", name) for number, name in enumerate(CLASSES)),
        ],
    )
    dataset = opened(file)
    assert dataset.root == tmp_path
    assert dataset.paths == tuple(f"{place}/{n}.png" for place in ("far/away", "pictures") for n in range(3))
    assert dataset.labels == (0, 1, 2, 0, 1, 2)
    write_rows(file, [("../pictures/9.png", "cat")])
    with pytest.raises(DatasetError, match=r"line 2: there is no image"):
        opened(file, label_names=CLASSES)


def test_rows_from_the_folder_above(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / "images" / f"{number}.png")
    (tmp_path / "annotations").mkdir()
    rows = [(f"images/{number}.png", name) for number, name in enumerate(CLASSES)]
    dataset = opened(write_rows(tmp_path / "annotations" / "train.csv", rows))
    assert (dataset.root, dataset.paths) == (tmp_path, tuple(path for path, _ in rows))


def test_names_by_their_end(tmp_path: Path) -> None:
    for number, name in enumerate(CLASSES):
        write_image(tmp_path / "images" / f"a{number}.png")
        write_image(tmp_path / "images" / f"b{number}.JPG".replace("JPG", "png"))
        assert name
    rows = [(f"{letter}{number}", name) for letter in "ab" for number, name in enumerate(CLASSES)]
    dataset = opened(write_rows(tmp_path / "train.csv", rows))
    assert [label_of(dataset, f"images/{letter}{number}.png") for letter, number in ("a0", "b2")] == ["bird", "dog"]
    assert any("by their end: 'a0' is 'images/a0.png'" in note for note in dataset.notes)
    write_image(tmp_path / "more" / "a0.png")
    with pytest.raises(DatasetError, match=r"line 2: 'a0' fits 2 images"):
        opened(tmp_path / "train.csv")


@pytest.mark.parametrize("written", ["../a0", "/a0", "a", "images", ".png", "a0.jpg", "x/a0"])
def test_names_that_are_no_end(tmp_path: Path, written: str) -> None:
    write_image(tmp_path / "images" / "a0.png")
    with pytest.raises(DatasetError, match="there is no image"):
        opened(write_rows(tmp_path / "train.csv", [(written, "cat")]), label_names=CLASSES)


def test_labels_in_another_order_than_the_images(tmp_path: Path) -> None:
    """As CIFAR-10N's labels would be for CIFAR-10 in class folders."""
    write_classes(tmp_path / "data", images=30)
    sorted_labels = [number for number in range(3) for _ in range(30)]
    import numpy as np

    np.save(tmp_path / "right.npy", [(label + (index % 10 == 0)) % 3 for index, label in enumerate(sorted_labels)])
    np.save(tmp_path / "other.npy", [index % 3 for index in range(90)])
    dataset = opened(tmp_path / "data", labels=tmp_path / "right.npy")
    assert any("90.0% of the labels are those of the class folders" in note for note in dataset.notes)
    with pytest.raises(DatasetError, match="no more than in any other order"):
        opened(tmp_path / "data", labels=tmp_path / "other.npy")


def test_labels_of_the_training_images_leave_the_others_alone(tmp_path: Path) -> None:
    import numpy as np

    for split, images in (("train", 4), ("val", 2)):
        write_classes(tmp_path / "data" / split, images=images)
    np.save(tmp_path / "noisy.npy", [1] * 6 + [0] * 6)
    assert opened(tmp_path / "data", labels=tmp_path / "noisy.npy").labels == (1,) * 6 + (0,) * 6
    assert opened(tmp_path / "data", Role.CHOOSE, labels=tmp_path / "noisy.npy").labels == (0, 0, 1, 1, 2, 2)
    np.save(tmp_path / "noisy.npy", [1] * 7)
    with pytest.raises(DatasetError, match="has 7 labels and no paths, and there are 12 in 'train', 6 in 'val'"):
        opened(tmp_path / "data", labels=tmp_path / "noisy.npy")


@pytest.mark.parametrize("name", ["../cat/0.png", "cat/../../0.png", "..\\cat\\0.png", "/etc/../../cat/0.png"])
def test_zip_archives_that_lead_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "inside").mkdir()
    with zipfile.ZipFile(tmp_path / "inside" / "data.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(DatasetError, match="refused to unpack"):
        opened(tmp_path / "inside" / "data.zip")


def test_zip_archives_with_links_and_passwords(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("cat")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(DatasetError, match="is a link"):
        opened(tmp_path / "link.zip")


@pytest.mark.parametrize("bound", ["_UNPACKED_BYTES", "_MEMBERS"])
def test_zip_archives_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/0.png", bytes(1 << 20))
        for number in range(20):
            archive.writestr(f"cat/{number}.txt", b"")
    monkeypatch.setattr(f"sapcli.datasets.containers.archives.{bound}", 10)
    monkeypatch.setattr("sapcli.datasets.containers.archives._TIMES_THE_ARCHIVE", 1)
    monkeypatch.setattr("sapcli.datasets.containers.archives._BYTES_PER_MEMBER", 1000)
    with pytest.raises(DatasetError, match="more than"):
        opened(tmp_path / "data.zip")


def test_nothing_that_only_some_inputs_need_is_imported(tmp_path: Path) -> None:
    """Each takes a second or more to import, and an ordinary folder needs none of them."""
    write_classes(tmp_path / "data")
    code = f"""
import sys
from pathlib import Path
import sapcli.commands.project
from sapcli.datasets.dataset import Role, open_dataset
assert open_dataset(Path({str(tmp_path / "data")!r}), Role.LEARN, 3).fingerprint
print([name for name in ("transformers", "datasets", "pyarrow", "pandas", "scipy", "lightning", "zstandard")
       if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "[]", ended.stdout + ended.stderr
