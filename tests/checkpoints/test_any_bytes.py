"""Files from outside that no other test throws bytes at: each gives a result or a clear error, never something else."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sapcli.activations.bases import Bases, Piece
from sapcli.activations.bases_file import read_bases, write_bases
from sapcli.activations.moments import Basis
from sapcli.activations.rows import WeightView
from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.datasets.containers.archives import unpacked_archive
from sapcli.datasets.contents import from_text, to_text
from sapcli.datasets.dataset import Role, open_dataset
from sapcli.errors import SapError
from sapcli.networks.description import describe
from sapcli.repairs.evidence.verification import Claim

NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none())
JSON = st.recursive(
    NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def or_error(read: object, *arguments: object) -> object:
    """What `read` returns, or `None` where it raises an error of ours; any other exception fails the test."""
    try:
        return read(*arguments)  # type: ignore[operator]
    except SapError:
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


@pytest.fixture(scope="module")
def valid_bases(folder: Path) -> bytes:
    basis = Basis(torch.eye(3)[None], torch.ones(1, 3, dtype=torch.float64), 4)
    piece = Piece(WeightView((1, 2, 3), (0, 3, 1)), basis)
    write_bases(Bases({"fc.weight": (piece,)}, {"table": "not used"}, "0" * 64, "1" * 64), folder / "valid.safetensors")
    return (folder / "valid.safetensors").read_bytes()


@given(place=st.integers(0), replaced=st.binary(max_size=6), cut=st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_damaged_bases(folder: Path, valid_bases: bytes, place: int, replaced: bytes, cut: int) -> None:
    start = place % len(valid_bases)
    path = folder / "bases.safetensors"
    path.write_bytes(valid_bases[:start] + replaced + valid_bases[start + cut :])
    or_error(read_bases, path)


@given(key=st.sampled_from(["sap.weights", "sap.skipped", "sap.facts"]), value=JSON)
@settings(max_examples=150, deadline=None)
def test_bases_with_any_metadata(folder: Path, key: str, value: object) -> None:
    metadata = {
        "sap.format": "sap.bases/1",
        "sap.checkpoint": "",
        "sap.samples": "",
        "sap.weights": "{}",
        "sap.skipped": "{}",
        "sap.gains": "{}",
        "sap.facts": '{"per_class": [], "contradicted": 0, "contents": ""}',
    }
    path = folder / "metadata.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata | {key: json.dumps(value)})
    or_error(read_bases, path)


@given(
    st.dictionaries(st.sampled_from(["size", "stride", "offset", "rows"]), JSON | st.lists(st.integers(), max_size=3))
)
@settings(max_examples=150, deadline=None)
def test_bases_with_any_geometry(folder: Path, entry: dict[str, object]) -> None:
    path = folder / "geometry.safetensors"
    valid = {"size": [1, 1, 1], "stride": [0, 0, 0], "offset": 0, "rows": 1}
    metadata = {
        "sap.format": "sap.bases/1",
        "sap.checkpoint": "",
        "sap.samples": "",
        "sap.weights": json.dumps({"a": [valid | entry]}),
        "sap.skipped": "{}",
        "sap.gains": "{}",
        "sap.facts": '{"per_class": [], "contradicted": 0, "contents": ""}',
    }
    save_file({"a.vectors": torch.ones(1, 1, 1), "a.values": torch.ones(1, 1)}, path, metadata)
    bases = or_error(read_bases, path)
    assert bases is None or isinstance(bases, Bases)
    if isinstance(bases, Bases) and bases.fit("a", 1):
        assert bases.pieces["a"][0].view.matrices(torch.ones(1)).shape == (1, 1, 1)


@given(
    st.dictionaries(
        st.sampled_from(["architecture", "num_classes", "model_args", "pretrained_cfg", "label_names", "label"]), JSON
    )
    | JSON
    | st.binary(max_size=30)
)
@settings(max_examples=100, deadline=None)
def test_any_config(folder: Path, content: object) -> None:
    save_file({"fc.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "config.json").write_bytes(text)
    or_error(lambda: describe(open_checkpoint(folder / "model.safetensors"), None))


@given(
    st.dictionaries(
        st.sampled_from(["sap.projected", "sap.batchnorm", "sap.alpha", "sap.importance", "sap.forget_mode"]),
        JSON.map(json.dumps) | st.text(st.characters(codec="utf-8"), max_size=5),
    )
)
@settings(max_examples=100, deadline=None)
def test_any_claim(folder: Path, metadata: dict[str, str]) -> None:
    valid = {"sap.input": "", "sap.output": "", "sap.trusted": "", "sap.projected": "{}", "sap.batchnorm": "[]"}
    path = folder / "claim.safetensors"
    save_file({"a": torch.ones(1)}, path, valid | {"sap.alpha": "", "sap.importance": "sap"} | metadata)
    or_error(Claim.of, open_checkpoint(path))


@given(st.text(max_size=40))
def test_any_text_of_contents(text: str) -> None:
    assert all(len(content) == 8 for content in from_text(text))


@given(st.sets(st.binary(min_size=8, max_size=8)))
def test_contents_come_back(contents: set[bytes]) -> None:
    assert from_text(to_text(contents)) == contents


@given(place=st.integers(0), replaced=st.binary(max_size=4), cut=st.integers(0, 600))
@settings(max_examples=60, deadline=None)
def test_damaged_archive(folder: Path, place: int, replaced: bytes, cut: int) -> None:
    (folder / "image.png").write_bytes(b"no image")
    with tarfile.open(folder / "whole.tar", "w") as archive:
        archive.add(folder / "image.png", "train/cat/a.png")
        archive.add(folder / "image.png", "train/dog/b.png")
    whole = (folder / "whole.tar").read_bytes()
    start = place % 2048
    path = folder / "damaged.tar"
    path.write_bytes(whole[:start] + replaced + whole[start + cut :])
    or_error(unpacked_archive, path)
    or_error(open_dataset, path, Role.LEARN, 2)
