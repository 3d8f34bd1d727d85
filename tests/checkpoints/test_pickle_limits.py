"""What PyTorch's files may ask for: all that PyTorch writes, and no more than the file holds."""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

import pytest
import torch

from sapcli.checkpoints.pytorch_file import read_pickled
from sapcli.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WEIGHTS = OrderedDict({"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)})


def read(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as handle:
        return read_pickled(handle, path, "the file").tensors


def trained() -> dict[str, object]:
    """What a training script saves: momentum of every kind, and the schedule."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    return {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict()}


USUAL: dict[str, Callable[[], object]] = {
    "a state dict": lambda: WEIGHTS,
    "parameters": lambda: {"w": torch.nn.Parameter(torch.ones(3)), "b": torch.nn.Parameter(torch.ones(1), False)},
    "a parameter with a note": lambda: {"w": noted(torch.nn.Parameter(torch.ones(3)))},
    "a training": trained,
    "values of every kind": lambda: {
        **WEIGHTS,
        "set": {1, "a", (2, 3)},
        "bytes": b"\x00\xff",
        "array": bytearray(b"abc"),
        "counter": Counter("abca"),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "numbers": [1, -1, 2**40, -(2**80), 0.5, True, None, 1j],
        "arguments": argparse.Namespace(rate=0.1, layers=[1, 2]),
        "nested": {(1, "a"): [{"deep": ((1,), (2, (3,)))}]},
        "text": "é\U0001f600",
    },
    "one tensor under three names": lambda: dict.fromkeys("abc", WEIGHTS["fc.weight"]),
    "views of one storage": lambda: dict(enumerate(torch.arange(100.0).reshape(10, 10).unbind())),
    "an expanded tensor": lambda: {"a": torch.arange(77).expand((1, -1)), "b": torch.ones(1, 3).expand(4, 3)},
    "every dtype": lambda: {str(dtype): torch.ones(2).to(dtype) for dtype in (torch.half, torch.bfloat16, torch.bool)},
    "a million numbers": lambda: {**WEIGHTS, "losses": [number / 7 for number in range(300_000)]},
    "many tensors": lambda: {f"layers.{number}.weight": torch.ones(1) for number in range(3000)},
    "a subclass": lambda: {"w": torch.ones(3).as_subclass(torch.nn.Parameter)},
}


def noted(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    parameter.note = "frozen"  # type: ignore[attr-defined]
    return parameter


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", USUAL.values(), ids=USUAL.keys())
def test_what_pytorch_writes_is_read(tmp_path: Path, content: Callable[[], object], zipped: bool) -> None:
    path = tmp_path / "file.pt"
    torch.save(content(), path, _use_new_zipfile_serialization=zipped)
    with torch.serialization.safe_globals([argparse.Namespace]):
        expected = torch.load(path, weights_only=True)
    inner = expected.get("model", expected)
    found = read(path)
    for name, tensor in inner.items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(found[str(name)], tensor)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


SET, TENSOR = b"c__builtin__\nset\n", b"ctorch._utils\n_rebuild_tensor_v2\n"
BIG = b"\x8a\x08" + struct.pack("<q", 10**11)
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
# The last of them: ((t, t), (t, t)), sixty times over.
TWICE = b")q\x00" + b"".join(bytes([0x68, n, 0x68, n, 0x86, 0x71, n + 1]) for n in range(60))

REFUSED = {
    "a byte array of any size": (b"c__builtin__\nbytearray\n" + BIG + b"\x85R", "without running code"),
    "a storage made by a call": (b"ctorch.storage\nUntypedStorage\n" + BIG + b"\x85\x81", "without running code"),
    "an encoding that grows": (b"c_codecs\nencode\n" + text("a") + text("hex") + b"\x86R", "without running code"),
    "a key that is endless": (b"}" + TWICE + b"Ns", "MiB of memory"),
    "a key in a list of pairs": (b"ccollections\nOrderedDict\n](" + TWICE + b"e\x85R", "MiB of memory"),
    "a member that is endless": (SET + b"](" + TWICE + b"e\x85R", "MiB of memory"),
    "a deep tuple": (b")" + b"\x85" * 1000, "100 deep"),
    "copies of a set": (
        b"](" + b"K\x01" * 10_000 + b"eq\x00" + (SET + b"h\x00\x85R") * 300,
        "MiB of memory",
    ),
    "a function that is none": (b")" + b")R", "without running code"),
    "a storage with a strange name": (STORAGE.replace(text("0"), b"K\x07") + b"K\x01tQ", "without running code"),
    "a tensor whose storage is set": (TENSOR + STORAGE + b"K\x01tQK\x00K\x01\x85K\x01\x85\x89}tR)b", ""),
}


def in_archive(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("archive/data/0", bytes(4))
        archive.writestr("archive/version", "3\n")


def in_old_file(path: Path, content: bytes) -> None:
    start = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(start) + b"\x80\x02" + content + b"." + pickle.dumps([], 2))


@pytest.mark.parametrize("write", [in_archive, in_old_file])
@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_asks_for_more_is_refused(
    tmp_path: Path, content: bytes, message: str, write: Callable[[Path, bytes], None]
) -> None:
    write(tmp_path / "file.pt", content)
    with pytest.raises(CheckpointError, match="the file") as caught:
        read(tmp_path / "file.pt")
    assert message in caught.value.message


def rewritten(folder: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> Path:
    """A file of PyTorch's, each of whose records is written again by `change`."""
    torch.save(WEIGHTS, folder / "original.pt")
    path = folder / "file.pt"
    with zipfile.ZipFile(folder / "original.pt") as original, zipfile.ZipFile(path, "w") as archive:
        for member in original.infolist():
            change(archive, member, original.read(member))
    return path


def test_an_archive_that_another_program_wrote_is_read(tmp_path: Path) -> None:
    path = rewritten(tmp_path, lambda archive, member, data: archive.writestr(member.filename, data))
    assert torch.equal(read(path)["fc.weight"], WEIGHTS["fc.weight"])


@pytest.mark.parametrize("name", ["data.pkl", "data/0", "version", "byteorder"])
def test_a_compressed_record_is_refused(tmp_path: Path, name: str) -> None:
    def change(archive: zipfile.ZipFile, member: zipfile.ZipInfo, data: bytes) -> None:
        deflated = member.filename.endswith("/" + name)
        archive.writestr(member.filename, data, zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED)

    with pytest.raises(CheckpointError, match="compressed record"):
        read(rewritten(tmp_path, change))


def test_names_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    # PyTorch's reader would take one for the other.
    def change(archive: zipfile.ZipFile, member: zipfile.ZipInfo, data: bytes) -> None:
        archive.writestr(member.filename, data)
        if member.filename.endswith("data.pkl"):
            archive.writestr(member.filename.upper(), data)

    with pytest.raises(CheckpointError, match="damaged"):
        read(rewritten(tmp_path, change))


@pytest.mark.parametrize("after", [b"\0", b"PK\5\6" + bytes(18), b"x" * 100])
def test_a_directory_that_is_not_at_the_end_is_refused(tmp_path: Path, after: bytes) -> None:
    torch.save(WEIGHTS, tmp_path / "file.pt")
    with (tmp_path / "file.pt").open("ab") as handle:
        handle.write(after)
    with pytest.raises(CheckpointError, match=r"damaged|did not write"):
        read(tmp_path / "file.pt")


def test_views_may_not_fill_many_times_the_file(tmp_path: Path) -> None:
    storage = torch.zeros(1_000_000)
    torch.save({f"v{number}": storage[number:] for number in range(40)}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="claim more than 8 times"):
        read(tmp_path / "file.pt")


def test_names_may_not_be_longer_together_than_a_header(tmp_path: Path) -> None:
    torch.save({"k" * 200_000: {str(number): torch.zeros(1) for number in range(100)}}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="names of more than"):
        read(tmp_path / "file.pt")


def test_what_is_nested_too_deeply_is_named(tmp_path: Path) -> None:
    content: dict[str, object] = {"fc.bias": torch.ones(2)}
    for _ in range(150):
        content = {"a": content}
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="nested more than 100 deep"):
        read(tmp_path / "file.pt")
