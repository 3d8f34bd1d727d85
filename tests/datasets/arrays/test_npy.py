"""NumPy's files: sizes are held against the bytes that are there."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sapcli.datasets.arrays.npy import NpzFile, read_npy
from sapcli.errors import DatasetError


def header(shape: str, dtype: str = "|u1") -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros(1, np.uint8))
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return content.getvalue()[:8] + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        header("(1099511627776,)") + b"\0",
        header("(4,)") + b"\0",
        header("(1,)") + b"\0\0",
        header("(-1,)") + b"\0",
        header("(0, 1099511627776)"),
        header("(1,)", "|V0"),
        header("(1,)", "|O") + b"cos\nsystem\n(S'touch ran'\ntR.",
        header("(1,)", "<i4") + b"\0\0\0",
        b"\x93NUMPY\x01\x00",
        b"",
        b"text",
    ],
    ids=range(11),
)
def test_files_that_claim_what_they_have_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npy").write_bytes(content)
    if content == header("(0, 1099511627776)"):
        assert read_npy(tmp_path / "a.npy").size == 0  # type: ignore[union-attr]
        return
    with pytest.raises(DatasetError):
        read_npy(tmp_path / "a.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_as_numpy_reads_them(tmp_path: Path, order: str) -> None:
    array = np.asarray(np.arange(12).reshape(3, 4), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(read_npy(tmp_path / "a.npy"), np.load(tmp_path / "a.npy"))


def test_a_compressed_array_that_would_fill_the_memory(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as member,
    ):
        member.write(header(f"({200 << 20},)"))
        for _ in range(200):
            member.write(bytes(1 << 20))
    with pytest.raises(DatasetError, match="says that it has"):
        NpzFile(tmp_path / "a.npz")


def test_members_that_are_damaged(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 3), np.uint8))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[60] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DatasetError):
        NpzFile(tmp_path / "a.npz").array("images")
