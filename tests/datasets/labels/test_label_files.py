"""Label files and class maps, good and bad, through the datasets that come out."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.data_folders import CLASSES, label_of, opened, write_classes, write_image

from sapcli.datasets.dataset import Role
from sapcli.errors import DatasetError, SapError


def test_label_file_overrides_the_folders_that_it_names(tmp_path: Path) -> None:
    write_classes(tmp_path)
    labels = tmp_path / "labels.csv"
    labels.write_text("confidence,label,path\n0.9,dog,cat/0.png\n")
    dataset = opened(tmp_path, labels=labels)
    assert label_of(dataset, "cat/0.png") == "dog"
    assert label_of(dataset, "cat/1.png") == "cat"
    assert len(dataset.paths) == 6


@pytest.mark.parametrize("written", ["train/cat/0.png", "cat/0.png", "../data/train/cat/0.png", "ABSOLUTE"])
def test_label_paths_may_be_relative_to_root_split_or_file(tmp_path: Path, written: str) -> None:
    data = tmp_path / "data"
    write_classes(data / "train")
    labels = tmp_path / "lists" / "labels.jsonl"
    labels.parent.mkdir()
    written = str(data / "train/cat/0.png") if written == "ABSOLUTE" else written
    labels.write_text(json.dumps({"path": written, "label": "dog", "score": 1}) + "\n")
    assert label_of(opened(data, labels=labels), "train/cat/0.png") == "dog"


def test_label_file_for_images_without_class_folders(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / "images" / f"{number}.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("\ufeffpath,label\nimages/0.png,cat\nimages/2.png,dog\nimages/1.png,bird\n", encoding="utf-8")
    dataset = opened(tmp_path, labels=labels)
    assert dataset.classes == CLASSES
    assert dataset.paths == ("images/0.png", "images/1.png", "images/2.png")
    assert dataset.labels == (1, 0, 2)


def test_label_file_of_flat_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(3):
            write_image(tmp_path / split / f"{number}.png")
    labels = tmp_path / "labels.csv"
    rows = [f"{split}/{number}.png,{CLASSES[number]}" for split in ("train", "val") for number in range(3)]
    labels.write_text("path,label\n" + "\n".join(rows) + "\n")
    for role, split in ((Role.LEARN, "train"), (Role.CHOOSE, "val")):
        dataset = opened(tmp_path, role, labels=labels)
        assert (dataset.split, dataset.classes, dataset.labels) == (split, CLASSES, (0, 1, 2))


def test_numbers_in_a_label_file_are_outputs(tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / f"{number}.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"{number}.png,{number}\n" for number in range(12)))
    dataset = opened(tmp_path, num_classes=12, labels=labels)
    assert all(path == f"{label}.png" for path, label in zip(dataset.paths, dataset.labels, strict=True))


@pytest.mark.parametrize("content", ["file_name,label\n{},{}\n", '{{"filename": "{}", "label": "{}"}}\n'])
def test_other_names_of_the_column_of_paths(tmp_path: Path, content: str) -> None:
    write_classes(tmp_path)
    labels = tmp_path / "metadata.csv"
    labels.write_text(content.format("cat/0.png", CLASSES[1]))
    assert label_of(opened(tmp_path, labels=labels), "cat/0.png") == CLASSES[1]


@pytest.mark.parametrize("label", ["1", CLASSES[1]])
def test_numbers_beside_the_names_of_folders(tmp_path: Path, label: str) -> None:
    write_classes(tmp_path)
    labels = tmp_path / "labels.csv"
    labels.write_text(f"path,label\ncat/0.png,{label}\ncat/1.png,2\n")
    dataset = opened(tmp_path, labels=labels)
    assert dataset.classes == CLASSES
    assert [label_of(dataset, f"cat/{number}.png") for number in (0, 1)] == list(CLASSES[1:])


def test_names_with_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    names = ("a,b", 'say "cheese"', "two\nlines")
    write_classes(tmp_path, names, images=1)
    labels = tmp_path.parent / "odd.csv"
    with labels.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((f"{name}/0.png", names[0]) for name in names)])
    dataset = opened(tmp_path, labels=labels)
    assert dataset.labels == (0, 0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,label\ncat/9.png,cat\n", r"labels.csv, line 2: there is no image 'cat/9.png'"),
        (b"path,label\n../../etc/passwd,cat\n", r"line 2: there is no image"),
        (b"path,label\ncat/0.png,lion\n", r"labels.csv, line 2: 'lion' is no class"),
        (b"path,label\ncat/0.png,cat\ndog/0.png,cat\n./cat/0.png,cat\n", r"line 4: './cat/0.png' was named in line 2"),
        (b"note,class\ncat/0.png,cat\n", r"line 1: the header is 'note,class'"),
        (b"path,path,label\n", r"named twice"),
        (b"path,label\ncat/0.png,c\xe4t\n", r"line 2: not UTF-8"),
        (b"path,label\n\ncat/0.png,cat\n", r"line 2: the line is blank"),
        (b"path,label\ncat/0.png\n", r"line 2: 1 fields where the header has 2"),
        (b"path,label\ncat/0.png,\n", r"line 2: the path is 'cat/0.png' and the label is ''"),
        (b'path,label\n"cat/0.png,cat\n', r"line 2: not a line of CSV"),
        (b"path,label\n", r"names no image"),
        (b"", r"names no image"),
        (b'{"path": "cat/0.png", "label": "cat"}\n{"path": 3}\n', r"line 2: the path is 3"),
        (b'{"path": "cat/0.png"\n', r"line 1: not JSON"),
        (b'{"path": "cat/0.png", "label": "cat"}\n[]\n', r"line 2: not a JSON object"),
    ],
)
def test_bad_label_file(tmp_path: Path, content: bytes, message: str) -> None:
    data = write_classes(tmp_path / "data")
    labels = tmp_path / "labels.csv"
    labels.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        opened(data, label_names=CLASSES, labels=labels)
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("name", ["missing.csv", "folder"])
def test_label_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatasetError, match="cannot read the file"):
        opened(write_classes(tmp_path / "data"), labels=tmp_path / name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(lambda text: f"path,label\n{text}".encode())))
@pytest.mark.parametrize("option", ["labels", "class_map"])
def test_any_bytes_are_a_result_or_a_clear_error(tmp_path: Path, option: str, content: bytes) -> None:
    if not (tmp_path / "data").exists():
        write_classes(tmp_path / "data", images=1)
    file = tmp_path / "file.csv"
    file.write_bytes(content)
    with suppress(SapError):
        opened(tmp_path / "data", label_names=CLASSES, **{option: file})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.csv", "class,folder\ndog,a\ncat,b\nbird,c\n"),
        ("map.csv", "folder,index\na,2\nb,1\nc,0\n"),
        ("map.json", '{"a": "dog", "b": "cat", "c": 0}'),
        ("map.json", '["c", "b", "a"]'),
        ("map.txt", "c\nb\na\n"),
    ],
)
def test_class_map_forms(tmp_path: Path, name: str, text: str) -> None:
    data = write_classes(tmp_path / "data", ("a", "b", "c"))
    (tmp_path / name).write_text(text)
    dataset = opened(data, label_names=CLASSES, class_map=tmp_path / name)
    assert [label_of(dataset, f"{folder}/0.png") for folder in "abc"] == ["dog", "cat", "bird"]


def test_class_map_gives_the_order_where_nothing_else_does(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", ("a", "b", "c"))
    (tmp_path / "map.txt").write_text("c\na\nb\n")
    assert opened(data, class_map=tmp_path / "map.txt").classes == ("c", "a", "b")
    (tmp_path / "map.csv").write_text("folder,class\na,zebra\nb,ape\nc,ape\n")
    dataset = opened(data, num_classes=2, class_map=tmp_path / "map.csv")
    assert dataset.classes == ("ape", "zebra")
    assert dataset.labels == (1, 1, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("map.csv", "folder,class\na,lion\n", "'a' is mapped to 'lion'"),
        ("map.json", '{"a": 7}', "'a' is mapped to 7"),
        ("map.json", '{"a": 99999999999}', "'a' is mapped to 99999999999"),
        ("map.json", '{"a": -1}', "'a' is mapped to -1"),
        ("map.json", '{"a": null}', "'a' is mapped to None"),
        ("map.json", "{", "not JSON"),
        ("map.csv", "x,y\na,b\n", "the header is 'x,y'"),
        ("map.txt", "a\na\n", "'a' is named twice"),
        ("map.txt", "", "names no folder"),
    ],
)
def test_bad_class_map(tmp_path: Path, name: str, text: str, message: str) -> None:
    data = write_classes(tmp_path / "data", ("a", "b", "c"))
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        opened(data, label_names=CLASSES, class_map=tmp_path / name)


def test_numbers_beyond_the_model_without_label_names(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", ("a", "b", "c"))
    (tmp_path / "map.json").write_text('{"a": 0, "b": 1, "c": 99999999999}')
    with pytest.raises(DatasetError, match="'c' is mapped to 99999999999"):
        opened(data, class_map=tmp_path / "map.json")
