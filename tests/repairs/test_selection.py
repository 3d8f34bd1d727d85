"""Tests of the trusted set: shares, order, curvature, and lists that people write."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.samples import classifier_of, folder_of, images_of
from torch import nn

from sapcli.datasets.dataset import Dataset, Role, open_dataset
from sapcli.errors import DatasetError, SapError
from sapcli.machine.progress import SilentProgress
from sapcli.repairs.selection import (
    TrustedSet,
    balanced_shares,
    class_balanced_lowest,
    curvatures,
    likely_lowest,
    parse_trusted,
    random_scores,
    select_lowest,
)


class Notes(SilentProgress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        """Remember a note."""
        self.said.append(text)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five cats, three dogs, one owl."""
    folder = folder_of(tmp_path_factory.mktemp("animals"), {"cat": 5, "dog": 3, "owl": 1})
    found = open_dataset(folder, Role.LEARN, 3)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("available", "total", "counts", "short"),
    [
        ([5, 5], 4, (2, 2), ()),
        ([5, 5], 5, (3, 2), ()),
        ([5, 1], 4, (3, 1), (1,)),
        ([5, 0, 5], 6, (3, 0, 3), (1,)),
        ([1, 2, 9], 9, (1, 2, 6), (0, 1)),
        ([1, 2, 3], 100, (1, 2, 3), (0, 1, 2)),
        ([0, 0], 4, (0, 0), (0, 1)),
        ([3, 3, 3], 2, (1, 1, 0), ()),
    ],
)
def test_shares(available, total, counts, short):
    shares = balanced_shares(available, total)
    assert (shares.counts, shares.short) == (counts, short)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 100))
def test_shares_are_full_and_fair(available, total):
    counts = balanced_shares(available, total).counts
    assert sum(counts) == min(total, sum(available))
    assert all(count <= limit for count, limit in zip(counts, available, strict=True))
    # Whoever has samples left gives at least as many as anybody else, but for the one that does not divide.
    with_more = [count for count, limit in zip(counts, available, strict=True) if count < limit]
    assert not with_more or min(with_more) >= max(counts) - 1


def test_the_lowest_of_each_class_and_the_earlier_of_equals():
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0, 0.0, 0.0, 5.0])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    assert class_balanced_lowest(scores, labels, [2, 1]).tolist() == [1, 3, 4]
    assert class_balanced_lowest(scores, labels, [3, 0]).tolist() == [1, 2, 3]


@pytest.mark.parametrize("classes", [1, 7, 300])
def test_the_lowest_of_each_class_against_a_plain_sort(classes):
    generator = torch.Generator().manual_seed(classes)
    scores = torch.randint(0, 50, (1000,), generator=generator).double()  # with many ties
    labels = torch.randint(0, classes, (1000,), generator=generator)
    counts = torch.randint(0, 9, (classes,), generator=generator).tolist()
    expected = []
    for position, count in enumerate(counts):
        members = [index for index in range(1000) if labels[index] == position]
        expected += sorted(members, key=lambda index: (float(scores[index]), index))[:count]
    assert class_balanced_lowest(scores, labels, counts).tolist() == sorted(expected)


def test_selection_says_what_is_short(dataset):
    notes = Notes()
    scores = torch.arange(9).flip(0).float()
    chosen = select_lowest(dataset, torch.arange(9), scores, 6, scores / 10, notes)
    assert [(sample.index, sample.label) for sample in chosen.samples] == [
        (2, "cat"), (3, "cat"), (4, "cat"), (6, "dog"), (7, "dog"), (8, "owl"),
    ]  # fmt: skip
    assert chosen.samples[0].loss == pytest.approx(0.6)
    assert notes.said == ["classes with fewer samples than an even share of 6: owl (1); the others give more"]
    assert select_lowest(dataset, torch.arange(9), scores, 99, None, notes).indices == tuple(range(9))
    assert notes.said[-1] == "9 trusted samples instead of 99: there are no more"


def test_losses_far_below_a_millionth_choose_and_are_told(dataset):
    losses = torch.tensor([5e-12, 3e-14, 2e-9, 4e-20, 1e-13, 0.5, 1.23456789, 1e-30, 9.0], dtype=torch.float64)
    chosen = select_lowest(dataset, torch.arange(9), losses, 5, losses, SilentProgress())
    assert chosen.indices == (1, 3, 5, 7, 8)
    assert [sample.loss for sample in chosen.samples] == [3e-14, 4e-20, 0.5, 1e-30, 9.0]
    whole = select_lowest(dataset, torch.arange(9), losses, 9, losses, SilentProgress())
    assert whole.samples[6].loss == 1.234568
    assert parse_trusted(whole.to_json_lines().splitlines(), "list", dataset) == whole


def test_only_candidates_are_selected(dataset):
    chosen = select_lowest(dataset, torch.tensor([1, 4, 6]), torch.zeros(3), 2, None, SilentProgress())
    assert chosen.indices == (1, 6)
    with pytest.raises(DatasetError, match="no image of"):
        select_lowest(dataset, torch.arange(0), torch.zeros(0), 2, None, SilentProgress())


def test_those_with_the_lowest_scores_are_among_those_with_about_the_lowest(tmp_path):
    dataset = open_dataset(folder_of(tmp_path, {"cat": 120, "dog": 90, "owl": 4}), Role.LEARN, 3)
    generator = torch.Generator().manual_seed(0)
    indices = torch.arange(len(dataset.paths))
    scores = torch.rand(len(indices), generator=generator)
    about = scores * (1 + 0.05 * torch.randn(len(indices), generator=generator))
    assert len(likely_lowest(dataset, indices, about, 9)) < len(indices)
    for count in (1, 9, 30, len(indices)):
        expected = select_lowest(dataset, indices, scores, count, None, SilentProgress()).indices
        assert set(expected) <= set(likely_lowest(dataset, indices, about, count))


def test_random_scores_follow_the_seed():
    assert torch.equal(random_scores(9, 1), random_scores(9, 1))
    assert not torch.equal(random_scores(9, 1), random_scores(9, 2))


def test_a_trusted_set_is_read_as_it_was_written(dataset):
    scores = torch.rand(9, generator=torch.Generator().manual_seed(0))
    chosen = select_lowest(dataset, torch.arange(9), scores, 6, scores, SilentProgress())
    text = chosen.to_json_lines()
    assert [json.loads(line)["index"] for line in text.splitlines()] == list(chosen.indices)
    assert parse_trusted(text.splitlines(keepends=True), "list", dataset) == chosen


def test_the_digest_tells_samples_apart_and_not_losses(dataset):
    one = parse_trusted(["0", "3"], "list", dataset)
    assert one.digest == parse_trusted(['{"index": 3, "loss": 1.5}', '{"index": 0}'], "list", dataset).digest
    assert one.digest != parse_trusted(["0", "4"], "list", dataset).digest
    assert TrustedSet(()).digest != one.digest


@pytest.mark.parametrize(
    "lines",
    [
        ["6", "1"],
        ["cat/01.png", "", "dog/01.png\r\n"],
        ['{"path": "dog/01.png"}', '{"index": 1, "path": "cat/01.png"}'],
        ['  {"index": 6, "loss": 1' + "0" * 400 + "}", " 1 "],
    ],
)
def test_forms_of_lists(dataset, lines):
    assert parse_trusted(lines, "list", dataset).indices == (1, 6)


def test_paths_within_a_split(tmp_path):
    folder_of(tmp_path / "train", {"cat": 2, "dog": 2})
    dataset = open_dataset(tmp_path, Role.LEARN, 2)
    assert parse_trusted(["train/dog/00.png", "cat/01.png"], "list", dataset).indices == (1, 2)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["9"], "list, line 1 has index 9, expected 0 to 8"),
        (["0", "cat/07.png"], "list, line 2 names cat/07.png, which is not among the 9 images"),
        (["1", "", "cat/01.png"], "list, line 3: cat/01.png stands there twice"),
        (["{"], "list, line 1 is not JSON"),
        (["{" * 100_000], "list, line 1 is not JSON"),
        (['{"number": 3}'], 'list, line 1 has neither "index" nor "path"'),
        (['{"index": -1}'], "list, line 1 has index -1"),
        (['{"index": true}'], "list, line 1 has index True"),
        (['{"index": 1.0}'], "list, line 1 has index 1.0"),
        (['{"index": null}'], "list, line 1 has index None"),
        (['{"index": "1"}'], "list, line 1 has index 1,"),
        (['{"index": 0, "path": "cat/07.png"}'], "list, line 1 names cat/07.png"),
        ([], "list names no sample"),
        (["", " \n"], "list names no sample"),
        (["1" * 5000], "list, line 1 names 111"),
        (['{"index": ' + "1" * 5000 + "}"], "list, line 1 is not JSON"),
    ],
)
def test_bad_lists(dataset, lines, message):
    with pytest.raises(DatasetError) as caught:
        parse_trusted(lines, "list", dataset)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@given(st.lists(st.text(max_size=40) | st.from_regex(r'\{"(index|path|loss)": .{0,20}\}', fullmatch=True), max_size=4))
def test_any_text_is_a_trusted_set_or_an_error(dataset, lines):
    with contextlib.suppress(SapError):
        assert parse_trusted(lines, "list", dataset).samples


def test_curvature_is_zero_for_a_linear_function_and_grows_with_the_bend(tmp_path):
    """The loss is log(1 + exp(-2 a(x))): straight far from the boundary between classes, bent near it."""
    folder = folder_of(tmp_path, {"cat": 4, "dog": 4})
    images = images_of(folder)
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        module[1].weight[:] = torch.tensor([[1.0], [-1.0]]) * 5
        module[1].bias.zero_()
    classifier = classifier_of(module)
    indices, values = curvatures(classifier, images, SilentProgress(), seed=0)
    assert indices.tolist() == list(range(8))
    assert bool(torch.isfinite(values).all())
    again = curvatures(classifier, images, SilentProgress(), seed=0, indices=[7, 2])
    assert again[0].tolist() == [7, 2]
    torch.testing.assert_close(again[1], values[[7, 2]])
    # The finite difference follows the second derivative, of the logits' difference z: p (1 - p) of each sample.
    logits = module(classifier.inputs(torch.cat([batch.images for batch in images.batches()])))
    slope = logits.softmax(1).prod(1)
    assert int(values.argmax()) == int(slope.argmax())


def test_curvature_leaves_no_gradients(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    curvatures(classifier_of(module), images_of(folder_of(tmp_path, {"cat": 1, "dog": 1})), SilentProgress(), seed=0)
    assert module[1].weight.grad is None


def test_the_list_of_another_split_is_refused(tmp_path):
    folder_of(tmp_path / "train", {"cat": 2, "dog": 2})
    dataset = open_dataset(Path(tmp_path), Role.LEARN, 2)
    with pytest.raises(DatasetError, match=r"names val/cat/00\.png"):
        parse_trusted(["val/cat/00.png"], "list", dataset)
