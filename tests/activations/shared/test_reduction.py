"""Second moments in parts, against those of all rows in float64; the collectives are done in this process, in turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sapcli.activations.bases import Piece, SecondMoments
from sapcli.machine.parallel.packing import whole_batches
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import SilentProgress


class Threads(Ranks):
    """The processes of a run as threads of this one, whose collectives are written out."""

    def __init__(self, rank: int, world: int, board: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, world)
        self._board, self._barrier = board, barrier

    def _exchange(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(60)
        found = list(self._board)
        self._barrier.wait(60)
        return found

    def together(self, work: Callable[[], Any]) -> list[Any]:
        """What every rank made."""
        return self._exchange(work())

    def reduce(self, tensor: Tensor, owner: int, what: str) -> None:
        """The sum, in the owner's."""
        self.moved[what] += tensor.nbytes
        parts = self._exchange(tensor.clone())
        if self.rank == owner:
            tensor.copy_(torch.stack(parts).sum(dim=0))

    def gather(self, tensor: Tensor, owner: int, counts: Sequence[int], what: str) -> list[Tensor] | None:
        """All, for the owner."""
        self.moved[what] += tensor.nbytes
        parts = self._exchange(tensor)
        assert [part.shape[1] for part in parts] == list(counts)
        return parts if self.rank == owner else None

    def broadcast(self, tensor: Tensor, owner: int, what: str) -> None:
        """The owner's."""
        self.moved[what] += tensor.nbytes
        tensor.copy_(self._exchange(tensor.clone())[owner])


class Network(nn.Module):
    """A convolution, a wide layer with fewer rows than columns, a weight that is used twice, and one for few images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.wide = nn.Linear(4 * 8 * 8, 6)
        self.twice = nn.Linear(6, 6)
        self.expert = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        hidden = self.twice(self.twice(self.wide(torch.relu(self.conv(images)).flatten(1))).relu())
        if bool((images[:, 0, 0, 0] > 0.5).any()):
            hidden[:, :3] += self.expert(hidden)
        return hidden[:, :3]


def bases_of_ranks(module: nn.Module, images: Tensor, size: int, world: int) -> list[tuple[Any, Ranks]]:
    """The pieces that each of several ranks ends with."""
    board, barrier = [None] * world, threading.Barrier(world)
    found: list[Any] = [None] * world
    # A network's dispatch is watched a thread at a time.
    one = threading.Lock()

    def run(rank: int) -> None:
        ranks = Threads(rank, world, board, barrier)
        with one:
            moments = SecondMoments(module, len(images))
            positions = whole_batches(len(images), size, rank, world)
            with moments.capture:
                for start in range(0, len(positions), size):
                    batch = positions[start : start + size]
                    moments.forward(images[batch], batch[0])
        moments.reduce(torch.device("cpu"), ranks)
        skipped = moments.skipped()
        found[rank] = (moments.shared_pieces(torch.device("cpu"), SilentProgress(), ranks), skipped, ranks)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(found), "a rank failed"
    return found


def moment(piece: Piece) -> Tensor:
    vectors, values = piece.basis.vectors.double(), piece.basis.values
    return vectors @ torch.diag_embed(values) @ vectors.mT


@pytest.mark.parametrize("world", [2, 3])
def test_the_bases_are_those_of_one_process(world: int) -> None:
    torch.manual_seed(0)
    module = Network().eval()
    # 30 of its rows for 256 columns; one image in the last batch alone reaches the expert.
    images = torch.rand(30, 3, 8, 8) / 2
    images[29, 0, 0, 0] = 0.9
    alone = SecondMoments(module, 30)
    with alone.capture:
        for start in range(0, 30, 4):
            alone.forward(images[start : start + 4])
    skipped, expected = alone.skipped(), alone.pieces(SilentProgress())
    found = bases_of_ranks(module, images, 4, world)
    for pieces, left_out, ranks in found:
        assert list(pieces) == list(expected)
        assert left_out == skipped
        for name, (piece,) in pieces.items():
            (reference,) = expected[name]
            assert piece.basis.rows == reference.basis.rows
            torch.testing.assert_close(moment(piece), moment(reference), rtol=1e-5, atol=1e-6)
        summed = 8 * (27**2 + 2 * 6**2) + 8 * 30 * 256
        assert sum(ranks.moved.values()) <= 2 * summed
    # Each weight is decomposed once.
    costs = [ranks.work["decomposition"] for _, _, ranks in found]
    assert sum(costs) == 27**3 + 30**3 + 6**3 + 4**3 or sum(costs) == 27**3 + 30**3 + 6**3 + 2**3
