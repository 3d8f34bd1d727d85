"""Paths that go on inside of files, and what makes no difference: folders, files that are gone, odd names."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.data_folders import opened, write_classes

from sapcli.datasets.containers.members import containing_file, member_size, read_member
from sapcli.datasets.dataset import Role
from sapcli.datasets.image_files import open_image
from sapcli.datasets.thumbnails import thumbnail
from sapcli.errors import DatasetError


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[Path, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "set.npz", train_images=images, train_labels=np.arange(9) % 3)
    return tmp_path / "set.npz", images


def test_a_path_is_looked_for_inside_of_a_file(tmp_path: Path, arrays: tuple[Path, np.ndarray]) -> None:
    file, images = arrays
    assert containing_file(f"{file}/train/00000001") == str(file)
    assert containing_file(f"{tmp_path}/nothing/0.png") is None
    assert np.array_equal(read_member(f"{file}/train/1"), images[1])
    assert member_size(f"{file}/train/1") == 60
    for name in ("train/9", "train/x", "val/1", "1", "train/-1", ""):
        with pytest.raises(OSError, match="holds no such image"):
            read_member(f"{file}/{name}")
    with pytest.raises(NotADirectoryError):
        read_member(f"{tmp_path}/0.png")


def test_images_of_arrays(arrays: tuple[Path, np.ndarray]) -> None:
    file, images = arrays
    dataset = opened(file)
    assert dataset.paths[3] == "train/00000003"
    assert dataset.labels == (0, 1, 2) * 3
    with open_image(f"{dataset.root}/{dataset.paths[3]}") as image:
        assert np.array_equal(np.asarray(image), images[3])
    assert thumbnail(dataset.root / dataset.paths[3])


def test_the_pixels_of_cifar(tmp_path: Path) -> None:
    """A row is a picture, first all reds, then all greens, then all blues, row by row (the data set's own page)."""
    data = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [0, 1, 2] * 2}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["zebra", "ape", "cat"]}))
    dataset = opened(folder)
    assert dataset.classes == ("zebra", "ape", "cat")
    with open_image(f"{dataset.root}/{dataset.paths[2]}") as image:
        for row, column in ((0, 0), (3, 7), (31, 31)):
            assert image.getpixel((column, row)) == tuple(data[2][1024 * k + 32 * row + column] for k in range(3))
    by_name = opened(folder, label_names=("ape", "cat", "zebra"))
    assert by_name.labels == (2, 0, 1) * 2
    other = opened(folder, label_names=("a", "b", "c"))
    assert other.labels == (0, 1, 2) * 2
    assert any("matched by their numbers" in note for note in other.notes)
    with pytest.raises(DatasetError, match="'zebra'"):
        opened(folder, label_names=("ape", "cat", "dog"))


def test_a_folder_of_images_is_one_whatever_lies_beside_them(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for name in ("embeddings.parquet", "backup.tar", "features.arrow", "data_batch_1"):
        (tmp_path / name).write_bytes(b"no such thing")
    dataset = opened(tmp_path)
    assert len(dataset.paths) == 6
    assert not dataset.contained


def test_reading_in_workers(arrays: tuple[Path, np.ndarray]) -> None:
    from sapcli.machine.workers import map_in_workers

    file, images = arrays
    found = list(map_in_workers(read_member, [f"{file}/train/{number}" for number in range(9)], 2))
    assert np.array_equal(np.array(found), images)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".npz", ".tar"])
def test_damaged_containers(tmp_path: Path, suffix: str) -> None:
    if suffix in (".parquet", ".arrow"):
        pytest.importorskip("pyarrow")
    for content in (b"", b"PAR1", b"\0" * 600, bytes(range(256)) * 8):
        (tmp_path / f"set{suffix}").write_bytes(content)
        with pytest.raises(DatasetError):
            opened(tmp_path / f"set{suffix}")


def test_images_stay_what_pillow_reads(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 7).save(tmp_path / "0.png")
    with open_image(tmp_path / "0.png") as image:
        assert image.size == (3, 2)
    with pytest.raises(OSError, match="where only arrays"), open_image(tmp_path / "0.png" / "1.png"):
        pass


def test_labels_without_paths_are_about_the_split_that_has_as_many_images(tmp_path: Path) -> None:
    def images(count: int) -> np.ndarray:
        return np.zeros((count, 2, 2), np.uint8)

    file = tmp_path / "set.npz"
    np.savez(file, train_images=images(6), train_labels=[0, 1, 2] * 2, val_images=images(3), val_labels=[2, 1, 0])
    np.save(tmp_path / "noisy.npy", [2] * 6)
    assert opened(file, labels=tmp_path / "noisy.npy").labels == (2,) * 6
    assert opened(file, Role.CHOOSE, labels=tmp_path / "noisy.npy").labels == (2, 1, 0)
    np.savez(file, train_images=images(6), train_labels=[0, 1, 2] * 2, val_images=images(6), val_labels=[2, 1, 0] * 2)
    with pytest.raises(DatasetError, match="6 in 'train', 6 in 'val'"):
        opened(file, labels=tmp_path / "noisy.npy")
    assert opened(file, labels=tmp_path / "noisy.npy", split="train").labels == (2,) * 6


def test_corrected_labels_of_images_inside_of_files(arrays: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    file, _images = arrays
    (tmp_path / "corrected.csv").write_text("path,label\ntrain/00000002,0\ntrain/00000004,2\n")
    assert opened(file, labels=tmp_path / "corrected.csv").labels == (0, 1, 0, 0, 2, 2, 0, 1, 2)
    (tmp_path / "corrected.csv").write_text("path,label\ntrain/2.png,0\n")
    with pytest.raises(DatasetError, match=r"there is no image 'train/2\.png'"):
        opened(file, labels=tmp_path / "corrected.csv")
