"""How it shows that memory has run out."""

from __future__ import annotations

# What CUDA's allocator, MPS', the CPU's, and the libraries of CUDA say; only the first has an exception of its own.
# The last is the loader's of libraries, under a limit on addresses.
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED", "failed to map segment")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python's, PyTorch's or the loader's says that memory ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and any(sign in str(error) for sign in _SIGNS)
    )
