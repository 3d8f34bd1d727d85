"""PyTorch's own files: wrappers, what cannot be stored, and code that must not run."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections import OrderedDict
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sapcli.checkpoints.pytorch_file import is_pickled, read_pickled
from sapcli.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

WEIGHTS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)}


def read(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as handle:
        return read_pickled(handle, path, "the file").tensors


def assert_tensors_or_error(path: Path) -> None:
    message = ""
    try:
        for tensor in read(path).values():
            tensor.clone()
    except CheckpointError as error:
        message = error.message
    assert message.isprintable()


def read_saved(folder: Path, content: object, *, zipped: bool = True) -> dict[str, Tensor]:
    path = folder / "file.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return read(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        OrderedDict,
        lambda weights: {"state_dict": weights, "epoch": 3, "best": None},
        lambda weights: {"model": weights, "args": argparse.Namespace(lr=0.1)},
        lambda weights: {"model": {"state_dict": weights}},
        lambda weights: {"epoch": 3, "model_state_dict": weights},
        lambda weights: {"state_dict": weights, "model": "resnet18"},
    ],
)
def test_weights_in_any_wrapper(tmp_path: Path, wrap: Callable[[object], object], zipped: bool) -> None:
    tensors = read_saved(tmp_path, wrap(WEIGHTS), zipped=zipped)
    assert list(tensors) == list(WEIGHTS)
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize(
    ("beside", "names"),
    [
        ({"classes": ["zebra", "ant"]}, ("zebra", "ant")),
        ({"class_to_idx": {"zebra": 0, "ant": 1}, "epoch": 3}, ("zebra", "ant")),
        ({"idx_to_class": {1: "ant", 0: "zebra"}}, ("zebra", "ant")),
        ({"classes": [["zebra"], "ant"], "class_names": ("ant", "zebra")}, ("ant", "zebra")),
        ({"classes": ["ant", "ant"]}, ()),
        ({"classes": 2}, ()),
        ({"classes": {"zebra": "first", 3: None, "ant": 1}}, ()),
        ({}, ()),
    ],
)
def test_the_classes_that_a_training_script_saved(
    tmp_path: Path, beside: dict[str, object], names: tuple[str, ...]
) -> None:
    torch.save({"model_state_dict": WEIGHTS, **beside}, tmp_path / "file.pt")
    with (tmp_path / "file.pt").open("rb") as handle:
        described = read_pickled(handle, tmp_path / "file.pt", "the file").metadata
    assert tuple(json.loads(described.get("label_names", "[]"))) == names


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off(tmp_path: Path, kept: float) -> None:
    torch.save(WEIGHTS, tmp_path / "file.pt")
    content = (tmp_path / "file.pt").read_bytes()
    (tmp_path / "file.pt").write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        read(tmp_path / "file.pt")


def test_a_stream_without_a_path(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "file")
    with (tmp_path / "file").open("rb") as handle:
        assert torch.equal(read_pickled(handle, None, "standard input").tensors["fc.bias"], torch.ones(2))


def test_other_tensors_keep_the_path_of_their_keys(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {"optimizer": optimizer.state_dict(), "model_ema": network.state_dict(), "model": network.state_dict()}
    assert list(read_saved(tmp_path, content)) == ["weight", "bias"]
    with (tmp_path / "file.pt").open("rb") as handle:
        tensors = read_pickled(handle, tmp_path / "file.pt", "the file", keep_extra=True).tensors
    assert list(tensors) == [
        *("weight", "bias", "optimizer.state.0.momentum_buffer", "optimizer.state.1.momentum_buffer"),
        *("model_ema.weight", "model_ema.bias"),
    ]


def test_names_that_only_look_like_a_wrapper_stay(tmp_path: Path) -> None:
    assert list(read_saved(tmp_path, {"model.fc.weight": torch.ones(1)})) == ["model.fc.weight"]


class Runs:
    """What makes a folder where its pickle is loaded without care."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_the_file_never_runs(tmp_path: Path, zipped: bool) -> None:
    with pytest.raises(CheckpointError, match=r"without running code: .*mkdir"):
        read_saved(tmp_path, {"state_dict": WEIGHTS, "trap": Runs(str(tmp_path / "trapped"))}, zipped=zipped)
    assert not (tmp_path / "trapped").exists()


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, object] = {"fc.bias": torch.ones(2)}
    content["epochs"] = [content]
    assert list(read_saved(tmp_path, content)) == ["fc.bias"]
    content["model"] = content
    assert list(read_saved(tmp_path, content)) == ["fc.bias"]


BAD = {
    "a network": (torch.nn.Linear(2, 2), "the file is a whole pickled network"),
    "a tensor": (torch.ones(2), "holds a single tensor [2], expected a state dict"),
    "a number": (5, "holds a int"),
    "one name twice": ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "two tensors that are called 'a.b'"),
    "a sparse tensor": ({"a": torch.ones(2, 2).to_sparse()}, "not a plain dense tensor"),
    "a meta tensor": ({"a": torch.ones(2, 2, device="meta")}, "not a plain dense tensor"),
    "an unknown dtype": ({"a": torch.ones(2, dtype=torch.complex128)}, "dtype torch.complex128"),
    "a view larger than the file": ({"a": torch.ones(1).expand(10**12)}, "claims 1000000000000 elements"),
    "a name that is no text": ({"a\ud800": torch.ones(1)}, ""),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_what_is_wrong_is_named(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "file.pt"
    try:
        torch.save(content, path)
    except UnicodeEncodeError:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert message in caught.value.message
    assert "the file" in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is quantised .*qint8"):
        read_saved(tmp_path, {"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_off_anywhere(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "file.pt"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="the file"):
            read(path)


@given(content=st.binary(max_size=60), head=st.sampled_from([b"PK\x03\x04", b"\x80\x02", b"\x80\x02}", b""]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_are_tensors_or_an_error(tmp_path: Path, content: bytes, head: bytes) -> None:
    (tmp_path / "file.pt").write_bytes(head + content)
    assert_tensors_or_error(tmp_path / "file.pt")


@given(place=st.integers(0, 2000), value=st.integers(0, 255), zipped=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_changed_byte_gives_tensors_or_an_error(tmp_path: Path, place: int, value: int, zipped: bool) -> None:
    path = tmp_path / "file.pt"
    torch.save({"state_dict": WEIGHTS, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content)
    assert_tensors_or_error(path)


def test_both_of_pytorchs_formats_are_recognised(tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save(WEIGHTS, tmp_path / "file", _use_new_zipfile_serialization=zipped)
        assert is_pickled((tmp_path / "file").read_bytes()[:32])


@pytest.mark.parametrize("length", [0x80, 0x0280, 0x04034B50])
def test_a_safetensors_header_that_begins_alike_is_not(length: int) -> None:
    assert not is_pickled(length.to_bytes(8, "little") + b'{"a":')
