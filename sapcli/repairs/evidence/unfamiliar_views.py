"""Whether a repair is worth it, told from training images alone: shown as the training never showed them.

A network that memorised wrong labels gives them back on its own training images, better than any repaired one. But what
it memorised is the picture as it was shown, and its neighbourhood. Turned, moved and scaled beyond that, the picture
has to be understood, and a network that wrong labels have bent understands less. So the networks before and after the
repair are compared on training images under a view that is strange enough: so strange that the network gives back no
more than half of what it does on the images as they are. The labels that are given judge, wrong ones too: they are
wrong for both.

Measured on networks trained on CIFAR-10 (docs/results.md), the sign of the difference tells those with something to
repair from those without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sapcli.activations.scoring import Outcomes
from sapcli.repairs.evidence.evaluation import convincing_gain, discordant

# How far images are turned, moved and scaled, in units of the first: the first view that is strange enough is taken.
_STRENGTHS = (1.0, 1.5, 2.0, 3.0)
STRANGE_ENOUGH = 0.5
_TURN, _MOVE, _SCALE = math.radians(10), 0.075, 0.1
# On so many images both networks are compared, and on so many it is found how strange a view has to be.
_IMAGES, _IMAGES_TO_FIND_VIEW = 5000, 1000
# Fewer say too little: a network trained on 300 digits was better after its repair, and strange views denied it.
FEWEST_IMAGES = 500


def images_compared(count: int) -> int:
    """How many images a comparison runs, as it is where the second view is strange enough.

    Args:
        count: The training images that may be looked at.
    """
    if count < FEWEST_IMAGES:
        return 0
    return 3 * min(count, _IMAGES_TO_FIND_VIEW) + 2 * min(count, _IMAGES)


class View:
    """Images turned, moved and scaled, each in its own way, which depends on its index alone.

    Args:
        count: How many images the dataset has.
        strength: How far: 1 for about 10 degrees, a thirteenth of the side, a tenth of the size.
        seed: For the directions and the amounts, which lie within a quarter of what is said.
    """

    def __init__(self, count: int, strength: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (4, count), generator=generator) * 2 - 1
        turn, right, down, scale = signs * (0.75 + torch.rand(4, count, generator=generator) / 2) * strength
        size = torch.exp(scale * _SCALE)
        cosine, sine = torch.cos(turn * _TURN) * size, torch.sin(turn * _TURN) * size
        # affine_grid counts from -1 to 1 over a side.
        right, down = 2 * _MOVE * right, 2 * _MOVE * down
        rows = torch.stack([cosine, -sine, right, sine, cosine, down], dim=1)
        self._maps = rows.view(count, 2, 3)

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """The view of images `[n, C, H, W]`, which have these indices; the same shape and type.

        They are pixels in uint8, or floats that are the network's inputs as they are. What comes in at the sides is the
        picture's own mirror image.
        """
        pixels = images.float()
        grid = functional.affine_grid(self._maps[indices], list(pixels.shape), align_corners=False)
        seen = functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
        return seen.to(images.dtype) if images.is_floating_point() else seen.round().clamp(0, 255).to(images.dtype)


@dataclass(frozen=True)
class Comparison:
    """Two networks on training images under a strange view.

    Attributes:
        images: How many.
        strength: Of the view.
        before: The accuracy of the network as it was, with the labels that are given, in [0, 1].
        after: The same of the repaired one.
        won: How many the repaired one alone has right.
        lost: How many the other one alone has right.
    """

    images: int
    strength: float
    before: float
    after: float
    won: int
    lost: int

    @property
    def speaks_for_repair(self) -> bool:
        """Whether the repaired network understands strange views better, as far as so many images can tell."""
        return self.after - self.before > convincing_gain(self.won, self.lost, self.images)

    @property
    def words(self) -> str:
        """What was seen, for people."""
        return (
            f"on {self.images:,} training images, turned, moved and scaled, the model as it was has"
            f" {self.before:.1%} of the labels right, the repaired one {self.after:.1%}"
        )


def compare(
    unchanged: Callable[[View | None, Sequence[int]], Outcomes],
    repaired: Callable[[View, Sequence[int]], Outcomes],
    indices: Sequence[int],
    count: int,
    seed: int,
) -> Comparison:
    """Compare a network before and after its repair.

    Args:
        unchanged: What the network as it was makes of training images with these indices, under a view or as they are.
        repaired: The same of the repaired network; asked once, at last.
        indices: The training images that may be looked at, in random order.
        count: How many training images there are in all.
        seed: For the views.
    """
    few = indices[:_IMAGES_TO_FIND_VIEW]
    enough = STRANGE_ENOUGH * unchanged(None, few).accuracy
    view = View(count, _STRENGTHS[0], seed)
    strength = _STRENGTHS[0]
    for strength in _STRENGTHS:
        view = View(count, strength, seed)
        if unchanged(view, few).accuracy <= enough:
            break
    chosen = indices[:_IMAGES]
    before, after = unchanged(view, chosen), repaired(view, chosen)
    won, lost, images = discordant(before, after)
    return Comparison(images, strength, before.accuracy, after.accuracy, won, lost)
