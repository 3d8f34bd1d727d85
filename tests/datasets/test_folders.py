"""Folders, links and odd files as people have them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.data_folders import label_of, opened, write_classes, write_image

from sapcli.errors import DatasetError


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
