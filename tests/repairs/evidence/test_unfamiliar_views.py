"""Networks before and after a repair, compared on training images as training never showed them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from sapcli.activations.scoring import Outcomes
from sapcli.repairs.evidence.evaluation import convincing_gain
from sapcli.repairs.evidence.unfamiliar_views import View, compare


def test_a_view_turns_moves_and_scales_as_pillow_does() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5, generator=generator) * 255, size=48, mode="bicubic")
    image = smooth.clamp(0, 255).round().byte()[0]
    view = View(9, 1.0, seed=3)
    seen = view(image[None], torch.tensor([4]))[0]
    # In pixels around the middle: torch's map goes from the output to the input, as Pillow's does.
    matrix = view._maps[4].double()
    a, b, right, c, d, down = matrix.flatten().tolist()
    middle = 24.0
    data = (a, b, right * middle + middle - (a + b) * middle, c, d, down * middle + middle - (c + d) * middle)
    expected = torch.tensor(
        [
            list(
                Image.fromarray(channel.numpy())
                .transform((48, 48), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
                .tobytes()
            )
            for channel in image
        ]
    ).view(3, 48, 48)
    inner = (slice(None), slice(14, 34), slice(14, 34))
    assert (seen[inner].int() - expected[inner]).abs().max() <= 2
    assert not torch.equal(seen, image)


def test_a_view_depends_on_the_index_alone() -> None:
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    view = View(100, 1.5, seed=0)
    indices = torch.tensor([5, 50, 7, 99, 0, 3])
    together = view(images, indices)
    alone = torch.cat([view(images[i : i + 1], indices[i : i + 1]) for i in range(6)])
    assert torch.equal(together, alone)
    assert not torch.equal(view(images, indices.flip(0)), together)


def test_inputs_that_are_ready_are_not_taken_for_pixels() -> None:
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    view, indices = View(4, 1.0, seed=0), torch.arange(4)
    ready = (pixels.float() / 255 - 0.5) / 0.25
    expected = (view(pixels, indices).float() / 255 - 0.5) / 0.25
    # But for the rounding to whole pixels.
    torch.testing.assert_close(view(ready, indices), expected, rtol=0, atol=0.51 / 255 / 0.25)
    assert view(ready, indices).min() < 0


def _outcomes(indices: Sequence[int], right: torch.Tensor) -> Outcomes:
    count = len(indices)
    zeros = torch.zeros(count, dtype=torch.int64)
    predictions = (~right).long()
    return Outcomes(
        torch.tensor(list(indices)), zeros, torch.zeros(count).double(), predictions, torch.ones(count), zeros, zeros
    )


@pytest.mark.parametrize(
    ("before", "after", "worth_it"), [(0.40, 0.46, True), (0.40, 0.34, False), (0.40, 0.40, False)]
)
def test_the_better_network_is_found(before: float, after: float, worth_it: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(8000, generator=generator)
    asked: list[float] = []

    def unchanged(view: View | None, indices: Sequence[int]) -> Outcomes:
        if view is None:
            return _outcomes(indices, torch.ones(len(indices), dtype=torch.bool))
        asked.append(float(view._maps[:, 0, 1].abs().mean()))
        # The first views are not strange enough.
        accuracy = before if len(set(asked)) > 2 else 0.9
        return _outcomes(indices, drawn[list(indices)] < accuracy)

    def repaired(view: View, indices: Sequence[int]) -> Outcomes:
        return _outcomes(indices, 1 - drawn[list(indices)] < after)

    comparison = compare(unchanged, repaired, range(8000), 8000, seed=0)
    assert comparison.images == 5000
    assert comparison.strength == 2.0
    assert comparison.before == pytest.approx(before, abs=0.03)
    assert comparison.won - comparison.lost == round(5000 * (comparison.after - comparison.before))
    assert comparison.speaks_for_repair is worth_it


def test_what_is_convincing_follows_from_the_number_of_images() -> None:
    generator = np.random.default_rng(0)

    def passed(gain: float, images: int) -> float:
        """The share of candidates with a true gain that pass, by simulation: 15% of the images tell them apart."""
        won, lost = 0.075 + gain / 2, 0.075 - gain / 2
        draws = generator.multinomial(images, [won, lost, 1 - won - lost], 4000)
        return float(
            np.mean([(b - c) / images > max(0.0, convincing_gain(b, c, images)) for b, c, _ in draws.tolist()])
        )

    assert passed(0.02, 1000) > 0.94
    assert passed(0.02, 5000) > 0.99
    # Nothing to gain: on many images chance passes once in six times, the one-sided level of a standard error.
    assert passed(0.0, 5000) == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)), abs=0.03)
    assert convincing_gain(0, 0, 0) == 0
