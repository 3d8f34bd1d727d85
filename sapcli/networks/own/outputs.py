"""What networks return in the place of a tensor of logits: taken where they say which part it is, else described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sapcli.errors import ArchitectureError

WITHOUT_GRADIENT = (
    "Take torch.no_grad, detach and NumPy out of its forward pass, or do without: --strategy loss needs no gradient;"
    " --debug shows the traceback."
)
"""What to do where a network cannot be differentiated."""
_LOGITS = "logits"
_LISTED = 6
_LONGEST = 60


def logits_alone(module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ARG001 - a forward hook has all three
    """A forward hook that returns the logits of an output that names them, or has nothing else; else the output.

    They are named by a key or an attribute `logits`, as in dictionaries, data classes, named tuples and the outputs of
    transformers.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        named = output.get(_LOGITS, getattr(output, _LOGITS, None))
        parts: list[object] = list(output.values())
    else:
        named = getattr(output, _LOGITS, None)
        parts = list(output) if isinstance(output, tuple | list) else []
    if isinstance(named, Tensor):
        return named
    return parts[0] if len(parts) == 1 and isinstance(parts[0], Tensor) else output


def require_gradient(logits: Tensor, name: str) -> None:
    """Raise where a network's logits, computed to be differentiated, have no gradient.

    Raises:
        ArchitectureError: The network of this name takes it away.
    """
    if not logits.requires_grad:
        raise ArchitectureError(f"the logits of {name} have no gradient, and this needs one", WITHOUT_GRADIENT)


def described(output: object) -> str:
    """What an output is, in words: `a tuple of a tensor [2, 16] and a tensor [2, 3]`."""
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    kind = type(output).__name__
    kind = f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
    if isinstance(output, Mapping):
        keys = [f"{str(key)[:_LONGEST]!r}" for key in list(output)[:_LISTED]]
        return f"{kind} with {', '.join(keys)}" if keys else f"{kind} without anything"
    if isinstance(output, tuple | list):
        parts = [described(part) if isinstance(part, Tensor) else type(part).__name__ for part in output[:_LISTED]]
        return f"{kind} of {', '.join(parts)}" if parts else f"{kind} of nothing"
    return kind


def way_out(output: object, classes: int | None = None) -> str:
    """What to write so that a network that returns `output` returns logits, a sentence without its full stop.

    Args:
        output: What it returns for some images.
        classes: How many classes there are, where that is known.
    """
    if isinstance(output, Tensor):
        if output.dim() > 2 and output.numel() == output.shape[0] * max(output.shape[1:]):
            return "have it return .flatten(1) of that"
        if output.dim() < 2:
            return "a squeeze() in it drops the batch of one image: have it return .flatten(1) of what it squeezes"
        return "give a factory whose module returns one row of logits an image"
    part = "[...]"
    if isinstance(output, Mapping):
        part = f"[{_key(output, classes)}]"
    elif isinstance(output, tuple | list):
        part = f"[{_position(output, classes)}]"
    return f"return its logits alone: class Logits(NETWORK): forward = lambda self, x: super().forward(x){part}"


def _key(output: Mapping[object, object], classes: int | None) -> str:
    fitting = [key for key, part in output.items() if _is_row(part, classes)]
    return f"{str(fitting[0])[:_LONGEST]!r}" if len(fitting) == 1 else "KEY"


def _position(output: tuple[object, ...] | list[object], classes: int | None) -> str:
    fitting = [position for position, part in enumerate(output) if _is_row(part, classes)]
    return str(fitting[0]) if len(fitting) == 1 else "POSITION"


def _is_row(part: object, classes: int | None) -> bool:
    return isinstance(part, Tensor) and part.dim() == 2 and classes in (None, part.shape[1])
