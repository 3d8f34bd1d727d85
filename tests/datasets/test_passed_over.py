"""Files that are no images by their names, counted by walking the folder, and labels that nobody uses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from support.data_folders import CLASSES, opened, write_classes, write_image
from support.small_project import Project, make_project, run_here

from sapcli.datasets.dataset import Role
from sapcli.errors import DatasetError


def renamed(folder: Path, suffix: str, step: int = 2) -> int:
    """Give every second image another ending, and count them."""
    images = sorted(folder.rglob("*.png"))[::step]
    for image in images:
        image.rename(image.with_suffix(suffix))
    return len(images)


@pytest.mark.parametrize(
    ("suffix", "said"), [(".heic", "end in .heic"), (".CR2", "end in .cr2"), ("", "have no ending")]
)
@pytest.mark.parametrize("split", ["train", "test_set"])
def test_files_of_one_ending(tmp_path: Path, suffix: str, said: str, split: str) -> None:
    write_classes(tmp_path / split, images=4)
    count = renamed(tmp_path / split, suffix)
    [remark] = opened(tmp_path, Role.LEARN if split == "train" else Role.JUDGE).remarks
    assert remark == f"{count} files of {tmp_path / split} {said} and are left out"


def test_files_of_several_endings(tmp_path: Path) -> None:
    write_classes(tmp_path, images=1)
    for name in (
        "cat/a.heic",
        "cat/b.HEIC",
        "dog/deep/c.heic",
        "dog/movie.mp4",
        "dog/noending",
        "bird/x.npy",
        "bird/y.Npy",
    ):
        write_image(tmp_path / "some.png")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / "some.png").rename(tmp_path / name)
    [remark] = opened(tmp_path).remarks
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"]
    counts = Counter(path.suffix.lower() for path in files)
    assert remark.startswith(f"{len(files)} files of {tmp_path} are left out")
    for suffix, count in counts.items():
        assert (f"{count} with the ending {suffix}" if suffix else f"{count} without an ending") in remark


def test_what_belongs_beside_images_is_not_told_of(tmp_path: Path) -> None:
    write_classes(tmp_path, images=1)
    names = ["cat/README", "cat/LICENSE", "cat/labels.txt", "dog/0.json", "dog/0.xml", "cat/.DS_Store", "cat/Thumbs.db"]
    for name in [*names, "model.safetensors", "train.py", "cat/.hidden.heic", "cat/notes.md", "cat/_annotations.csv"]:
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_text("x")
    assert opened(tmp_path, label_names=CLASSES).remarks == ()


def test_a_class_without_a_single_image_is_told_of(tmp_path: Path) -> None:
    write_classes(tmp_path)
    count = renamed(tmp_path / "dog", ".heif", step=1)
    [remark] = opened(tmp_path, label_names=CLASSES).remarks
    assert remark == f"{count} files of {tmp_path} end in .heif and are left out"


def test_a_single_file(tmp_path: Path) -> None:
    write_classes(tmp_path, images=1)
    (tmp_path / "cat" / "a.heic").write_bytes(b"x")
    assert opened(tmp_path).remarks == (f"1 file of {tmp_path} ends in .heic and is left out",)


def test_images_beside_the_class_folders_are_told_of(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_image(tmp_path / "stray.png")
    assert opened(tmp_path).remarks == (f"1 images of {tmp_path} have no label: left out",)


def test_lines_about_files_that_are_no_images(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "0.heic")
    (tmp_path / "labels.csv").write_text("path,label\ncat/0.heic,dog\ncat/1.png,dog\n")
    remarks = opened(tmp_path, labels=tmp_path / "labels.csv").remarks
    assert any("1 lines name files that are no images" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,label\ncat/0.png,dog\n"),
        ("train/labels.jsonl", '{"path": "cat/0.png", "label": "dog"}\n'),
        ("train/some;thing.tsv", "label\tpath\ndog\tcat/0.png\n"),
    ],
)
def test_label_files_that_are_not_used(tmp_path: Path, name: str, content: str) -> None:
    write_classes(tmp_path / "train")
    (tmp_path / name).write_text(content)
    (tmp_path / "sizes.csv").write_text("path,bytes\ncat/0.png,20\n")
    [remark] = opened(tmp_path).remarks
    assert str(tmp_path / name) in remark
    assert "not used" in remark
    assert "sizes" not in remark
    assert not any("not used" in remark for remark in opened(tmp_path, labels=tmp_path / name).remarks)


def test_nothing_but_files_of_another_format(tmp_path: Path) -> None:
    write_classes(tmp_path)
    renamed(tmp_path, ".heic", step=1)
    with pytest.raises(DatasetError, match=r"there are no images .*6 files .* end in .heic"):
        opened(tmp_path)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


def test_commands_say_it_once(project: Project) -> None:
    """Also where two checkpoints are judged on the same images."""
    renamed(project.data / "val", ".heic")
    arguments = ("--arch", f"{project.folder / 'network.py'}:tiny", "--baseline", project.checkpoint)
    outcome = run_here("eval", project.checkpoint, project.data, *arguments)
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr.count("30 files of") == 1
    assert "end in .heic and are left out" in outcome.stderr
