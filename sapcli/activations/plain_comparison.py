"""Whether the fast way to run a network gives what its plain code gives, found out on a few images.

A library's network is built without random values only where those reach nothing else than what the checkpoint
replaces (`load_model` looks), and the user's own network is what its own code makes of it. What is left is the layout
of the images: code that looks at how its input lies in memory computes something else where the channels lie together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sapcli.activations.scoring import Classifier, normalise
from sapcli.machine.device import full_precision
from sapcli.machine.progress import Progress

_IMAGES = 2
# Of larger images one is enough, and takes as long as many small ones.
_LARGE_PIXELS = 64 * 64
# Of the largest logit. Rounding makes 1e-7 to 1e-6 of the other layout in most networks; in those in which it makes
# more, other images may differ several times as much, and logits are promised to be equal within 1e-5.
_TOLERANCE = 2.5e-6


def choose_way(classifier: Classifier, progress: Progress) -> None:
    """Have a network run on its images as they are, where it makes something else of them in the fast layout.

    Args:
        classifier: The network; `as_built` is set where the fast way differs.
        progress: Told of that.

    Raises:
        ArchitectureError: The network does not take images of the preprocessing's size.
    """
    generator = torch.Generator().manual_seed(0)
    channels, height, width = classifier.architecture.preprocessing.input_size
    shape = (_IMAGES if height * width <= _LARGE_PIXELS else 1, channels, height, width)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    with classifier.loaded.without_gradients(), full_precision(), classifier.running():
        plain = _plain_logits(classifier, images)
        if plain is None or classifier.as_built:
            return
        fast = classifier.forward(classifier.inputs(images))
        difference = _relative_difference(plain, fast)
        if difference <= _TOLERANCE:
            return
        again = _plain_logits(classifier, images)
        if again is not None and _relative_difference(plain, again) > _TOLERANCE:
            return  # it gives something else every time: the layout is not what it depends on
    classifier.as_built = True
    progress.note(
        f"{classifier.architecture.name} runs on images laid out as its code gets them elsewhere, which is slower: in"
        f" the fast layout its logits differ by {difference:.1e} of the largest"
    )


def _plain_logits(classifier: Classifier, images: Tensor) -> Tensor | None:
    """What the network makes of images as everybody gives them; None where that is no tensor."""
    inputs = normalise(images.to(classifier.device), classifier.architecture.preprocessing)
    output = classifier.module(inputs)
    return output.clone() if isinstance(output, Tensor) and output.is_floating_point() else None


def _relative_difference(plain: Tensor, other: object) -> float:
    """The largest difference over the largest logit; 0 where both are undefined, infinite where they are not alike."""
    if not isinstance(other, Tensor) or other.shape != plain.shape:
        return float("inf")
    if bool(plain.isnan().any()):
        return 0.0
    difference = float((plain - other).abs().max()) if plain.numel() else 0.0
    scale = float(plain.abs().max()) if plain.numel() else 1.0
    if difference != difference:  # the fast one alone is undefined
        return float("inf")
    return difference / scale if scale else difference
