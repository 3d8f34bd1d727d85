"""What the network is to answer: labels as they are given, or blended with a model's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sapcli.activations.scoring import Classifier
from sapcli.activations.shared.shares import in_shares
from sapcli.datasets.images import Batch, Images
from sapcli.datasets.smaller_batches import in_portions
from sapcli.machine.parallel.ranks import ALONE, Ranks
from sapcli.machine.progress import Progress

_STAGE = "blending labels with the model's answers"
# Of an image, its label and the most probable other classes have a weight that counts.
_KEPT = 32
# The share of labels that the model contradicts stands for that of wrong labels: it still gives some of these back, and
# has not learned some right ones. Beyond a half, the model is worse than the labels.
_LEAST_SHARE, _LARGEST_SHARE = 0.02, 0.5
_TINY = 1e-30


@dataclass(frozen=True)
class Targets:
    """Distributions over the classes, one a sample, without those that hardly count.

    Attributes:
        classes: The classes that count, int64 `[samples, k]`.
        weights: Their probabilities, float32 `[samples, k]`; each row sums to 1, or to 0 for an image without a target.
        num_classes: How many classes there are.
    """

    classes: Tensor
    weights: Tensor
    num_classes: int

    def rows(self, indices: Tensor) -> Tensor:
        """The distributions of some samples, float32 `[n, num_classes]`."""
        weights = self.weights[indices]
        empty = torch.zeros(len(indices), self.num_classes, device=weights.device)
        return empty.scatter_(1, self.classes[indices], weights)

    def to(self, device: torch.device) -> Targets:
        """The same on a device."""
        return Targets(self.classes.to(device), self.weights.to(device), self.num_classes)


def blended(probabilities: Tensor, labels: Tensor, wrong: float, num_classes: int | None = None) -> Tensor:
    """Labels blended with a model's own probabilities: what the right class is, given both, by Bayes' rule.

    A label is taken to be right with the chance `1 - r`, and to be any other class with the chance `r / (C - 1)`,
    whatever the image: `t_k = p_k T_ky / sum_j p_j T_jy` (the symmetric case of the noise matrix of Patrini et al.,
    CVPR 2017). The model's answer takes the label's place only where it is surer of it than labels are right.

    Args:
        probabilities: `p`, `[n, k]`, of all classes or of those that count.
        labels: The columns of the given ones `y`, int64 `[n]`.
        wrong: `r`, the share of wrong labels, in (0, 1).
        num_classes: `C`, where that is not `k`.
    """
    given = labels.unsqueeze(1)
    chances = probabilities * (wrong / max((num_classes or probabilities.shape[1]) - 1, 1))
    chances = chances.scatter(1, given, probabilities.gather(1, given) * (1 - wrong))
    return chances / chances.sum(dim=1, keepdim=True).clamp(min=_TINY)


def as_given(labels: Sequence[int], num_classes: int) -> Targets:
    """The labels as they are."""
    classes = torch.tensor(labels, dtype=torch.int64).unsqueeze(1)
    return Targets(classes, torch.ones(classes.shape), num_classes)


def blend_with_answers(classifier: Classifier, images: Images, progress: Progress, ranks: Ranks = ALONE) -> Targets:
    """Labels blended with what the network makes of the images, which need not be exact; see `blended`.

    Args:
        classifier: The network, in eval mode.
        images: The training images; those that cannot be read have no target.
        progress: Told of the images done, and how many labels the network contradicts.
        ranks: The processes that share the images.
    """
    count, num_classes = len(images.dataset.paths), classifier.architecture.num_classes
    kept = min(num_classes, _KEPT)
    classes, answers = torch.zeros(count, kept, dtype=torch.int64), torch.zeros(count, kept)

    def ask(listener: Progress, indices: Sequence[int]) -> tuple[Sequence[int], Tensor, Tensor]:
        with listener.stage(_STAGE, len(indices)) as advance:
            for batch in images.batches(indices):
                for found in in_portions(partial(_answers, classifier, kept), batch, images, listener):
                    classes[found.indices], answers[found.indices] = found.classes.cpu(), found.probabilities.cpu()
                advance(len(batch.indices))
        return indices, answers[list(indices)], classes[list(indices)]

    if ranks.world == 1:
        ask(progress, range(count))
    else:
        for indices, of_answers, of_classes in in_shares(ranks, images, progress, _STAGE, range(count), ask):
            answers[list(indices)], classes[list(indices)] = of_answers, of_classes
    readable = answers.sum(dim=1) > 0
    contradicted = answers[readable, 0] < answers[readable].amax(dim=1)
    wrong = min(max(float(contradicted.double().mean()), _LEAST_SHARE), _LARGEST_SHARE)
    progress.note(f"labels: the model contradicts {contradicted.double().mean():.0%} of them; they are blended")
    weights = blended(answers, torch.zeros(count, dtype=torch.int64), wrong, num_classes)
    return Targets(classes, weights * readable.unsqueeze(1), num_classes)


@dataclass(frozen=True)
class _Answers:
    """A network's answers to some images: of each the given label first, then the most probable other classes."""

    indices: Tensor
    classes: Tensor
    probabilities: Tensor


def _answers(classifier: Classifier, kept: int, batch: Batch) -> _Answers:
    probabilities = classifier.logits(batch.images, exact=False).softmax(dim=1)
    labels = batch.labels.to(probabilities.device).unsqueeze(1)
    # Above all probabilities, the label comes first.
    classes = probabilities.scatter(1, labels, 2.0).topk(kept, dim=1).indices
    return _Answers(batch.indices, classes, probabilities.gather(1, classes))
