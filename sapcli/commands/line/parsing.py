"""Values of options that are more than a word or a number."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Sequence

import typer

from sapcli.errors import UsageError
from sapcli.settings import Importance

# Beyond this, a picture's side is a mistake; so is a picture of so many values, which as numbers is a GiB or more.
_LARGEST_SIDE = 1 << 16
_MOST_VALUES = 1 << 28
_MOST_DIGITS = 18


def finite(value: float | None) -> float | None:
    """The value of an option, which has to be a number and not infinite.

    Raises:
        typer.BadParameter: It is not.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def parse_input_size(text: str | None) -> tuple[int, int, int] | None:
    """`C,H,W`, or `H,W` or one side for three channels.

    Raises:
        UsageError: It is none of these.
    """
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        numbers = []
    sizes = {1: [3, *numbers, *numbers], 2: [3, *numbers], 3: numbers}.get(len(numbers))
    if sizes is None or min(sizes) < 1 or max(sizes) > _LARGEST_SIDE:
        raise UsageError(f"--input-size {text}: expected C,H,W", "write it like --input-size 3,224,224")
    channels, height, width = sizes
    if channels * height * width > _MOST_VALUES:
        raise UsageError(
            f"--input-size {text}: an image of {channels * height * width:,} values is larger than any network's",
            f"give the size of the training; no more than {_MOST_VALUES:,} values run",
        )
    return channels, height, width


def parse_numbers(option_name: str, text: str | None) -> tuple[float, ...] | None:
    """Comma-separated numbers.

    Raises:
        UsageError: One is no number.
    """
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{option_name} {text}: expected numbers", f"write it like {option_name} 0.485,0.456,0.406")
    return numbers


def parse_alpha(text: str, importance: Importance) -> float | None:
    """The value of `--alpha`, `None` for `auto`.

    Raises:
        UsageError: It is no number, or out of range.
    """
    if text == "auto":
        return None
    fraction = importance.takes_fraction
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not (0 < alpha <= 1 if fraction else 0 < alpha < math.inf):
        raise UsageError(
            f"--alpha {text}: expected auto or a number above 0" + (" and up to 1" if fraction else ""),
            f"0.99 is usual with --importance {importance}" if fraction else "values from 1000 to 10000 are usual",
        )
    return alpha


def parse_candidates(text: str) -> int | None:
    """The value of `--candidates`, `None` for `auto`; `all` is more than there can be.

    Raises:
        UsageError: It is neither of these nor a whole number above 0.
    """
    if text in ("auto", "all"):
        return None if text == "auto" else sys.maxsize
    if not (text.isascii() and text.isdigit() and int(text[:_MOST_DIGITS]) > 0 and len(text) < _MOST_DIGITS):
        raise UsageError(
            f"--candidates {text}: expected auto, all or a number above 0", "20 a trusted sample are usual"
        )
    return int(text)


def parse_arguments(pairs: Sequence[str]) -> dict[str, object]:
    """The factory's arguments from `key=value` texts; a value that is no Python literal is a string.

    `true`, `false` and `null` are understood as in JSON.

    Raises:
        UsageError: If a text has no `=`, or no name before it, or a name comes twice.
    """
    words: dict[str, object] = {"true": True, "false": False, "null": None}
    arguments: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier() or key in arguments:
            problem = "comes twice" if key in arguments else "is not of the form key=value"
            raise UsageError(f"--arch-arg {pair!r} {problem}", "Write it like --arch-arg img_size=256, each name once.")
        try:
            arguments[key] = words[text] if text in words else ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            arguments[key] = text
    return arguments
