"""Running out of memory in a batch: the run goes on with less, and its result is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.samples import classifier_of, folder_of, images_of
from torch import Tensor, nn

from sapcli.activations.bases import collect_bases
from sapcli.activations.scoring import score
from sapcli.datasets.images import Images
from sapcli.datasets.smaller_batches import in_portions, smaller_batch
from sapcli.errors import DeviceError
from sapcli.machine.out_of_memory import is_out_of_memory
from sapcli.machine.progress import SilentProgress
from sapcli.repairs.batchnorm import reestimate
from sapcli.repairs.selection import curvatures


class Warnings(SilentProgress):
    """Remembers what it is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        """Remember a warning."""
        self.said.append(text)


class Narrow(nn.Sequential):
    """A network in whose last layers no more than `room` images fit."""

    room = 1000

    def forward(self, images: Tensor) -> Tensor:
        """Run the layers, the first before memory runs out."""
        hidden = self[0](images)
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        for layer in list(self)[1:]:
            hidden = layer(hidden)
        return hidden


def narrow(room: int = 1000) -> Narrow:
    torch.manual_seed(0)
    network = Narrow(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    network.room = room
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("images"), {"cat": 10, "dog": 9})


@pytest.fixture
def images(folder: Path) -> Images:
    return images_of(folder, batch_size=16)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you ..."),
            True,
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: not enough memory: you tried ..."),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_are_about_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_a_real_allocation_raises_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


def test_halves_until_it_fits() -> None:
    progress = Warnings()
    assert smaller_batch(9, MemoryError(), progress) == 4
    assert progress.said == ["there is not enough memory for 9 images at a time: going on with 4"]
    with pytest.raises(DeviceError, match="a single image"):
        smaller_batch(1, MemoryError(), progress)
    with pytest.raises(ValueError, match="other"):
        smaller_batch(8, ValueError("other"), progress)


def test_portions_keep_their_order_and_later_batches_are_small(images: Images) -> None:
    progress = Warnings()

    def run(batch: object) -> list[int]:
        indices: list[int] = batch.indices.tolist()  # type: ignore[attr-defined]
        if len(indices) > 4:
            raise MemoryError
        return indices

    seen = [found for batch in images.batches() for found in in_portions(run, batch, images, progress)]
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18]]
    assert len(progress.said) == 2
    assert images.batch_size == 4


@pytest.mark.parametrize("room", [1, 3, 8])
def test_scores_are_the_same(folder: Path, images: Images, room: int) -> None:
    progress = Warnings()
    expected = score(classifier_of(narrow()), images_of(folder, 16), progress, "scoring")
    assert progress.said == []
    found = score(classifier_of(narrow(room)), images, progress, "scoring")
    assert progress.said
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.losses, expected.losses)


def test_curvatures_are_the_same(folder: Path, images: Images) -> None:
    _, expected = curvatures(classifier_of(narrow()), images_of(folder, 16), SilentProgress(), seed=1)
    indices, found = curvatures(classifier_of(narrow(5)), images, SilentProgress(), seed=1)
    assert indices.tolist() == list(range(19))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_no_row_counts_twice(folder: Path, images: Images) -> None:
    progress = Warnings()
    arguments = {"checkpoint": "", "samples": "", "progress": progress}
    expected = collect_bases(classifier_of(narrow()), images_of(folder, 16), range(19), **arguments)
    found = collect_bases(classifier_of(narrow(5)), images, range(19), **arguments)
    # A capture begins with half of a batch.
    assert progress.said == ["there is not enough memory for 8 images at a time: going on with 4"]
    for name, pieces in expected.pieces.items():
        assert [piece.basis.rows for piece in found.pieces[name]] == [piece.basis.rows for piece in pieces]
        torch.testing.assert_close(found.pieces[name][0].basis.values, pieces[0].basis.values)
    assert found.facts == expected.facts


def test_statistics_are_those_of_the_smaller_batches(folder: Path, images: Images) -> None:
    progress = Warnings()
    expected, found = narrow(), narrow(5)
    reestimate(classifier_of(expected), images_of(folder), range(19), progress, "re-estimating", batch_size=4)
    assert progress.said == []
    size = reestimate(classifier_of(found), images, range(19), progress, "re-estimating", batch_size=16).batch_size
    assert size == 4
    assert len(progress.said) == 2
    for name, buffer in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], buffer, rtol=0, atol=0)


def test_a_single_image_that_does_not_fit_is_an_error(images: Images) -> None:
    with pytest.raises(DeviceError, match="a single image"):
        score(classifier_of(narrow(0)), images, SilentProgress(), "scoring")
