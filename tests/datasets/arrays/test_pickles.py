"""Pickles of arrays: those of NumPy and Python 2 and 3 are read, and nothing in a pickle runs or fills memory."""

from __future__ import annotations

import os
import pickle
import pickletools
import tracemalloc
from collections import OrderedDict, defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from sapcli.datasets.arrays.pickles import read_arrays
from sapcli.errors import DatasetError

ARRAYS = (
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.array([1, 2], dtype=">i4"),
    np.array([True, False]),
    np.array(["a", "bc"]),
    np.zeros((0, 3)),
)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_of_every_protocol(array: np.ndarray, protocol: int) -> None:
    found = read_arrays(pickle.dumps({"a": array, "n": [1, 2.5, "x", None]}, protocol), "it")
    assert isinstance(found, dict)
    assert found["a"].dtype == array.dtype
    assert np.array_equal(found["a"], array)
    assert found["n"] == [1, 2.5, "x", None]


def test_a_pickle_of_python_2() -> None:
    """As cPickle wrote CIFAR's batches: byte strings, and the pixels as one of them."""
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    state = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    state += b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    state += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    state += b"U\x06" + array.tobytes() + b"tb"
    content = b"\x80\x02}(U\x04data" + state + b"U\x06labels](K\x05K\x07eu."
    assert np.array_equal(pickle.loads(content, encoding="latin1")["data"], array)
    found = read_arrays(content, "it")
    assert isinstance(found, dict)
    assert np.array_equal(found["data"], array)
    assert found["labels"] == [5, 7]


class _Runs:
    def __init__(self, function: object, *arguments: object) -> None:
        self._reduced = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self._reduced


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    "value",
    [
        _Runs(os.system, "touch ran"),
        _Runs(eval, "open('ran', 'w')"),
        _Runs(np.load, "ran"),
        _Runs(bytearray, 1 << 40),
        _Runs(np.ndarray, (1 << 40,)),
        Path("x"),
        {1, 2},
        defaultdict(list),
        OrderedDict([(("a", "b"), 1)]),
        np.array([object()]),
        np.zeros(3, dtype=[("a", "i4")]),
        np.datetime64("2020-01-01"),
    ],
    ids=[
        "system",
        "eval",
        "load",
        "much memory",
        "a large array",
        "path",
        "set",
        "defaultdict",
        "keys of pairs",
        "array of objects",
        "array of records",
        "date",
    ],
)
def test_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError) as caught:
        read_arrays(pickle.dumps({"data": value}, protocol), "it")
    assert not list(tmp_path.iterdir())
    assert "\n" not in caught.value.message


def _shape_without_content() -> bytes:
    content = pickle.dumps(np.zeros(3, np.uint8), 2)
    return content.replace(b"K\x03\x85", b"\x8a\x06\0\0\0\0\0\1\x85")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02" + b"r\xff\xff\xff\x7f" + b".",
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
        b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",
        b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N.",
        b"\x80\x02" + b"K\x01" + b"\x86" * 100 + b".",
        b"\x80\x02X\x04\0\0\0abcdq\1" + b"c_codecs\nencode\n(h\1X\x06\0\0\0latin1tR0" * 99,
        _shape_without_content(),
        b"",
        b"\x80\x02}.x"[:2],
    ],
    ids=range(10),
)
def test_no_memory_is_taken(content: bytes) -> None:
    tracemalloc.start()
    try:
        with suppress(DatasetError):
            read_arrays(content, "it")
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
    finally:
        tracemalloc.stop()


def test_instructions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapcli.datasets.arrays.pickles._MOST_INSTRUCTIONS", 1000)
    with pytest.raises(DatasetError, match="more than 1,000 instructions"):
        read_arrays(b"\x80\x02" + b"]" * 1000 + b".", "it")


def test_a_key_that_takes_for_ever_to_be_hashed() -> None:
    pair = b"K\x01K\x02\x86q\0"
    for number in range(60):
        pair += b"0h" + bytes([number]) + b"h" + bytes([number]) + b"\x86q" + bytes([number + 1])
    with pytest.raises(DatasetError, match="keys that are no texts"):
        read_arrays(b"\x80\x02}" + pair + b"K\x01s.", "it")


def test_any_cut_off_pickle_is_an_error() -> None:
    content = pickle.dumps({"data": ARRAYS[0], "labels": [1, 2]}, 2)
    assert list(pickletools.genops(content))
    for length in range(len(content) - 1):
        with pytest.raises(DatasetError):
            read_arrays(content[:length], "it")
