"""Wrong labels made on purpose, of the kinds that studies of label noise use.

Every kind says for each class which others it is taken for: all (symmetric), one (asymmetric), or those of its group
(hierarchical). Of each class that has any, a share of the labels is replaced, each by one of these drawn uniformly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sapcli.errors import UsageError
from sapcli.settings import NoiseKind

# The usual pairs for CIFAR-10 (Patrini et al., "Making Deep Neural Networks Robust to Label Noise", CVPR 2017).
_CIFAR10_PAIRS = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
_CIFAR10_GROUPS = (("airplane", "automobile", "ship", "truck"), ("bird", "cat", "deer", "dog", "frog", "horse"))
_CIFAR10 = frozenset(name for group in _CIFAR10_GROUPS for name in group)


@dataclass(frozen=True)
class Confusions:
    """Which classes are taken for which.

    Attributes:
        of: For each class whose labels become wrong, the classes that they become.
        words: The same for people.
    """

    of: Mapping[str, tuple[str, ...]]
    words: str


def confusions(
    kind: NoiseKind,
    classes: Sequence[str],
    pairs: Sequence[tuple[str, str]] = (),
    groups: Sequence[Sequence[str]] = (),
) -> Confusions:
    """The confusions of one kind of noise.

    Args:
        kind: The kind.
        classes: The names of all classes, at least two.
        pairs: For asymmetric noise, classes and those that they are taken for. Without any, CIFAR-10's usual ones where
            the classes are CIFAR-10's, else each class and the next, after the last the first.
        groups: For hierarchical noise, classes that are taken for each other. Without any, CIFAR-10's vehicles and
            animals where the classes are CIFAR-10's.

    Raises:
        UsageError: A name is no class, a class stands in two groups or is taken for itself, or groups are needed.
    """
    is_cifar10 = frozenset(classes) == _CIFAR10
    if kind is NoiseKind.SYMMETRIC:
        return Confusions({name: _without(name, classes) for name in classes}, "any other class")
    if kind is NoiseKind.ASYMMETRIC:
        if pairs:
            _check_names("--pair", (name for pair in pairs for name in pair), classes)
            chosen = {name: tuple(other for first, other in pairs if first == name) for name, _ in pairs}
            same = next((name for name, others in chosen.items() if name in others), None)
            if same is not None:
                raise UsageError(f"--pair {same}={same} takes a class for itself", "name another class after the =")
            return Confusions(chosen, "the pairs that are given")
        if is_cifar10:
            return Confusions({name: (other,) for name, other in _CIFAR10_PAIRS.items()}, "CIFAR-10's usual pairs")
        following = [*classes[1:], classes[0]]
        return Confusions(
            {name: (other,) for name, other in zip(classes, following, strict=True)}, "the next class in order"
        )
    if not groups:
        if not is_cifar10:
            raise UsageError(
                "hierarchical noise needs groups of classes",
                "name them, for instance --group cat,dog --group car,truck",
            )
        groups, words = _CIFAR10_GROUPS, "CIFAR-10's vehicles and animals"
    else:
        _check_names("--group", (name for group in groups for name in group), classes)
        words = "another class of the same group"
    chosen = {}
    for group in groups:
        for name in group:
            if name in chosen or len(set(group)) < len(group):
                raise UsageError(f"class {name!r} stands twice in --group", "a class belongs to one group")
            chosen[name] = _without(name, group)
    return Confusions({name: others for name, others in chosen.items() if others}, words)


def noisy_labels(
    labels: npt.NDArray[np.int64], classes: Sequence[str], taken_for: Confusions, rate: float, seed: int
) -> npt.NDArray[np.int64]:
    """The labels with a share of them replaced.

    Of every class with confusions, `round(rate * count)` labels are replaced, chosen by the seed.

    Args:
        labels: The right ones, as positions in `classes`, shape `[N]`.
        classes: The names of all classes.
        taken_for: What each class is taken for.
        rate: The share, in [0, 1].
        seed: For the choice and the replacements.

    Returns:
        The same shape; the input stays as it is.
    """
    generator = np.random.default_rng(seed)
    number = {name: position for position, name in enumerate(classes)}
    noisy = labels.copy()
    for name, others in taken_for.of.items():
        members = np.flatnonzero(labels == number[name])
        wrong = generator.permutation(members)[: round(rate * len(members))]
        noisy[wrong] = generator.choice([number[other] for other in others], len(wrong))
    return noisy


def _without(name: str, classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(other for other in classes if other != name)


def _check_names(option: str, names: Iterable[str], classes: Sequence[str]) -> None:
    unknown = next((name for name in names if name not in classes), None)
    if unknown is not None:
        shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise UsageError(f"{option}: there is no class {unknown!r}", f"the classes are {shown}")
