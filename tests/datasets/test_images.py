"""Decoded images: exactly timm's pixels, each under its own index, whatever the file, the order and the workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

import sapcli.datasets.images
from sapcli.datasets.dataset import Dataset, Role, open_dataset
from sapcli.datasets.images import Batch, Images
from sapcli.errors import DatasetError
from sapcli.networks.preprocessing import Preprocessing

PLAIN = Preprocessing((3, 4, 4), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center", "the tests")


def level_image(level: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (level, level, level))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 20 images; the pixels of an image are its index."""
    for index in range(40):
        path = tmp_path / ("cat" if index < 20 else "dog") / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        level_image(index).save(path)
    return tmp_path


@pytest.fixture
def eager_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers for whatever is left after the first chunk."""
    monkeypatch.setattr(sapcli.datasets.images, "_WORTH_WORKERS", 0.0)
    monkeypatch.setattr(sapcli.datasets.images, "_CHUNK", 4)


def dataset_of(folder: Path, num_classes: int = 2) -> Dataset:
    dataset = open_dataset(folder, Role.LEARN, num_classes)
    assert dataset is not None
    return dataset


def images_of(folder: Path, *, batch_size: int = 8, workers: int = 0, strict: bool = False, **options: int) -> Images:
    return Images(dataset_of(folder), PLAIN, batch_size=batch_size, workers=workers, strict=strict, **options)


def seen(batches: Sequence[Batch]) -> list[tuple[int, int, int]]:
    """Index, label and level of every image."""
    return [
        (int(index), int(label), int(image[0, 0, 0]))
        for batch in batches
        for index, label, image in zip(batch.indices, batch.labels, batch.images, strict=True)
    ]


def expected(indices: Sequence[int]) -> list[tuple[int, int, int]]:
    return [(index, int(index >= 20), index) for index in indices]


class CountingDecoder:
    """Counts the images that an `Images` decodes."""

    def __init__(self, images: Images) -> None:
        self.decoded: list[str] = []
        self.shape = images._decoder.shape
        self._decoder = images._decoder
        images._decoder = self  # type: ignore[assignment]

    def __call__(self, paths: list[str]) -> object:  # noqa: D102
        self.decoded += paths
        return self._decoder(paths)


def test_batches_in_the_given_order(folder: Path) -> None:
    order = [39, 0, 25, 3, 3, 19, 20, 1, 2, 7]
    batches = list(images_of(folder, batch_size=4).batches(order))
    assert [len(batch.indices) for batch in batches] == [4, 4, 2]
    assert seen(batches) == expected(order)
    first = batches[0]
    assert (first.indices.dtype, first.images.dtype, first.labels.dtype) == (torch.int64, torch.uint8, torch.int64)
    assert first.images.shape == (4, 3, 4, 4)
    assert first.images.is_contiguous()


def test_no_indices_are_all_and_none_are_none(folder: Path) -> None:
    images = images_of(folder)
    assert seen(list(images.batches())) == expected(range(40))
    assert list(images.batches([])) == []


@pytest.mark.usefixtures("eager_workers")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(folder: Path, workers: int) -> None:
    (folder / "cat" / "07.png").write_bytes(b"")
    alone, together = images_of(folder), images_of(folder, workers=workers)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for _ in range(2):
        for one, other in zip(alone.batches(), together.batches(), strict=True):
            assert torch.equal(one.indices, other.indices)
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
    assert alone.unreadable == together.unreadable
    assert torch.equal(torch.get_rng_state(), state)


def test_small_work_starts_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sapcli.datasets.images, "map_in_workers", lambda *_: pytest.fail("workers were started"))
    assert seen(list(images_of(folder, workers=2).batches())) == expected(range(40))


def test_later_passes_decode_only_what_is_missing(folder: Path) -> None:
    images = images_of(folder)
    counting = CountingDecoder(images)
    list(images.batches(range(10)))
    assert len(counting.decoded) == 10
    assert seen(list(images.batches(range(5, 15)))) == expected(range(5, 15))
    assert len(counting.decoded) == 15
    assert seen(list(images.batches([14, 0, 3]))) == expected([14, 0, 3])
    assert len(counting.decoded) == 15


def test_memory_is_bounded(folder: Path) -> None:
    images = images_of(folder, keep_bytes=10 * 48)
    counting = CountingDecoder(images)
    for _ in range(2):
        assert seen(list(images.batches())) == expected(range(40))
    assert len(counting.decoded) == 40 + 30
    assert seen(list(images_of(folder, keep_bytes=0).batches())) == expected(range(40))


def test_batches_are_private_copies(folder: Path) -> None:
    images = images_of(folder)
    for batch in images.batches():
        batch.images.fill_(255)
    for batch in images.batches():
        batch.images.fill_(255)
    assert seen(list(images.batches())) == expected(range(40))


def test_two_passes_at_a_time_and_an_abandoned_one(folder: Path) -> None:
    images = images_of(folder)
    next(images.batches())
    forwards, backwards = images.batches(range(40)), images.batches(range(39, -1, -1))
    pairs = list(zip(forwards, backwards, strict=True))
    assert seen([one for one, _ in pairs]) == expected(range(40))
    assert seen([other for _, other in pairs]) == expected(range(39, -1, -1))


# Images that cannot be read


def test_unreadable_image_never_takes_anothers_place(folder: Path) -> None:
    (folder / "cat" / "03.png").write_bytes(b"")
    (folder / "cat" / "04.png").write_text("no image")
    (folder / "dog" / "25.png").unlink()
    whole = (folder / "dog" / "30.png").read_bytes()
    (folder / "dog" / "30.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "25.png").symlink_to("nowhere")
    images = images_of(folder, batch_size=5)
    for _ in range(2):
        batches = list(images.batches())
        assert seen(batches) == expected([index for index in range(40) if index not in {3, 4, 25, 30}])
        assert [len(batch.indices) for batch in batches] == [3, 5, 5, 5, 5, 4, 4, 5]
    assert sorted(images.unreadable) == [3, 4, 25, 30]
    assert images.unreadable[25] == "No such file or directory"
    assert "no image format" in images.unreadable[4]
    assert all("\n" not in reason for reason in images.unreadable.values())


def test_file_that_vanishes_after_the_listing(folder: Path) -> None:
    images = images_of(folder)
    (folder / "cat" / "00.png").unlink()
    assert seen(list(images.batches([0, 1]))) == expected([1])


@pytest.mark.usefixtures("eager_workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_strict_names_the_file(folder: Path, workers: int) -> None:
    (folder / "dog" / "35.png").write_bytes(b"x")
    images = images_of(folder, workers=workers, strict=True)
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"dog/35\.png: .*no image format"):
            list(images.batches())


def test_nothing_readable_is_an_error(folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"none of 3 images can be read; 'cat/05\.png'"):
        list(images_of(folder).batches([5, 6, 7]))


@pytest.mark.parametrize("index", [-1, 40])
def test_index_outside_the_dataset(folder: Path, index: int) -> None:
    with pytest.raises(DatasetError, match=f"no sample {index}, the indices go from 0 to 39"):
        list(images_of(folder).batches([0, index]))


# Faults


class DyingDecoder:
    """Ends its process at one image, as the kernel does when memory runs out."""

    def __init__(self, images: Images) -> None:
        self.shape = images._decoder.shape
        self._decoder = images._decoder
        self._main = os.getpid()

    def __call__(self, paths: list[str]) -> object:  # noqa: D102
        if any("30" in path for path in paths) and os.getpid() != self._main:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._decoder(paths)


@pytest.mark.usefixtures("eager_workers")
def test_dying_worker_is_a_clear_error(folder: Path) -> None:
    images = images_of(folder, workers=2, batch_size=4)
    images._decoder = DyingDecoder(images)  # type: ignore[assignment]
    with pytest.raises(DatasetError, match="died or could not start") as caught:
        list(images.batches())
    assert "--workers" in caught.value.hint
