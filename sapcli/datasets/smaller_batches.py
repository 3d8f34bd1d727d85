"""Running out of memory in a batch, and going on with smaller ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from sapcli.errors import DeviceError
from sapcli.machine.out_of_memory import is_out_of_memory
from sapcli.machine.progress import Progress

if TYPE_CHECKING:
    from sapcli.datasets.images import Batch, Images

Result = TypeVar("Result")


def smaller_batch(size: int, error: Exception, progress: Progress) -> int:
    """Half of a batch that did not fit into memory.

    Args:
        size: How many images the batch had.
        error: What running it raised.
        progress: Told of the new size.

    Raises:
        DeviceError: There was but one image.
        Exception: `error`, where it is about something else than memory.
    """
    if not is_out_of_memory(error):
        raise error
    if size <= 1:
        raise DeviceError(
            "there is not enough memory for a single image",
            "end what else uses the memory, or run on another --device",
        ) from error
    progress.warn(f"there is not enough memory for {size} images at a time: going on with {size // 2}")
    return size // 2


def in_portions(run: Callable[[Batch], Result], batch: Batch, images: Images, progress: Progress) -> Iterator[Result]:
    """What `run` makes of a batch: of the whole, or where memory runs out, of ever smaller parts in their order.

    Args:
        run: Has no effect but its result, so that it can be tried again.
        batch: The images to run.
        images: Where they come from; its later batches are no larger than what fitted.
        progress: Told when memory runs out.
    """
    done = 0
    while done < len(batch.indices):
        part = batch.part(done, images.batch_size)
        try:
            result = run(part)
        except (MemoryError, RuntimeError) as error:
            images.batch_size = smaller_batch(len(part.indices), error, progress)
        else:
            done += len(part.indices)
            yield result
