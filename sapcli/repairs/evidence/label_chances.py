"""How likely each label is wrong, and how many are, calibrated without any label that is known to be right.

**With held-out images.** `label_noise` finds from a network's answers to held-out images what its logits say of the
true classes, and how labels come of these. A training image was part of the training, which raised the logit of its own
label, right or wrong. So that logit is lowered, of all images by the one number with which as many of their labels are
wrong as of held-out labels; then the chance of every class follows by Bayes' rule. That takes for granted that training
and held-out labels came about in the same way.

**Without them.** A mixture of two normal distributions over the logarithm of the losses, as in Arazo et al. (ICML 2019)
and DivideMix (Li et al., ICLR 2020), made monotone. Its share of wrong labels depends on the shape of the
distributions, which nothing tells; the interval therefore reaches from the number that confident learning counts
(Northcutt et al., JAIR 2021), which is too low where labels are memorised, to the share that the mixture has with
equal variances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sapcli.activations.scoring import Outcomes
from sapcli.activations.views import Views
from sapcli.repairs.evidence.label_noise import LabelNoise, fit_again, fit_label_noise, memorised, without_own_label

_FEW_HELD_OUT = 100
_REPLICATES = 20
_REPLICATED_IMAGES, _REPLICATED_HELD_OUT = 20_000, 5_000
# Where training overrides so much of what the network would say otherwise, its answers tell nothing of the labels.
_MOSTLY_MEMORISED = 0.85
_MEMORISED_AGREEMENT = 0.97
_MUCH_CLEANER = 1 / 4
_CHUNK = 20_000
_ROUNDS = 200
_LARGEST_GAP = 60.0


@dataclass(frozen=True)
class Interval:
    """An estimate between its bounds, of a share in [0, 1] or of a number of labels."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairNoise:
    """How many samples with the label `given` are of the class `true`, by position; an estimate."""

    given: int
    true: int
    count: Interval


@dataclass(frozen=True)
class LabelChances:
    """What is known of the labels without knowing one.

    Attributes:
        wrong: The chance that each label is wrong, float64 `[n]`, in the order of the views.
        likely: Each sample's most probable classes but the given one, the first first, int64 `[n, k]`.
        share: The share of wrong labels.
        pairs: How many are of which kind, the most frequent first; empty where that cannot be told.
        source: What they were calibrated on, in words.
        doubts: Why they may be wrong, a sentence each; empty where nothing says so.
    """

    wrong: Tensor
    likely: Tensor
    share: Interval
    pairs: tuple[PairNoise, ...]
    source: str
    doubts: tuple[str, ...]


def label_chances(views: Views, held_out: Views | None, *, shown: int = 9, seed: int = 0) -> LabelChances:
    """Estimate how likely each label is wrong.

    Args:
        views: What the network makes of the images in question, which it may have been trained on.
        held_out: What it makes of images that it was not trained on, with labels that came about in the same way.
        shown: How many likely classes are named of each sample.
        seed: Of the random draws that intervals come from.
    """
    views, held_out = _bounded(views), None if held_out is None else _bounded(held_out)
    labels = views.outcomes.labels
    mixture = _by_mixture(views)
    likely = _likely(views.logits, labels, shown) if views.has_logits else views.outcomes.predictions.unsqueeze(1)
    alone = LabelChances(mixture[0], likely, mixture[1], (), "the losses alone", _doubts_of_losses(views, held_out))
    if held_out is None or not (views.has_logits and held_out.has_logits) or len(held_out.outcomes) < _FEW_HELD_OUT:
        return alone
    noises = fit_label_noise(held_out.logits, held_out.outcomes.labels)
    found = [_of_noise(noise, views, held_out) for noise in noises]
    wrong = torch.stack([each for each, _ in found]).mean(dim=0)
    if not bool(torch.isfinite(wrong).all()):
        return replace(alone, doubts=(*alone.doubts, "nothing could be fitted to the held-out images"))
    counts = torch.stack([each for _, each in found]).mean(dim=0)
    draws = _replicates(noises, views, held_out, seed)
    spread = torch.stack([counts_of.sum() for counts_of in draws]).std()
    share = _interval(float(wrong.mean()), float(spread), 1.0)
    pairs = _pairs(counts * len(labels), torch.stack(draws).std(dim=0) * len(labels))
    doubts = _doubts(views, held_out.outcomes.accuracy, share, mixture[1])
    source = f"{len(held_out.outcomes):,} held-out images"
    return LabelChances(wrong, likely, share, pairs, source, doubts)


def _bounded(views: Views) -> Views:
    """The views with logits that can be computed with: a network may rule classes out altogether."""
    if not views.has_logits:
        return views
    lowest = views.logits.amax(dim=1, keepdim=True) - _LARGEST_GAP
    return replace(views, logits=torch.maximum(views.logits, lowest))


def _of_noise(noise: LabelNoise, views: Views, held_out: Views) -> tuple[Tensor, Tensor]:
    """The chance of each label to be wrong, and the shares of the pairs of classes, under some noise."""
    share = float(_wrong_and_counts(noise, held_out.logits, held_out.outcomes.labels, 0.0)[0].mean())
    lowered = memorised(noise, views.logits, views.outcomes.labels, share)
    return _wrong_and_counts(noise, views.logits, views.outcomes.labels, lowered)


def _wrong_and_counts(noise: LabelNoise, logits: Tensor, labels: Tensor, lowered: float) -> tuple[Tensor, Tensor]:
    """The chance of each label to be wrong, and the share of all samples that is of each given and true class."""
    classes = logits.shape[1]
    wrong = torch.zeros(len(labels), dtype=torch.float64)
    counts = torch.zeros(classes, classes, dtype=torch.float64)
    for start in range(0, len(labels), _CHUNK):
        part = slice(start, start + _CHUNK)
        own = labels[part]
        posterior = noise.posterior(without_own_label(logits[part], own, lowered), own)
        right = posterior.gather(1, own.unsqueeze(1)).squeeze(1)
        wrong[part] = 1 - right
        counts.index_add_(0, own, posterior)
    counts.fill_diagonal_(0)
    return wrong, counts / max(len(labels), 1)


def _replicates(noises: Sequence[LabelNoise], views: Views, held_out: Views, seed: int) -> list[Tensor]:
    """The shares of each given and true class again, of held-out images drawn with replacement (bootstrap).

    Each draw takes the next of the noises, so that what the priors make of it is in the spread.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(held_out.outcomes)
    step = -(-len(views.outcomes) // _REPLICATED_IMAGES)
    part = replace(views, logits=views.logits[::step], outcomes=_every(views.outcomes, step))
    found = []
    for number in range(_REPLICATES):
        drawn = torch.randint(count, (min(count, _REPLICATED_HELD_OUT),), generator=generator)
        again = replace(held_out, logits=held_out.logits[drawn], outcomes=_chosen(held_out.outcomes, drawn))
        noise = fit_again(noises[number % len(noises)], again.logits, again.outcomes.labels)
        found.append(_of_noise(noise, part, again)[1])
    return found


def _every(outcomes: Outcomes, step: int) -> Outcomes:
    return _chosen(outcomes, torch.arange(0, len(outcomes), step))


def _chosen(outcomes: Outcomes, rows: Tensor) -> Outcomes:
    return Outcomes(**{name: column[rows] for name, column in vars(outcomes).items()})


def _interval(value: float, deviation: float, most: float) -> Interval:
    reach = 1.96 * deviation
    return Interval(value, max(0.0, value - reach), min(most, value + reach))


def _pairs(counts: Tensor, deviations: Tensor) -> tuple[PairNoise, ...]:
    """The pairs with at least half a sample, the most frequent first."""
    order = counts.flatten().argsort(descending=True, stable=True)
    classes = len(counts)
    pairs = []
    for position in order.tolist():
        given, true = divmod(position, classes)
        value = float(counts[given, true])
        if value < 0.5:
            break
        pairs.append(PairNoise(given, true, _interval(value, float(deviations[given, true]), math.inf)))
    return tuple(pairs)


def _likely(logits: Tensor, labels: Tensor, shown: int) -> Tensor:
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.topk(min(shown, logits.shape[1] - 1), dim=1).indices if logits.shape[1] > 1 else labels.unsqueeze(1)


def _by_mixture(views: Views) -> tuple[Tensor, Interval]:
    """The chances and the share by the losses alone."""
    logs = (views.outcomes.losses.double() + 1e-6).log()
    if len(logs) < 10 or float(logs.std()) < 1e-6:
        return torch.zeros(len(logs), dtype=torch.float64), Interval(0.0, 0.0, 1.0)
    wrong = normal_mixture(logs, tied=False)
    order = logs.argsort(stable=True)
    monotone = torch.empty_like(wrong)
    monotone[order] = wrong[order].cummax(0).values
    shares = [float(monotone.mean()), float(normal_mixture(logs, tied=True).mean())]
    if views.has_logits:
        shares.append(confident_share(views.logits, views.outcomes.labels))
    return monotone, Interval(shares[0], min(shares), max(shares))


def normal_mixture(values: Tensor, *, tied: bool) -> Tensor:
    """The chance of each value to be of the higher of two normal distributions, by expectation maximisation.

    Args:
        values: Float64 `[n]`.
        tied: Whether both have the same variance.
    """
    halves = values >= values.median()
    chance = torch.where(halves, 0.9, 0.1).double()
    floor = 1e-6 * float(values.var()) + 1e-12
    for _ in range(_ROUNDS):
        weights = torch.stack([1 - chance, chance])
        sizes = weights.sum(dim=1).clamp_min(1e-9)
        means = (weights @ values) / sizes
        squares = (weights * (values - means.unsqueeze(1)).square()).sum(dim=1)
        variances = (squares.sum() / len(values)).expand(2) if tied else squares / sizes
        variances = variances.clamp_min(floor)
        logs = (sizes / len(values)).log().unsqueeze(1) - 0.5 * variances.log().unsqueeze(1)
        logs = logs - 0.5 * (values - means.unsqueeze(1)).square() / variances.unsqueeze(1)
        updated = logs.softmax(dim=0)[1]
        settled = float((updated - chance).abs().max()) < 1e-6
        chance = updated
        if settled:
            break
    return chance


def confident_share(logits: Tensor, labels: Tensor) -> float:
    """The share of wrong labels that confident learning counts (Northcutt et al., JAIR 2021, section 3.1).

    A sample counts where a class is at least as probable as it is on average among the samples labeled so; those
    counts, scaled to the number of labels of each class, are the joint distribution of given and true labels.
    """
    classes = logits.shape[1]
    probabilities = logits.double().softmax(dim=1)
    sizes = torch.bincount(labels, minlength=classes).double()
    own = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    thresholds = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, own) / sizes.clamp_min(1)
    thresholds[sizes == 0] = torch.inf
    passed = probabilities.masked_fill(probabilities < thresholds, -1)
    best, counted = passed.argmax(dim=1), passed.amax(dim=1) >= 0
    right = torch.zeros(classes, dtype=torch.float64)
    right.index_add_(0, labels[counted], (best == labels)[counted].double())
    total = torch.bincount(labels[counted], minlength=classes).double()
    share_right = torch.where(total > 0, right / total.clamp_min(1), 1.0)
    return 1 - float((share_right * sizes).sum() / sizes.sum().clamp_min(1))


def _doubts(views: Views, agreement: float, share: Interval, mixture: Interval) -> tuple[str, ...]:
    doubts = []
    here = views.outcomes.accuracy
    overridden = (here - agreement) / max(1 - agreement, 1e-9)
    if overridden > _MOSTLY_MEMORISED:
        doubts.append(
            f"the model reproduces {here:.1%} of these labels and {agreement:.1%} of held-out ones: it memorised them,"
            " and tells right and wrong ones apart no better than that; repair it first"
        )
    if share.value < _MUCH_CLEANER * mixture.low:
        doubts.append(
            f"by the losses alone {mixture.low:.0%} to {mixture.high:.0%} of the labels are wrong: if the held-out"
            " labels are cleaner than the training labels, far more are than is estimated from them"
        )
    return tuple(doubts)


def _doubts_of_losses(views: Views, held_out: Views | None) -> tuple[str, ...]:
    count = 0 if held_out is None else len(held_out.outcomes)
    few = f"only {count}" if count else "no"
    doubts = [
        f"there are {few} held-out images with labels of the same origin (DATA/val), and losses alone can be far off"
    ]
    if views.outcomes.accuracy > _MEMORISED_AGREEMENT:
        doubts.append(f"the model reproduces {views.outcomes.accuracy:.1%} of the labels: it memorised them")
    return tuple(doubts)


def doubts_in_words(doubts: Sequence[str]) -> str:
    """All doubts as one sentence."""
    return "the estimate cannot be relied on: " + "; ".join(doubts)
