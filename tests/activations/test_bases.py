"""Tests of the bases of whole networks: collected from images, written, read, damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.brute_force import ALPHA, expect, relative_difference
from support.samples import classifier_of, folder_of, images_of
from torch import Tensor, nn

from sapcli.activations.bases import Bases, Piece, SecondMoments, collect_bases
from sapcli.activations.bases_file import read_bases, write_bases
from sapcli.activations.moments import Basis
from sapcli.activations.rows import WeightView
from sapcli.activations.scoring import Classifier
from sapcli.datasets.images import Images
from sapcli.errors import CheckpointError, DatasetError, NumericsError
from sapcli.machine.progress import SilentProgress
from sapcli.repairs.projection import project
from sapcli.settings import Importance


class Network(nn.Module):
    """A grouped convolution, a packed weight of which a part is used twice, a table and something unused."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3, groups=3, padding=1)
        self.packed = nn.Parameter(torch.randn(6, 6))
        self.table = nn.Parameter(torch.randn(1, 6))
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 2)

    def features(self, images: Tensor) -> Tensor:
        """What the packed weight multiplies."""
        return self.convolution(images).relu().mean((2, 3)) + self.table

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        hidden = nn.functional.linear(self.features(images), self.packed).tanh()
        return self.head(hidden + nn.functional.linear(3 * hidden, self.packed[2:4]).sum(1, keepdim=True))


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    return classifier_of(Network().eval())


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return images_of(folder_of(tmp_path / "images", {"cat": 5, "dog": 4}))


def collect(classifier: Classifier, images: Images, indices: range = range(9)) -> Bases:
    return collect_bases(classifier, images, indices, checkpoint="weights", samples="images", progress=SilentProgress())


def assert_equal(one: Bases, other: Bases) -> None:
    assert (one.checkpoint, one.samples, one.skipped, one.facts) == (
        other.checkpoint, other.samples, other.skipped, other.facts,
    )  # fmt: skip
    assert list(one.pieces) == list(other.pieces)
    for name, pieces in one.pieces.items():
        assert len(pieces) == len(other.pieces[name])
        for left, right in zip(pieces, other.pieces[name], strict=True):
            assert (left.view, left.basis.rows) == (right.view, right.basis.rows)
            assert torch.equal(left.basis.vectors, right.basis.vectors)
            assert torch.equal(left.basis.values, right.basis.values)


def test_bases_of_images(classifier, images):
    bases = collect(classifier, images)
    assert list(bases.pieces) == ["convolution.weight", "packed", "head.weight"]
    assert bases.skipped == {
        "table": "in no matrix product or convolution with activations (read by add)",
        "unused.weight": "not used in eval mode",
    }
    assert (bases.checkpoint, bases.samples) == ("weights", "images")
    assert bases.facts.per_class == (5, 4)
    (convolution,) = bases.pieces["convolution.weight"]
    assert (convolution.view.groups, convolution.view.outputs, convolution.view.row_length) == (3, 2, 9)
    assert convolution.basis.rows == 9 * 16
    assert not classifier.module.training


def test_a_part_that_is_used_twice_sees_both_inputs(classifier, images):
    module = classifier.module
    inputs = classifier.inputs(torch.cat([batch.images for batch in images.batches()]))
    with torch.no_grad():
        features = module.features(inputs)[None]
        hidden = nn.functional.linear(features, module.packed).tanh()

    def matrices(p: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        both = torch.cat([features, 3 * hidden], dim=1)
        return [(p["packed"][None, :2], features), (p["packed"][None, 2:4], both), (p["packed"][None, 4:], features)]

    expected = expect(module, matrices, ALPHA)["packed"]
    weight = module.packed.detach()
    projected = weight.clone()
    pieces = collect(classifier, images).pieces["packed"]
    for piece in pieces:
        piece.view.replace(projected, project(piece.view.matrices(weight), piece.basis, Importance.SAP, ALPHA))
    assert relative_difference(projected, expected, weight) < 1e-4
    assert sorted(piece.basis.rows for piece in pieces) == [9, 9, 18]


def test_batch_sizes_change_the_bases_within_rounding(classifier, images):
    bases = collect(classifier, images)
    images.batch_size = 9
    whole = collect(classifier, images)
    for name, pieces in bases.pieces.items():
        for piece, other in zip(pieces, whole.pieces[name], strict=True):
            moments = [
                b.vectors.double() * b.values[:, None] @ b.vectors.double().mT for b in (piece.basis, other.basis)
            ]
            torch.testing.assert_close(*moments, rtol=1e-5, atol=1e-5 * float(moments[0].abs().max()))


def test_bases_are_read_as_they_were_written(classifier, images, tmp_path):
    bases = collect(classifier, images)
    write_bases(bases, tmp_path / "bases.safetensors")
    assert_equal(read_bases(tmp_path / "bases.safetensors"), bases)


def test_the_file_says_what_it_is(classifier, images, tmp_path):
    write_bases(collect(classifier, images), tmp_path / "bases.safetensors")
    with safe_open(tmp_path / "bases.safetensors", "pt") as file:
        metadata = file.metadata()
        assert file.get_tensor("convolution.weight.vectors").shape == (3, 9, 9)
        assert file.get_tensor("packed#2.values").dtype == torch.float64
    assert (metadata["sap.format"], metadata["sap.checkpoint"], metadata["sap.samples"]) == (
        "sap.bases/2", "weights", "images",
    )  # fmt: skip
    assert json.loads(metadata["sap.weights"])["head.weight"][0]["rows"] == 9


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read as bases"):
        read_bases(tmp_path / "none.safetensors")


def test_another_file(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="the file holds no bases"):
        read_bases(tmp_path / "model.safetensors", "the file")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sap.weights", None),
        ("sap.weights", "{"),
        ("sap.weights", "[]"),
        ("sap.weights", '{"other.weight": [{"size": [1, 2, 6], "stride": [0, 6, 1], "offset": 0, "rows": 9}]}'),
        ("sap.weights", '{"head.weight": [{"size": [1, 2, 5], "stride": [0, 6, 1], "offset": 0, "rows": 9}]}'),
        ("sap.weights", '{"head.weight": [{"size": [2, 2, 6], "stride": [0, 6, 1], "offset": 0, "rows": 9}]}'),
        ("sap.weights", '{"head.weight": [{"size": ["a", 2, 6], "stride": [0, 6, 1], "offset": 0, "rows": 9}]}'),
        ("sap.weights", '{"head.weight": [{"size": [1, 2, 6], "offset": 0, "rows": 9}]}'),
        ("sap.weights", '{"head.weight": 3}'),
        ("sap.skipped", "[]"),
        ("sap.skipped", None),
        ("sap.checkpoint", None),
        ("sap.samples", None),
        ("sap.facts", "3"),
    ],
)
def test_damaged_metadata(classifier, images, tmp_path, key, value):
    path = tmp_path / "bases.safetensors"
    write_bases(collect(classifier, images), path)
    with safe_open(path, "pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != key or value is not None}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if value is not None:
        metadata[key] = value
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="cannot be read as bases"):
        read_bases(path)


def test_a_truncated_file(classifier, images, tmp_path):
    path = tmp_path / "bases.safetensors"
    write_bases(collect(classifier, images), path)
    content = path.read_bytes()
    for length in (0, 4, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cannot be read as bases"):
            read_bases(path)


def test_no_readable_image(classifier, images):
    for path in images.dataset.paths:
        (images.dataset.root / path).write_bytes(b"")
    with pytest.raises(DatasetError, match=r"none of (the )?9 (trusted )?images"):
        collect(classifier, images)


def test_an_overflow_names_the_layer(classifier, images):
    with torch.no_grad():
        classifier.module.convolution.weight.fill_(1e38)
    with pytest.raises(NumericsError, match="the inputs of packed hold NaN or infinite values"):
        collect(classifier, images)


class Views(nn.Module):
    """A network that cannot view images whose channels lie together, after a layer that can."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(16, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        features = self.convolution(images)
        return self.head(features.view(len(features), -1))


def test_a_network_that_wants_its_images_in_one_piece_gets_them(images):
    torch.manual_seed(0)
    classifier = classifier_of(Views().eval())
    found = collect(classifier, images)
    assert classifier.as_built
    expected = bases_of(classifier.module, classifier.inputs(next(images.batches(range(9), 9)).images).contiguous())
    for name in ("convolution.weight", "head.weight"):
        basis, other = found.pieces[name][0].basis, expected.pieces[name][0].basis
        assert basis.rows == other.rows
        torch.testing.assert_close(basis.values, other.values, rtol=1e-5, atol=1e-5)


class Experts(nn.Module):
    """Sends every row to one of two layers."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.low, self.high = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        above = x[:, 0] > self.threshold
        output = x.new_zeros(len(x), 2)
        output[~above] = self.low(x[~above])
        output[above] = self.high(x[above])
        return output


def bases_of(module: nn.Module, *batches: Tensor) -> Bases:
    moments = SecondMoments(module)
    with moments.capture as capture:
        for batch in batches:
            capture.forward(batch)
    return Bases(moments.pieces(SilentProgress()), moments.skipped(), "weights", "images")


def test_a_weight_that_no_row_reached_is_an_error_that_names_it():
    rows = torch.randn(20, 6)
    assert bases_of(Experts(0.0), rows).require_rows(["low.weight", "high.weight"]) is None
    lonely = bases_of(Experts(100.0), rows[:9], rows[9:])
    lonely.require_rows(["low.weight"])
    with pytest.raises(NumericsError, match=r"high\.weight is used, but none of the samples") as caught:
        lonely.require_rows(["low.weight", "high.weight"])
    assert "--skip-layers high.weight" in caught.value.hint


def test_rows_in_a_single_batch_suffice():
    rows = torch.randn(20, 6)
    rows[:10, 0] = -1
    rows[10:, 0] = 1
    bases = bases_of(Experts(0.0), rows[:10], rows[10:])
    bases.require_rows(["low.weight", "high.weight"])
    assert bases.pieces["high.weight"][0].basis.rows == 10


def test_bases_without_rows_are_written_and_read(tmp_path):
    bases = bases_of(Experts(100.0), torch.randn(20, 6))
    write_bases(bases, tmp_path / "bases.safetensors")
    assert_equal(read_bases(tmp_path / "bases.safetensors"), bases)


def test_names_with_a_number_sign_stay_apart(tmp_path):
    view = WeightView((1, 2, 3), (0, 3, 1))
    pieces = tuple(
        Piece(view, Basis(torch.full((1, 3, 1), value), torch.ones(1, 1).double(), 1)) for value in (1.0, 2.0)
    )
    bases = Bases({"a": pieces, "b": pieces[::-1]}, {}, "weights", "images")
    write_bases(bases, tmp_path / "bases.safetensors")
    assert_equal(read_bases(tmp_path / "bases.safetensors"), bases)
