"""Folders, splits, labels and classes as people have them; the indices and classes that come out of it."""

from __future__ import annotations

import csv
import json
import os
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sapcli.dataset import Dataset, Role, open_dataset
from sapcli.errors import DatasetError, SapError, UsageError

CLASSES = ("bird", "cat", "dog")


def write_image(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (level, level, level)).save(path)


def write_classes(folder: Path, classes: tuple[str, ...] = CLASSES, images: int = 2) -> Path:
    for name in classes:
        for number in range(images):
            write_image(folder / name / f"{number}.png")
    return folder


def opened(root: Path, role: Role = Role.LEARN, num_classes: int = 3, **options: object) -> Dataset:
    dataset = open_dataset(root, role, num_classes, **options)  # type: ignore[arg-type]
    assert dataset is not None
    return dataset


def label_of(dataset: Dataset, path: str) -> str:
    return dataset.classes[dataset.labels[dataset.paths.index(path)]]


# Splits


@pytest.mark.parametrize(
    ("folders", "role", "split"),
    [
        (["train", "val", "test"], Role.LEARN, "train"),
        (["train", "val", "test"], Role.CHOOSE, "val"),
        (["train", "val", "test"], Role.JUDGE, "test"),
        (["train", "validation"], Role.CHOOSE, "validation"),
        (["train", "valid"], Role.JUDGE, "valid"),
        (["Train", "Test"], Role.JUDGE, "Test"),
        ([""], Role.LEARN, None),
        ([""], Role.JUDGE, None),
    ],
)
def test_role_takes_its_split(tmp_path: Path, folders: list[str], role: Role, split: str | None) -> None:
    for folder in folders:
        write_classes(tmp_path / folder)
    dataset = opened(tmp_path, role)
    assert dataset.split == split
    assert len(dataset.paths) == 6
    assert all(path.startswith(f"{split}/" if split else CLASSES) for path in dataset.paths)


def test_choosing_needs_a_validation_split_unless_the_folder_is_one(tmp_path: Path) -> None:
    write_classes(tmp_path)
    assert open_dataset(tmp_path, Role.CHOOSE, 3) is None
    assert opened(tmp_path, Role.CHOOSE, dedicated=True).split is None


def test_missing_split_of_a_split_folder_is_an_error(tmp_path: Path) -> None:
    write_classes(tmp_path / "val")
    with pytest.raises(DatasetError, match="'val', but no folder train"):
        opened(tmp_path, Role.LEARN)


def test_split_option(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "hard_cases")
    write_classes(tmp_path / "valid")
    assert opened(tmp_path, Role.JUDGE, split="hard_cases").split == "hard_cases"
    assert opened(tmp_path, Role.JUDGE, split="val").split == "valid"
    with pytest.raises(UsageError, match="no such folder") as caught:
        opened(tmp_path, Role.JUDGE, split="holdout")
    assert "'hard_cases'" in caught.value.hint


def test_class_called_train_is_no_split(tmp_path: Path) -> None:
    write_classes(tmp_path, ("bus", "car", "train"))
    assert opened(tmp_path).classes == ("bus", "car", "train")


# Classes


def test_folders_in_torchvision_order(tmp_path: Path) -> None:
    names = tuple(str(number) for number in range(1, 12))
    write_classes(tmp_path, names, images=1)
    assert opened(tmp_path, num_classes=11).classes == ("1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")


def test_classes_are_matched_by_name_not_by_order(tmp_path: Path) -> None:
    write_classes(tmp_path)
    dataset = opened(tmp_path, label_names=("dog", "bird", "cat"))
    assert dataset.classes == ("dog", "bird", "cat")
    assert all(label_of(dataset, path) == path.split("/")[0] for path in dataset.paths)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("aquarium_fish", "aquarium fish"), ("Cat", "cat"), ("cafe\u0301", "caf\u00e9"), ("maple-tree", "maple_tree")],
)
def test_spelling_decides_nothing_where_it_is_unique(tmp_path: Path, folder: str, name: str) -> None:
    write_classes(tmp_path, (folder, "other"))
    assert label_of(opened(tmp_path, num_classes=2, label_names=("other", name)), f"{folder}/0.png") == name


def test_exact_names_come_before_spelling(tmp_path: Path) -> None:
    write_classes(tmp_path, ("A", "a"))
    dataset = opened(tmp_path, num_classes=2, label_names=("a", "A"))
    assert [label_of(dataset, path) for path in dataset.paths] == ["A", "A", "a", "a"]


def test_data_may_lack_classes_that_the_checkpoint_names(tmp_path: Path) -> None:
    write_classes(tmp_path, ("cat",))
    assert set(opened(tmp_path, label_names=CLASSES).labels) == {1}


def test_other_splits_follow_the_training_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val", ("dog",))
    dataset = opened(tmp_path, Role.CHOOSE)
    assert dataset.classes == CLASSES
    assert set(dataset.labels) == {2}


def test_empty_class_folders_count_only_where_they_fit(tmp_path: Path) -> None:
    write_classes(tmp_path, ("cat", "dog"))
    (tmp_path / "bird").mkdir()
    assert opened(tmp_path, num_classes=3).classes == CLASSES
    assert opened(tmp_path, num_classes=2).classes == ("cat", "dog")
    with pytest.raises(DatasetError, match=r"3 class folders .* 4 classes; without images: 'bird'"):
        opened(tmp_path, num_classes=4)


def test_unknown_class_is_named_with_the_nearest(tmp_path: Path) -> None:
    write_classes(tmp_path, ("bird", "catt", "dog"))
    with pytest.raises(DatasetError, match="'catt' is no class of the model; did you mean 'cat'"):
        opened(tmp_path, label_names=CLASSES)


def test_unknown_folder_without_images_is_passed_over(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "notes").mkdir()
    assert len(opened(tmp_path, label_names=CLASSES).paths) == 6


def test_checkpoint_that_contradicts_itself(tmp_path: Path) -> None:
    write_classes(tmp_path)
    with pytest.raises(DatasetError, match="names 2 classes, and its classifier has 3"):
        opened(tmp_path, label_names=("a", "b"))


def test_imagenet_ids_without_label_names_take_their_imagenet_position(tmp_path: Path) -> None:
    write_classes(tmp_path, ("n01443537", "n02012849"))
    dataset = opened(tmp_path, num_classes=1000)
    assert len(dataset.classes) == 1000
    assert set(dataset.labels) == {1, 134}


def test_imagenet_ids_among_descriptions(tmp_path: Path) -> None:
    from timm.data import ImageNetInfo

    descriptions = ImageNetInfo().label_descriptions()
    write_classes(tmp_path, ("n02012849", "n03126707"))  # both are a "crane"
    assert set(opened(tmp_path, num_classes=1000, label_names=descriptions).labels) == {134, 517}


def test_imagenet_ids_for_a_model_of_a_few_imagenet_classes(tmp_path: Path) -> None:
    write_classes(tmp_path, ("n01440764", "n01443537"))
    dataset = opened(tmp_path, num_classes=2, label_names=("goldfish", "tench"))
    assert label_of(dataset, "n01440764/0.png") == "tench"
    assert label_of(dataset, "n01443537/0.png") == "goldfish"


# Class maps


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


# Label files


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
        (b"file,class\ncat/0.png,cat\n", r"line 1: the header is 'file,class'"),
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


# What else a folder holds


def test_nested_odd_and_system_files(tmp_path: Path) -> None:
    write_classes(tmp_path, images=1)
    write_image(tmp_path / "cat" / "session 1" / "deep" / "a.JPEG")
    for name in ("x.webp", "x.TIFF", "x.bmp", "x.jfif"):
        write_image(tmp_path / "dog" / name)
    for name in ("cat/.hidden.png", "cat/._0.png", "__MACOSX/cat/0.png", ".cache/0.png", "cat/.trash/0.png"):
        write_image(tmp_path / name)
    for name in (
        ".DS_Store",
        "cat/Thumbs.db",
        "cat/desktop.ini",
        "cat/notes.txt",
        "cat/archive.pdf",
        "cat/noextension",
    ):
        (tmp_path / name).write_text("x")
    dataset = opened(tmp_path)
    assert dataset.paths == (
        "bird/0.png",
        "cat/0.png",
        "cat/session 1/deep/a.JPEG",
        "dog/0.png",
        "dog/x.TIFF",
        "dog/x.bmp",
        "dog/x.jfif",
        "dog/x.webp",
    )
    assert label_of(dataset, "cat/session 1/deep/a.JPEG") == "cat"


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", ("cat", "dog"), images=1)
    write_image(tmp_path / "elsewhere" / "1.png")
    (data / "bird").symlink_to(tmp_path / "elsewhere")
    (data / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (data / "cat" / "up").symlink_to(data)
    (data / "cat" / "self").symlink_to("self")
    (data / "dog" / "round").symlink_to(data / "dog")
    (data / "dog" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "elsewhere" / "back").symlink_to(data / "cat")
    assert opened(data).paths == (
        "bird/1.png",
        "bird/back/0.png",
        "cat/0.png",
        "cat/more/1.png",
        "dog/0.png",
        "dog/gone.png",
    )


def test_named_pipe_is_no_image(tmp_path: Path) -> None:
    write_classes(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert len(opened(tmp_path).paths) == 6


def test_undecodable_and_unusual_names(tmp_path: Path) -> None:
    write_classes(tmp_path, ("b\nird", "c at", "d\u00f6g"), images=1)
    os.rename(os.fsencode(tmp_path / "c at/0.png"), os.fsencode(tmp_path / "c at") + b"/\xff.png")  # noqa: PTH104
    dataset = opened(tmp_path)
    assert dataset.classes == ("b\nird", "c at", "d\u00f6g")
    assert os.fsencode(dataset.paths[1]) == b"c at/\xff.png"
    with pytest.raises(DatasetError) as caught:
        opened(tmp_path, label_names=("x", "y", "z"))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([], "there are no images"),
        (["cat/", "dog/"], "there are no images in its 2 folders"),
        (["0.png", "1.png"], "2 images, but no class folders"),
        (["cat/0.png"], r"1 class folders \('cat'\), and the model has 3 classes"),
        (["a/0.png", "b/0.png", "c/0.png", "d/0.png"], "4 class folders .* 3 classes"),
    ],
)
def test_folders_that_are_no_data(tmp_path: Path, layout: list[str], message: str) -> None:
    for name in layout:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            write_image(tmp_path / name)
    with pytest.raises(DatasetError, match=message):
        opened(tmp_path)


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        opened(tmp_path / "nowhere")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(DatasetError, match="neither a folder"):
        opened(tmp_path / "model.bin")


# Other forms of data


def test_label_file_as_data(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "data.csv").write_text("path,label\ncat/0.png,dog\ndog/1.png,dog\n")
    dataset = opened(tmp_path / "data.csv", label_names=CLASSES)
    assert dataset.root == tmp_path
    assert dataset.paths == ("cat/0.png", "dog/1.png")
    assert dataset.labels == (2, 2)


def test_list_of_files_as_data(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "list.txt").write_text("cat/1.png\nbird/0.png\n")
    dataset = opened(tmp_path / "list.txt")
    assert dataset.paths == ("bird/0.png", "cat/1.png")
    assert dataset.labels == (0, 1)


@pytest.mark.parametrize("inside", ["", "cifar/"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_archive_as_data(tmp_path: Path, inside: str, suffix: str) -> None:
    data = write_classes(tmp_path / "data")
    archive = tmp_path / f"data{suffix}"
    with tarfile.open(archive, "w:gz" if suffix.endswith("gz") else "w") as file:
        for name in CLASSES:
            file.add(data / name, f"{inside}{name}")
    dataset = opened(archive)
    assert dataset.paths == opened(data).paths
    assert opened(archive).root == dataset.root
    assert opened(archive).fingerprint == dataset.fingerprint


@pytest.mark.parametrize("attack", ["../../outside.png", "/tmp/outside.png", "link"])
def test_archive_that_leads_outside_is_refused(tmp_path: Path, attack: str) -> None:
    write_image(tmp_path / "0.png")
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as file:
        if attack == "link":
            member = tarfile.TarInfo("cat")
            member.type = tarfile.SYMTYPE
            member.linkname = "/etc"
            file.addfile(member)
        else:
            member = tarfile.TarInfo(attack)
            member.size = (tmp_path / "0.png").stat().st_size
            file.addfile(member, (tmp_path / "0.png").open("rb"))
    if attack.startswith("/"):  # an absolute name is unpacked below the folder, which is harmless, and has no class
        with pytest.raises(DatasetError, match="class folders"):
            opened(archive)
    else:
        with pytest.raises(DatasetError, match="refused to unpack"):
            opened(archive)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00broken"])
def test_damaged_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.tar.gz").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot unpack"):
        opened(tmp_path / "data.tar.gz")


# The fingerprint


def test_fingerprint_follows_what_matters(tmp_path: Path) -> None:
    write_classes(tmp_path)
    first = opened(tmp_path)
    assert opened(tmp_path).fingerprint == first.fingerprint
    assert opened(tmp_path, label_names=("dog", "cat", "bird")).fingerprint != first.fingerprint
    os.utime(tmp_path / "cat" / "0.png", ns=(1, 1))
    touched = opened(tmp_path)
    assert touched.fingerprint != first.fingerprint
    (tmp_path / "cat" / "0.png").rename(tmp_path / "dog" / "00.png")
    assert opened(tmp_path).fingerprint != touched.fingerprint


def test_fingerprint_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    write_classes(tmp_path / "here")
    before = opened(tmp_path / "here").fingerprint
    (tmp_path / "here").rename(tmp_path / "there")
    assert opened(tmp_path / "there").fingerprint == before
