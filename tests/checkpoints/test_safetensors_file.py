"""The header of a safetensors file, right and wrong, against the reference library."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from typing import TYPE_CHECKING

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from sapcli.checkpoints.safetensors_file import DTYPES, SafetensorsFile, save_tensors
from sapcli.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def opened(folder: Path, content: bytes) -> SafetensorsFile:
    path = folder / "file.safetensors"
    path.write_bytes(content)
    return SafetensorsFile(path.open("rb"), "the file")


EIGHT = b"\0" * 8
GOOD = raw({"a": tensor(), "b": tensor(offsets=[8, 16])}, EIGHT * 2)

BAD = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"\0" * 7, "only 7 bytes"),
    "header of no length": (struct.pack("<Q", 0), "not a JSON object"),
    "header too long for any": (struct.pack("<Q", 2**63) + b"{}", "not a safetensors file"),
    "header longer than the file": (raw({}, length=100), "is cut off"),
    "header is an array": (raw([]), "not a JSON object"),
    "header is no JSON": (raw(b"{abc"), "not valid JSON"),
    "header is not UTF-8": (raw(b'{"\xff": 1}'), "not valid JSON"),
    "header ends early": (raw(b'{"a":'), "not valid JSON"),
    "header has half a character pair": (raw(b'{"\\ud800": 1}'), "not valid JSON"),
    "header nests deeply": (raw(b'{"a":' + b"[" * 200_000), "nested too deeply"),
    "header has a huge number": (raw(b'{"a":' + b"1" * 5000 + b"}"), "not valid JSON"),
    "header has NaN": (raw(b'{"a": NaN}'), "NaN is not a JSON value"),
    "doubled tensor": (raw(b'{"a": 1, "a": 2}'), "'a' is there twice"),
    "doubled description": (raw(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' is there twice"),
    "metadata is a list": (raw({"__metadata__": []}), "not texts by name"),
    "metadata holds a number": (raw({"__metadata__": {"a": 1}}), "not texts by name"),
    "tensor is a number": (raw({"a": 1}), "not by dtype, shape and data_offsets"),
    "tensor without shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT), "not by dtype"),
    "three offsets": (raw({"a": tensor(offsets=[0, 4, 8])}, EIGHT), "not by dtype"),
    "unknown dtype": (raw({"a": tensor("F31")}, EIGHT), "dtype 'F31'"),
    "dtype in lower case": (raw({"a": tensor("f32")}, EIGHT), "dtype 'f32'"),
    "dtype is a number": (raw({"a": tensor(32)}, EIGHT), "not by dtype"),
    "wrong dtype for the bytes": (raw({"a": tensor("F64")}, EIGHT), "8 bytes of data, expected 16"),
    "wrong shape for the bytes": (raw({"a": tensor(shape=[3])}, EIGHT), "8 bytes of data, expected 12"),
    "negative extents": (raw({"a": tensor(shape=[-1, -2])}, EIGHT), "expected counts"),
    "fractional extent": (raw({"a": tensor(shape=[2.0])}, EIGHT), "expected counts"),
    "extent is true": (raw({"a": tensor(shape=[True, 2])}, EIGHT), "expected counts"),
    "offset beyond 64 bits": (raw({"a": tensor(offsets=[0, 2**64])}, EIGHT), "expected counts"),
    "shape overflows": (raw({"a": tensor(shape=[2**62, 2**62, 0], offsets=[0, 0])}), "impossible shape"),
    "too many dimensions": (raw({"a": tensor(shape=[1] * 65, offsets=[0, 4])}, b"\0" * 4), "impossible shape"),
    "offsets backwards": (raw({"a": tensor(offsets=[8, 0])}, EIGHT), "-8 bytes of data"),
    "gap before the data": (raw({"a": tensor(offsets=[8, 16])}, EIGHT * 2), "leaves a gap"),
    "gap": (raw({"a": tensor(), "b": tensor(offsets=[16, 24])}, EIGHT * 3), "leaves a gap"),
    "overlap": (raw({"a": tensor(), "b": tensor(offsets=[4, 12])}, EIGHT * 2), "overlaps"),
    "same data twice": (raw({"a": tensor(), "b": tensor()}, EIGHT), "overlaps"),
    "out of range": (raw({"a": tensor()}, b"\0" * 4), "cut off: tensor 'a' ends at byte 8 of the data"),
    "bytes at the end": (raw({"a": tensor()}, EIGHT * 2), "8 bytes after its last tensor"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path, content)
    assert message in caught.value.message
    assert "the file" in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint


def test_cut_off_anywhere(tmp_path: Path) -> None:
    assert set(opened(tmp_path, GOOD).entries) == {"a", "b"}
    for length in range(len(GOOD)):
        with pytest.raises(CheckpointError):
            opened(tmp_path, GOOD[:length])


def test_names_in_messages_stay_on_one_line_and_short(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path, raw({"a\n\x1b[31m" + "b" * 100_000: 1}))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (4, 0)], ids=str)
def test_every_dtype_as_the_library_writes_it(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    expected = torch.randint(0, 2, (*shape, dtype.itemsize), dtype=torch.uint8).view(dtype).reshape(shape)
    file = opened(tmp_path, save({"x": torch.ones(3, dtype=torch.float64), "t": expected}, {"format": "pt"}))
    found = file.read("t")
    assert (found.dtype, found.shape) == (dtype, shape)
    assert torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))
    assert file.metadata == {"format": "pt"}


def test_a_read_tensor_is_the_callers_own(tmp_path: Path) -> None:
    file = opened(tmp_path, save({"t": torch.zeros(3)}))
    file.read("t").fill_(1)
    assert torch.equal(file.read("t"), torch.zeros(3))


def test_chunks_are_the_tensors_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapcli.checkpoints.safetensors_file._CHUNK", 7)
    values = torch.arange(20, dtype=torch.int16)
    pieces = [bytes(piece) for piece in opened(tmp_path, save({"t": values})).chunks("t")]
    assert [len(piece) for piece in pieces] == [7, 7, 7, 7, 7, 5]
    assert b"".join(pieces) == values.numpy().tobytes()


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    file = opened(tmp_path, save({"t": torch.zeros(3)}))
    os.truncate(tmp_path / "file.safetensors", 90)
    with pytest.raises(CheckpointError, match="was changed"):
        file.read("t")


def test_a_file_that_is_removed_meanwhile_can_still_be_read(tmp_path: Path) -> None:
    file = opened(tmp_path, save({"t": torch.zeros(3)}))
    (tmp_path / "file.safetensors").unlink()
    assert torch.equal(file.read("t"), torch.zeros(3))


def test_what_is_saved_the_library_reads(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "odd": torch.ones(3, dtype=torch.uint8),
        "transposed": shared.T,
        "shared": shared,
        "scalar": torch.tensor(5),
        "none": torch.zeros(0, 3),
        "é\n": torch.tensor([1 + 2j, 3]).conj(),
        "gradient": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
    }
    with (tmp_path / "out.safetensors").open("wb") as handle:
        save_tensors(handle, tensors, {"z": "1", "a": "é"})
    loaded = load_file(tmp_path / "out.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value.detach())
    file = SafetensorsFile((tmp_path / "out.safetensors").open("rb"), "out")
    assert list(file.entries) == list(tensors)
    assert list(file.metadata.items()) == [("a", "é"), ("z", "1")]


@given(
    content=st.binary(max_size=200) | st.binary(max_size=200).map(raw) | st.text(max_size=200).map(str.encode).map(raw)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_a_file_or_an_error(tmp_path: Path, content: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        opened(tmp_path, content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(header=st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), json_values, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_header_is_a_file_or_an_error(tmp_path: Path, header: dict[str, object]) -> None:
    with contextlib.suppress(CheckpointError):
        opened(tmp_path, raw(header))


extents = st.integers(0, 3)
offsets = st.tuples(st.integers(0, 6).map(lambda n: 4 * n), st.integers(0, 6).map(lambda n: 4 * n))


@given(
    header=st.dictionaries(
        st.sampled_from("abc"),
        st.builds(tensor, st.sampled_from(["F32", "I64", "F16", "BOOL"]), st.lists(extents, max_size=2), offsets),
        min_size=1,
    ),
    size=st.integers(0, 6).map(lambda n: 4 * n),
)
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_accepts_what_the_library_accepts(tmp_path: Path, header: dict[str, object], size: int) -> None:
    content = raw(header, bytes(size))
    try:
        expected = {name: tuple(info["shape"]) for name, info in safetensors.deserialize(content)}
    except safetensors.SafetensorError:
        with pytest.raises(CheckpointError):
            opened(tmp_path, content)
    else:
        assert {name: entry.shape for name, entry in opened(tmp_path, content).entries.items()} == expected
