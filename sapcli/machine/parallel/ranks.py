"""The processes of a run and what they hand to each other; `torch.distributed` does the work.

Every process runs the same program on the same inputs. Where they divide work, each does its share and hands the result
to the others, so that all of them decide alike from there on. What one of them raises in its share is raised in all.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from sapcli.errors import DeviceError, SapError, unexpected
from sapcli.machine.out_of_memory import is_out_of_memory

Result = TypeVar("Result")

# Nobody waits so long for another one's honest work; one that has died is noticed by `watch` within seconds.
PATIENCE = datetime.timedelta(hours=2)


class Ranks:
    """A single process: it has all of the work and waits for nobody.

    Attributes:
        rank: Which process this is, from 0.
        world: How many there are.
        moved: The bytes of tensors that this process gave to or took from collectives, by what they are.
        work: What this process has done, by what it is: images, operations.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world
        self.moved: Counter[str] = Counter()
        self.work: Counter[str] = Counter()

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def share(self, indices: Sequence[int]) -> Sequence[int]:
        """This process' part: every `world`-th, no one twice."""
        return indices[self.rank :: self.world] if self.world > 1 else indices

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """Do this process' part, and return what every process made of its own, in the order of the ranks.

        Raises:
            SapError: A process failed; all raise what the first of them raised.
        """
        return [work()]

    def from_first(self, make: Callable[[], Result]) -> Result:
        """What the first process makes, in all of them.

        Raises:
            SapError: It failed.
        """
        return make()

    def reduce(self, tensor: Tensor, owner: int, what: str) -> None:
        """Sum the tensors of all processes into that of `owner`, in place; those of the others are lost."""

    def gather(self, tensor: Tensor, owner: int, counts: Sequence[int], what: str) -> list[Tensor] | None:  # noqa: ARG002
        """Hand tensors that differ in their second dimension to `owner`: those of all ranks; `None` elsewhere.

        Args:
            tensor: `[groups, n, d]`.
            owner: Who gets them.
            counts: `n` of every rank.
            what: What they are, for `moved`.
        """
        return [tensor]

    def broadcast(self, tensor: Tensor, owner: int, what: str) -> None:
        """Have the tensors of all processes hold what that of `owner` holds."""

    def sum(self, tensor: Tensor, what: str) -> None:
        """Sum the tensors of all processes into each of them, in place."""

    def mean(self, tensor: Tensor, what: str) -> Tensor:
        """The mean of the tensors of all processes, in each of them; in place."""
        self.sum(tensor, what)
        return tensor.div_(self.world) if self.world > 1 else tensor


ALONE = Ranks()
"""A single process, where nobody counts what it does."""


class ProcessRanks(Ranks):
    """The processes of an initialised `torch.distributed` group.

    Args:
        explain: Says in words why a collective failed, once it is known: which process has ended.
    """

    def __init__(self, explain: Callable[[str], SapError]) -> None:
        super().__init__(dist.get_rank(), dist.get_world_size())
        self._explain = explain

    def together(self, work: Callable[[], Result]) -> list[Result]:  # noqa: D102 - as inherited
        mine = _attempted(work, self.rank)
        found: list[tuple[SapError | None, Result | None]] = [(None, None)] * self.world
        self._do(lambda: dist.all_gather_object(found, mine))
        for rank, (failure, _) in enumerate(found):
            if failure is not None:
                # One's own still knows where it came from.
                raise mine[0] if rank == self.rank and mine[0] is not None else failure
        return [cast(Result, result) for _, result in found]

    def from_first(self, make: Callable[[], Result]) -> Result:  # noqa: D102 - as inherited
        made = [_attempted(make, None) if self.is_first else (None, None)]
        self._do(lambda: dist.broadcast_object_list(made, src=0))
        failure, result = made[0]
        if failure is not None:
            raise failure
        return cast(Result, result)

    def reduce(self, tensor: Tensor, owner: int, what: str) -> None:  # noqa: D102 - as inherited
        self.moved[what] += tensor.nbytes
        self._do(lambda: dist.reduce(tensor, dst=owner))

    def gather(self, tensor: Tensor, owner: int, counts: Sequence[int], what: str) -> list[Tensor] | None:  # noqa: D102
        if self.rank != owner:
            if tensor.numel():
                self.moved[what] += tensor.nbytes
                self._do(lambda: dist.send(tensor.contiguous(), dst=owner))
            return None
        groups, _, length = tensor.shape
        found = []
        for rank, count in enumerate(counts):
            part = tensor if rank == owner else tensor.new_empty(groups, count, length)
            if rank != owner and part.numel():
                self.moved[what] += part.nbytes
                self._do(lambda part=part, rank=rank: dist.recv(part, src=rank))  # type: ignore[misc]
            found.append(part)
        return found

    def broadcast(self, tensor: Tensor, owner: int, what: str) -> None:  # noqa: D102 - as inherited
        self.moved[what] += tensor.nbytes
        self._do(lambda: dist.broadcast(tensor, src=owner))

    def sum(self, tensor: Tensor, what: str) -> None:  # noqa: D102 - as inherited
        self.moved[what] += tensor.nbytes
        self._do(lambda: dist.all_reduce(tensor))

    def _do(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except (RuntimeError, EOFError, OSError) as error:
            # What the backends raise when the other end is gone says an address, and no rank.
            if is_out_of_memory(error):
                raise
            raise self._explain(str(error)) from error


def _attempted(work: Callable[[], Result], rank: int | None) -> tuple[SapError | None, Result | None]:
    """What `work` returns, or what it raises as an error that can be handed on."""
    try:
        return None, work()
    except SapError as error:
        return error, None
    except Exception as error:
        who = "" if rank is None else f" on rank {rank}"
        if is_out_of_memory(error):
            return DeviceError(
                f"there is not enough memory{who}", "end what else uses it, or run fewer processes on a machine"
            ), None
        failure = unexpected(error, f"something went wrong{who} that should not")
        failure.__cause__ = error
        return failure, None


def device_of_tensors(device: torch.device) -> torch.device:
    """Where tensors are handed over for a device: there, or on the CPU where no backend moves them from there."""
    return device if device.type == "cuda" else torch.device("cpu")
