"""Which weights are projected: those that can be, that the user wants, and why the others are not.

Beside patterns of names, `early` and `late` mean halves of the network: of its products, in the order of execution. On
networks trained on small images the late half alone holds nearly all that a repair gains (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from sapcli.errors import UsageError


class Part(StrEnum):
    """Parts of a network by their place; a weight or module that is called so comes first."""

    ALL = "all"
    EARLY = "early"
    LATE = "late"


@dataclass(frozen=True)
class LayerPlan:
    """Which weights are projected, and why the others are not.

    Attributes:
        projected: Names of weights, in the order of execution.
        skipped: Names of weights of two or more dimensions, with the reason.
    """

    projected: tuple[str, ...]
    skipped: Mapping[str, str]


def plan_layers(
    weights: Mapping[str, int],
    skipped: Mapping[str, str],
    num_classes: int,
    products: Mapping[str, float],
    *,
    layers: Sequence[str] = (),
    skip_layers: Sequence[str] = (),
    keep_classifier: bool = False,
) -> LayerPlan:
    """Choose the weights to project.

    Args:
        weights: The weights that can be, in the order of execution, each with its number of outputs.
        skipped: Those that cannot be, with the reason.
        num_classes: The network's number of outputs, by which its classifier is recognised.
        products: The multiplications of each weight, of an image or of any number of them.
        layers: Patterns (`layer4`, `*.qkv.weight`) or parts of the network (`late`); where there are any, only weights
            that one of them means.
        skip_layers: The same, of weights to leave as they are.
        keep_classifier: Whether the last layer stays as it is.

    Raises:
        UsageError: No weight can be projected, a pattern matches none, or `layers` only such as cannot be projected, or
            nothing is left.
    """
    if not weights:
        raise UsageError("no weight of the network can be projected", "see `sap inspect` for the reasons")
    names = [*weights, *skipped]
    check_patterns(names, layers, skip_layers)
    late = late_half({name: products[name] for name in weights})

    def means(pattern: str, name: str) -> bool:
        if not is_part(pattern, names):
            return matches(name, pattern)
        return pattern == Part.ALL or (name in late) == (pattern == Part.LATE)

    for pattern in layers:
        matching = [name for name in names if means(pattern, name)]
        if not weights.keys() & matching:
            raise UsageError(
                f"--layers {pattern}: {matching[0]} cannot be projected, it is {skipped[matching[0]]}",
                "leave the pattern out",
            )
    reasons = dict(skipped)
    classifier = set(_classifier(weights, num_classes)) if keep_classifier else set()
    for name in weights:
        if name in classifier:
            reasons[name] = "--keep-classifier"
        elif any(means(pattern, name) for pattern in skip_layers):
            reasons[name] = "--skip-layers"
        elif layers and not any(means(pattern, name) for pattern in layers):
            reasons[name] = "not in --layers"
    projected = tuple(name for name in weights if name not in reasons)
    if not projected:
        raise UsageError(
            "no weight is left to project", "widen --layers, or leave out --skip-layers or --keep-classifier"
        )
    return LayerPlan(projected, reasons)


def check_patterns(names: Sequence[str], layers: Sequence[str], skip_layers: Sequence[str]) -> None:
    """Make sure that every pattern means some weight, which can be done before anything has run.

    Raises:
        UsageError: A pattern matches none of the names.
    """
    for option, patterns in (("--layers", layers), ("--skip-layers", skip_layers)):
        for pattern in patterns:
            if not is_part(pattern, names) and not any(matches(name, pattern) for name in names):
                raise UsageError(
                    f"{option} {pattern} matches no weight", f"names are like {names[0]}; see `sap inspect`"
                )


def is_part(pattern: str, names: Sequence[str]) -> bool:
    """Whether a pattern is no weight's and no module's name, but that of a part of the network."""
    return pattern in [*Part] and not any(matches(name, pattern) for name in names)


def late_half(products: Mapping[str, float]) -> frozenset[str]:
    """The weights that are reached once half of all products are done; the last one, if none is.

    Args:
        products: The multiplications of each weight, in the order of execution.
    """
    half, done = sum(products.values()) / 2, 0.0
    late = []
    for name, count in products.items():
        if done >= half:
            late.append(name)
        done += count
    return frozenset(late or [*products][-1:])


def matches(name: str, pattern: str) -> bool:
    """Whether a shell pattern matches a weight's name or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:length]), pattern) for length in range(1, len(parts) + 1))


def _classifier(weights: Mapping[str, int], num_classes: int) -> list[str]:
    """The last weights of the execution that have one output a class: one, or one of each of several heads."""
    found: list[str] = []
    for name, outputs in reversed(list(weights.items())):
        if outputs != num_classes:
            break
        found.append(name)
    return found or [*weights][-1:]
