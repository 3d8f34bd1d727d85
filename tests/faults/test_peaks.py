"""Files that are small to make and large when they are read: an error of two lines, in little memory.

The files are made here. What is measured is the largest resident memory of a process of the command line, less that of
one that had nothing to read.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.processes import start

LIMIT = 500 << 20
MIB = 1 << 20

Bomb = Callable[[Path], object]


def tell_peak() -> None:
    """Have the process leave its peak of resident memory in its folder when it ends, and temporary files beside it."""
    leave = os._exit
    tempfile.tempdir = "temporary"

    def leave_peak(status: int) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
        Path("peak").write_text(peak)
        leave(status)

    os._exit = leave_peak  # type: ignore[assignment]


def peak_of(folder: Path, *arguments: str) -> tuple[int, int, str]:
    """The largest resident memory of a run in bytes, its status, and what it said."""
    (folder / "temporary").mkdir()
    run = start(folder, arguments, tell_peak)
    status = run.wait(300)
    return int((folder / "peak").read_text()) * 1024, status, run.said()


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> int:
    folder = tmp_path_factory.mktemp("idle")
    save_file({"fc.weight": torch.zeros(3, 2)}, folder / "model.safetensors")
    peak, status, said = peak_of(folder, "inspect", "model.safetensors", "--arch", "resnet18")
    assert status == 1, said
    return peak


# Safetensors: a header that is all that there is.


def header(text: Callable[[], bytes], name: str = "model.safetensors") -> Bomb:
    def make(folder: Path) -> None:
        content = text()
        (folder / name).write_bytes(len(content).to_bytes(8, "little") + content)

    return make


def repeated(before: bytes, part: bytes, after: bytes, size: int = 15 * MIB) -> Callable[[], bytes]:
    return lambda: before + part * ((size - len(before) - len(after)) // len(part)) + after


def many_entries(size: int) -> Callable[[], bytes]:
    entry = '"{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    numbers = range(size // (len(entry.format(0)) + 5))
    return lambda: ("{" + ",".join(map(entry.format, numbers)) + "}").encode()


def long_metadata() -> bytes:
    return json.dumps({"__metadata__": {"a": "\U0001f600" * (3 * MIB)}}, ensure_ascii=False).encode()


def long_header(folder: Path) -> None:
    """A gigabyte of header that takes no room on the disk."""
    with (folder / "model.safetensors").open("wb") as handle:
        handle.write((1 << 30).to_bytes(8, "little") + b'{"a":')
        handle.truncate(8 + (1 << 30))


def shards(folder: Path) -> None:
    """Twenty shards with a header of 4 MiB each."""
    text = json.dumps({"__metadata__": {"a": "b" * (4 * MIB)}}).encode()
    names = [f"{number}.safetensors" for number in range(20)]
    for name in names:
        header(lambda: text, name)(folder)
    index = {"weight_map": {str(number): name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index(text: Callable[[], bytes]) -> Bomb:
    return lambda folder: (folder / "model.safetensors.index.json").write_bytes(text())


# PyTorch's files: pickles that are written by hand.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def put(number: int) -> bytes:
    return b"r" + struct.pack("<I", number)


def get(number: int) -> bytes:
    return b"j" + struct.pack("<I", number)


def integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def doubling(times: int) -> bytes:
    """A tuple that holds itself twice, `times` over."""
    return b")" + put(0) + b"".join(get(number) * 2 + b"\x86" + put(number + 1) for number in range(times))


def member(content: Callable[[], bytes], method: int = zipfile.ZIP_STORED, name: str = "model.pth") -> Bomb:
    """An archive of PyTorch's with this description of its tensors."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, "w", method, compresslevel=9) as archive:
            archive.writestr("archive/data.pkl", content())
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
            archive.writestr("archive/data/0", bytes(1000))

    return make


def legacy(content: Callable[[], bytes], name: str = "model.pth") -> Bomb:
    """A file of PyTorch's older form with this description of its tensors."""
    magic, protocol = pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)
    facts = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    return lambda folder: (folder / name).write_bytes(magic + protocol + facts + content() + pickle.dumps([], 2))


def views(folder: Path) -> None:
    storage = torch.zeros(250_000)
    torch.save({f"v{number}": storage[:249_000] for number in range(30_000)}, folder / "model.pth")


def long_names(folder: Path) -> None:
    part = torch.zeros(1)
    torch.save({"k" * MIB: {str(number): part for number in range(10_000)}}, folder / "model.pth")


def many_members(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        for number in range(150_000):
            archive.writestr(f"archive/data/{number}", b"")


SET = named("__builtin__", "set")
ORDERED = named("collections", "OrderedDict")
ENCODE = named("_codecs", "encode")
STORAGE = text("storage") + named("torch", "FloatStorage")
TENSOR = named("torch._utils", "_rebuild_tensor_v2")

PICKLES: dict[str, Callable[[], bytes]] = {
    "a byte array of any size": lambda: named("__builtin__", "bytearray") + integer(10**10) + b"\x85R",
    "a storage of any size": lambda: named("torch.storage", "UntypedStorage") + integer(10**10) + b"\x85R",
    "a tensor of any size": lambda: named("torch", "FloatTensor") + integer(10**10) + b"\x85R",
    "a text encoded again and again": lambda: text("a" * 1000)
    + (put(0) + ENCODE + get(0) + text("hex") + b"\x86R") * 40,
    "copies of a long text": lambda: text("a" * MIB) + put(0) + (ENCODE + get(0) + text("latin1") + b"\x86R") * 4000,
    "copies of a long list": lambda: b"](" + b"".join(b"M" + struct.pack("<H", n) for n in range(65535)) + b"e"
    + put(0) + (SET + get(0) + b"\x85R") * 4000,
    "the hash of a tuple that holds itself": lambda: b"}" + doubling(60) + b"Ns",
    "the hash of a deep tuple": lambda: b"})" + b"\x85" * 4_000_000 + b"Ns",
    "a set of a tuple that holds itself": lambda: SET + b"](" + doubling(60) + b"e\x85R",
    "a function that is a tuple that holds itself": lambda: doubling(60) + b")R",
    "a class that is a tuple that holds itself": lambda: doubling(60) + b")\x81",
    "a storage named by a tuple that holds itself": lambda: b"(" + STORAGE + doubling(60) + text("cpu") + b"K\x01tQ",
    "millions of dictionaries": lambda: b"](" + b"}" * (15 * MIB) + b"e",
    "millions of sets": lambda: b"](" + b"\x8f" * (15 * MIB) + b"e",
    "millions of ordered dictionaries": lambda: ORDERED + put(0) + b"](" + (get(0) + b")R") * 2_000_000 + b"e",
    "millions of marks": lambda: b"(" * (15 * MIB),
    "millions of keys": lambda: b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(1_000_000)) + b"u",
    "lists in lists": lambda: b"}X\x01\x00\x00\x00a" + b"](" * 1_000_000 + b"e" * 1_000_000 + b"s",
    "a view of any size, copied": lambda: named("torch._utils", "_rebuild_device_tensor_from_cpu_tensor")
    + TENSOR + b"((" + STORAGE + text("0") + text("cpu") + b"K\x01tQK\x00" + integer(10**9)
    + b"\x85K\x00\x85\x89" + ORDERED + b")RtR" + named("torch", "float64") + text("cpu") + b"\x89(tR",
}  # fmt: skip


def whole(content: Callable[[], bytes]) -> Callable[[], bytes]:
    return lambda: b"\x80\x02" + content() + b"."


BOMBS: dict[str, Bomb] = {
    "a header of a gigabyte": long_header,
    "a header of 60 MiB": header(many_entries(60 * MIB)),
    "a header of 15 MiB": header(many_entries(15 * MIB)),
    "a header of empty objects": header(repeated(b'{"a":[', b"{},", b"0]}")),
    "a header of small objects": header(repeated(b'{"a":[', b'{"a":0},', b"0]}")),
    "a header of empty lists": header(repeated(b'{"a":{"shape":[', b"[],", b"0]}}")),
    "a header of numbers": header(repeated(b'{"a":{"shape":[', b"-9,", b"0]}}")),
    "metadata of 12 MiB": header(long_metadata),
    "many shards": shards,
    "an index of empty objects": index(repeated(b'{"weight_map":{},"a":[', b"{},", b"0]}")),
    "an index of empty names": index(repeated(b'{"weight_map":{"a":[', b'"",', b"0]}}")),
    "an index of 100 MiB": index(lambda: b" " * (100 * MIB)),
    "views of one storage": views,
    "a name a megabyte long before many": long_names,
    "many records": many_members,
    "a compressed description": member(lambda: b"\x80\x02" + bytes(1000 * MIB), zipfile.ZIP_DEFLATED),
    "a long description": member(lambda: b"\x80\x02" + bytes(20 * MIB)),
    **{f"{name}, in an archive": member(whole(content)) for name, content in PICKLES.items()},
    **{f"{name}, in an old file": legacy(whole(content)) for name, content in PICKLES.items()},
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_an_error_in_little_memory(tmp_path: Path, idle: int, bomb: Bomb) -> None:
    bomb(tmp_path)
    peak, status, said = peak_of(tmp_path, "inspect", ".", "--arch", "resnet18")
    assert status == 1, said
    assert [line.partition(":")[0] for line in said.splitlines()] == ["error", "hint"]
    assert peak - idle < LIMIT
    assert not list((tmp_path / "temporary").iterdir())


ARGUMENTS: dict[str, tuple[str, dict[str, object]]] = {
    "a depth without end": ("vit_tiny_patch16_224", {"depth": 100_000_000}),
    "the largest depth": ("vit_tiny_patch16_224", {"depth": 99_999}),
    "a width, where the outline fails": (
        "vit_tiny_patch16_224",
        {"depth": 1, "embed_dim": 40_000, "num_heads": 16, "weight_init": "bogus"},
    ),
    "many tensors, where the outline fails": (
        "vit_tiny_patch16_224",
        {"depth": 300, "embed_dim": 1000, "num_heads": 4, "weight_init": "bogus"},
    ),
    "a number of four hundred digits": ("vit_tiny_patch16_224", {"depth": 10**400}),
    "a width": ("resnet18", {"base_width": 99_999, "block_reduce_first": 1}),
    "a window": ("swin_tiny_patch4_window7_224", {"window_size": 20_000, "img_size": 90_000}),
    "a window, where the outline fails": ("swin_tiny_patch4_window7_224", {"window_size": 300, "weight_init": "bogus"}),
    "an image": ("vit_tiny_patch16_224", {"img_size": 99_999, "weight_init": "bogus"}),
    "a factor": ("vit_tiny_patch16_224", {"mlp_ratio": 90_000.0, "weight_init": "bogus"}),
    "layers": ("torchvision:resnet18", {"layers": [90_000, 1, 1, 1]}),
}


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments_of_a_network_take_little_memory(
    tmp_path: Path, idle: int, name: str, arguments: dict[str, object]
) -> None:
    save_file({"head.weight": torch.zeros(3, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "model_args": arguments}))
    peak, status, said = peak_of(tmp_path, "inspect", "model.safetensors")
    assert status == 0, said
    assert "Traceback" not in said
    assert peak - idle < LIMIT
