"""How labels go wrong, estimated from a network's answers to images that it was not trained on.

Held-out images have noisy labels too, but the network has not memorised them. Of such an image with the logits `z`,
centred and of unit standard deviation over all images,

    p = softmax(a (z + W z) + c)  the chances of the classes: matrix scaling (Guo et al., "On Calibration of Modern
                                  Neural Networks", ICML 2017), drawn to the scaling by a single temperature
    P(label = j) = sum_k p_k T_kj with T_kj the chance that an image of class k is labeled j (Patrini et al., "Making
                                  Deep Neural Networks Robust to Label Noise", CVPR 2017)

and `a`, `W`, `c` and `T` are those that make the held-out labels most probable, with priors: `W` is normal around 0,
and the rows of `T` have a Dirichlet prior around equally probable wrong classes, with the share of wrong labels that a
fit without it finds. How strong both are is told by how well labels are predicted that a fit has not seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

# Beyond so many classes, wrong labels are taken as equally distributed: one number a class, and no square of them.
_MOST_CLASSES_IN_PAIRS = 200
_MOST_IMAGES = 5_000
# How many labels of each class the prior of `T` weighs as much as, and the precision of the prior of `W`.
_PRIOR_LABELS, _PRECISIONS = (10.0, 100.0), (10.0, 30.0, 100.0, 300.0, 1000.0)
_FOLDS = 3
_ERRORS = 2.0
_STEPS, _STEPS_AGAIN = 60, 25
_HALVINGS = 20


@dataclass(frozen=True)
class LabelNoise:
    """What a network's answers say of the true classes, and how labels come of these.

    Attributes:
        unit: The standard deviation of the held-out images' centred logits.
        scale: `a`, the inverse of the temperature.
        mixing: `W`, float64 `[classes, classes]`; `None` for none.
        bias: `c`, float64 `[classes]`.
        raw: What `T` is made of: its logits `[classes, classes]`, row by row, or those of its diagonal, `[classes]`,
            where all wrong classes are equally probable.
        prior: The strengths of the priors, and the share of wrong labels in that of `T`.
    """

    unit: float
    scale: float
    mixing: Tensor | None
    bias: Tensor
    raw: Tensor
    prior: Prior = field(repr=False)

    @property
    def kept(self) -> Tensor:
        """The chance that a label of each class is right, float64 `[classes]`: the diagonal of `T`."""
        return self.raw.softmax(dim=1).diagonal() if self.raw.dim() == 2 else self.raw.sigmoid()

    def chances(self, logits: Tensor) -> Tensor:
        """The chance of each class by the image alone, float64 `[n, classes]`."""
        centred = (logits.double() - logits.double().mean(dim=1, keepdim=True)) / self.unit
        if self.mixing is not None:
            centred = centred + centred @ self.mixing.T
        return (self.scale * centred + self.bias).softmax(dim=1)

    def label_chances(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The chance of each image to have the label that it has, float64 `[n]`."""
        return self._joint(logits, labels).sum(dim=1)

    def posterior(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The chance of each class to be the true one by image and label, float64 `[n, classes]`.

        Args:
            logits: `[n, classes]`, of images that the network was not trained on.
            labels: The labels that they have, int64 `[n]`.
        """
        joint = self._joint(logits, labels)
        return joint / joint.sum(dim=1, keepdim=True).clamp_min(1e-300)

    def _joint(self, logits: Tensor, labels: Tensor) -> Tensor:
        chances = self.chances(logits)
        if self.raw.dim() == 2:
            return chances * self.raw.softmax(dim=1)[:, labels].T
        column = labels.unsqueeze(1)
        right = chances.gather(1, column) * self.kept[labels].unsqueeze(1)
        return (chances * ((1 - self.kept) / max(len(self.kept) - 1, 1))).scatter(1, column, right)


@dataclass(frozen=True)
class Prior:
    """How strongly a fit is drawn to what.

    Attributes:
        precision: Of the normal prior of each number of `W`.
        labels: How many labels of each class the prior of `T` weighs as much as; 0 for none.
        share: The share of wrong labels in it.
    """

    precision: float
    labels: float = 0.0
    share: float = 0.0


def fit_label_noise(logits: Tensor, labels: Tensor) -> tuple[LabelNoise, ...]:
    """The label noise of held-out images, under every strength of the priors that the images do not speak against.

    Which these are is found by cross-validation: those whose mean logarithm of the probability of unseen labels is no
    further from the best than two standard errors of the difference. What is made of them is to be averaged.

    Args:
        logits: `[n, classes]`; of very many images, a part is taken.
        labels: Their noisy labels, int64 `[n]`.
    """
    step = -(-len(labels) // _MOST_IMAGES)
    logits, labels = logits[::step], labels[::step]
    precisions = _PRECISIONS if logits.shape[1] <= _MOST_CLASSES_IN_PAIRS else _PRECISIONS[:1]
    fold = torch.arange(len(labels)) % _FOLDS
    predicted: dict[Prior, Tensor] = {}
    for number in range(_FOLDS):
        inside, outside = fold != number, fold == number
        for noise in _fits(logits[inside], labels[inside], precisions):
            setting = replace(noise.prior, share=0.0)
            found = predicted.setdefault(setting, torch.zeros(len(labels), dtype=torch.float64))
            found[outside] = noise.label_chances(logits[outside], labels[outside]).clamp_min(1e-12).log()
    best = max(predicted.values(), key=lambda logs: float(logs.sum()))

    def is_as_good(prior: Prior) -> bool:
        behind = best - predicted[replace(prior, share=0.0)]
        return float(behind.mean()) <= _ERRORS * float(behind.std()) / math.sqrt(len(behind))

    return tuple(noise for noise in _fits(logits, labels, precisions) if is_as_good(noise.prior))


def _fits(logits: Tensor, labels: Tensor, precisions: tuple[float, ...]) -> list[LabelNoise]:
    """The most probable noise under every strength of the priors."""
    fits = []
    for precision in precisions:
        free = _fit(_start(logits, Prior(precision)), logits, labels, _STEPS)
        for strength in _PRIOR_LABELS:
            drawn = replace(free, prior=Prior(precision, strength, _share(free)))
            fits.append(_fit(drawn, logits, labels, _STEPS))
    return fits


def fit_again(noise: LabelNoise, logits: Tensor, labels: Tensor) -> LabelNoise:
    """The noise of other images with the same priors, found from this one on."""
    return _fit(noise, logits, labels, _STEPS_AGAIN)


def _share(noise: LabelNoise) -> float:
    return min(max(float((1 - noise.kept).mean()), 1e-3), 0.9)


def _start(logits: Tensor, prior: Prior) -> LabelNoise:
    """The first guess: answers as they are but half as sure, and three labels of four right."""
    classes = logits.shape[1]
    wide = logits.double()
    unit = float((wide - wide.mean(dim=1, keepdim=True)).std().clamp_min(1e-6))
    square = classes <= _MOST_CLASSES_IN_PAIRS
    right = math.log(3 * max(classes - 1, 1))
    return LabelNoise(
        unit,
        0.5 * unit,
        torch.zeros(classes, classes, dtype=torch.float64) if square else None,
        torch.zeros(classes, dtype=torch.float64),
        (right * torch.eye(classes)).double() if square else torch.full((classes,), math.log(3.0)).double(),
        prior,
    )


def _fit(start: LabelNoise, logits: Tensor, labels: Tensor, steps: int) -> LabelNoise:
    """The most probable noise of these images under the priors of `start`, found from it on."""
    # A caller may have gradients off, or inference mode on.
    with torch.inference_mode(False), torch.enable_grad():
        logits = logits.double().clone()
        log_scale = torch.tensor(math.log(start.scale), dtype=torch.float64, requires_grad=True)
        bias, raw = (tensor.detach().clone().requires_grad_() for tensor in (start.bias, start.raw))
        mixing = None if start.mixing is None else start.mixing.detach().clone().requires_grad_()
        parameters = [log_scale, bias, raw] + ([] if mixing is None else [mixing])
        optimizer = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            noise = _Trial(start, log_scale, bias, raw, mixing)
            loss = noise.surprise(logits, labels) / len(labels)
            torch.autograd.backward(loss)
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return replace(
        start,
        scale=float(log_scale.detach().exp().clamp(1e-6, 1e6)),
        mixing=None if mixing is None else mixing.detach(),
        bias=bias.detach(),
        raw=raw.detach(),
    )


@dataclass(frozen=True)
class _Trial:
    """Numbers that a fit tries, with their gradients."""

    start: LabelNoise
    log_scale: Tensor
    bias: Tensor
    raw: Tensor
    mixing: Tensor | None

    def surprise(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Minus the logarithm of the probability of the labels and of these numbers, but for a constant."""
        prior = self.start.prior
        centred = (logits - logits.mean(dim=1, keepdim=True)) / self.start.unit
        penalty = 0.5 * self.bias.square().sum()
        if self.mixing is not None:
            centred = centred + centred @ self.mixing.T
            penalty = penalty + 0.5 * prior.precision * self.mixing.square().sum()
        chances = (self.log_scale.exp() * centred + self.bias).softmax(dim=1)
        column, others = labels.unsqueeze(1), max(len(self.bias) - 1, 1)
        if self.raw.dim() == 2:
            probable = (chances @ self.raw.softmax(dim=1)).gather(1, column).squeeze(1)
            expected = torch.full_like(self.raw, prior.share / others).fill_diagonal_(1 - prior.share)
            drawn = (expected * self.raw.log_softmax(dim=1)).sum()
        else:
            kept = self.raw.sigmoid()
            spread = chances * ((1 - kept) / others)
            own = chances.gather(1, column).squeeze(1) * kept[labels]
            probable = own + spread.sum(dim=1) - spread.gather(1, column).squeeze(1)
            logs = torch.nn.functional.logsigmoid
            drawn = ((1 - prior.share) * logs(self.raw) + prior.share * logs(-self.raw)).sum()
        return penalty - prior.labels * drawn - probable.clamp_min(1e-300).log().sum()


def without_own_label(logits: Tensor, labels: Tensor, lowered: float) -> Tensor:
    """Logits of training images with that of each one's own label lowered, `[n, classes]`."""
    return logits.scatter_add(1, labels.unsqueeze(1), torch.full((len(labels), 1), -lowered, dtype=logits.dtype))


def memorised(noise: LabelNoise, logits: Tensor, labels: Tensor, share: float) -> float:
    """By how much training raised the logit of an image's own label, so far as the share of wrong labels shows it.

    Lowered by that much, training images have the share of wrong labels that held-out images have.

    Args:
        noise: That of the held-out images.
        logits: Of training images, `[n, classes]`; of very many, a part is taken.
        labels: Their labels, int64 `[n]`.
        share: The share of wrong labels among held-out images.
    """
    step = -(-len(labels) // _MOST_IMAGES)
    logits, labels = logits[::step], labels[::step]
    column = labels.unsqueeze(1)
    low, high = 0.0, float(logits.amax() - logits.amin()) + 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        posterior = noise.posterior(without_own_label(logits, labels, middle), labels)
        if 1 - float(posterior.gather(1, column).mean()) < share:
            low = middle
        else:
            high = middle
    return low
