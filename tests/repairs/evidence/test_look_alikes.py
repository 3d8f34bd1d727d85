"""Pictures under two labels, the nearest trusted images, and classes of which a list takes no more than a share."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from PIL import Image
from support.data_folders import opened, write_classes

from sapcli.activations.scoring import Outcomes
from sapcli.activations.views import Views
from sapcli.repairs.evidence.look_alikes import copies_by_content, copies_by_look, merged, nearest, trusted_rows
from sapcli.repairs.evidence.suspects import without_most_of_a_class


def views_of(labels: list[int], features: torch.Tensor, pixels: torch.Tensor, losses: list[float]) -> Views:
    """Views of as many samples; a loss below 1 means that the model agrees."""
    count = len(labels)
    given, loss = torch.tensor(labels), torch.tensor(losses, dtype=torch.float64)
    predicted = torch.where(loss < 1, given, given + 1)
    nothing = torch.zeros(count, dtype=torch.int64)
    outcomes = Outcomes(torch.arange(count), given, loss, predicted, torch.ones(count), nothing, nothing)
    unit = torch.nn.functional.normalize(features, dim=1).half()
    return Views(outcomes, torch.zeros(0, 0), unit, pixels.to(torch.uint8))


def test_the_same_file_under_two_labels_is_found(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data")
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
    shutil.copy(folder / "cat" / "0.png", folder / "dog" / "copy.png")
    shutil.copy(folder / "cat" / "0.png", folder / "cat" / "same.png")
    dataset = opened(folder)
    index = {path: position for position, path in enumerate(dataset.paths)}
    assert copies_by_content(dataset) == {
        index["cat/0.png"]: (index["dog/copy.png"],),
        index["cat/same.png"]: (index["dog/copy.png"],),
        index["dog/copy.png"]: (index["cat/0.png"], index["cat/same.png"]),
    }


def test_the_same_look_needs_pixels_features_and_another_label() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 256), generator=generator).float()
    features = torch.randn(6, 8, generator=generator)
    pixels[1] = pixels[0] * 0.8 + 10  # darker and flatter: the same picture
    features[1] = features[0]
    pixels[2] = pixels[0]  # with the features of another picture
    pixels[3], features[3] = pixels[0], features[0]  # with the same label
    pixels[4] = pixels[5] = 7  # blank
    features[4] = features[5]
    views = views_of([0, 1, 1, 0, 0, 1], features, pixels, [0.0] * 6)
    assert copies_by_look(views, list(range(6))) == {0: (1,), 1: (0, 3), 3: (1,)}
    # Only what some rows are like is looked for.
    assert copies_by_look(views, [3]) == {1: (3,), 3: (1,)}
    assert merged({0: (1,)}, {0: (2,), 5: (4,)}) == {0: (1, 2), 5: (4,)}


def test_the_nearest_trusted_images_are_those_of_the_largest_cosine() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(200, 16, generator=generator)
    labels = [number % 2 for number in range(200)]
    losses = [0.001 * number for number in range(190)] + [2.0] * 10
    views = views_of(labels, features, torch.zeros(200, 256), losses)
    wrong = torch.zeros(200)
    wrong[4] = 0.9
    trusted = trusted_rows(views, wrong, 2)
    expected = [row for row in range(0, 190, 2) if row != 4]
    assert trusted[0].tolist() == expected
    cosines = torch.nn.functional.cosine_similarity(features[199], features)
    best = sorted(expected, key=lambda row: -float(cosines[row]))[:3]
    assert nearest(views, 199, trusted[0]) == best
    assert 0 not in nearest(views, 0, trusted[0])


def test_no_class_has_more_than_a_share_of_its_images_among_the_suspects() -> None:
    labels = torch.tensor([0] * 100 + [1] * 4)
    count = len(labels)
    nothing = torch.zeros(count, dtype=torch.int64)
    losses = torch.arange(count).double()
    outcomes = Outcomes(torch.arange(count), labels, losses, 1 - labels, torch.ones(count), nothing, nothing)
    rows = torch.tensor([103, 102, 101, 100, 99, 98])
    kept, left_out = without_most_of_a_class(outcomes, rows, 0.5)
    assert kept.tolist() == [103, 102, 99, 98]
    assert left_out == {1: 2}
    assert without_most_of_a_class(outcomes, rows, 1.0)[1] == {}
