"""Files that are small to make and large when they are read: an error of two lines, in little memory.

The files are made here. What is measured is the largest resident memory of a process of the command line, less that of
one that had nothing to read.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.processes import start
from support.small_project import Project

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


# Data sets: what lies beside the images, the images, and files of many of them.


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, depth: int, colour: int, interlaced: int = 0) -> bytes:
    facts = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", facts)


def hollow(name: str, size: int, *parts: tuple[int, bytes]) -> Bomb:
    """A file of any size that takes no room on the disk but for some parts of it."""

    def make(folder: Path) -> None:
        with (folder / name).open("wb") as handle:
            for place, content in parts:
                handle.seek(place)
                handle.write(content)
            handle.truncate(size)

    return make


def hollow_chunk(kind: bytes, *, is_last: bool) -> Bomb:
    """A picture of eight pixels beside a chunk of 900 MiB."""
    size = 900 * MIB
    checksum = zlib.crc32(kind)
    for _ in range(900):
        checksum = zlib.crc32(bytes(MIB), checksum)
    pixels = chunk(b"IDAT", zlib.compress(bytes(25 * 8)))
    start = png_header(8, 8, 8, 2) + (pixels if is_last else b"") + struct.pack(">I", size) + kind
    end = struct.pack(">I", checksum) + (b"" if is_last else pixels) + chunk(b"IEND", b"")
    return hollow("data/train/red/bomb.png", len(start) + size + len(end), (0, start), (len(start) + size, end))


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    usual = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 400, 277: 1, 278: 8, 279: 64}
    known = {tag: (4, 1, value) for tag, value in usual.items()} | {tag: rest for tag, *rest in tags}
    entries = b"".join(struct.pack("<HHII", tag, *known[tag]) for tag in sorted(known))
    return b"II*\0" + struct.pack("<IH", 8, len(known)) + entries + struct.pack("<I", 0)


def picture(header: bytes, row: int, rows: int) -> Bomb:
    content = header + chunk(b"IDAT", zlib.compress(bytes(row * rows), 9)) + chunk(b"IEND", b"")
    return lambda folder: (folder / "data/train/red/bomb.png").write_bytes(content)


IMAGES: dict[str, Bomb] = {
    "a chunk that nobody knows": hollow_chunk(b"abCd", is_last=False),
    "such a chunk after the pixels": hollow_chunk(b"abCd", is_last=True),
    "a text": hollow_chunk(b"iTXt", is_last=False),
    "EXIF data": hollow_chunk(b"eXIf", is_last=True),
    "a tag of bytes": hollow("data/train/red/bomb.tif", 901 * MIB, (0, tiff((65000, 1, 900 * MIB, 1000)))),
    "an orientation of many numbers": hollow(
        "data/train/red/bomb.tif", 901 * MIB, (0, tiff((274, 3, 200 * MIB, 1000)))
    ),
    "millions of strips": hollow(
        "data/train/red/bomb.tif", 901 * MIB, (0, tiff((273, 4, 100 * MIB, 1000), (278, 4, 1, 1)))
    ),
    "a million strips": hollow(
        "data/train/red/bomb.tif", 40 * MIB, (0, tiff((257, 4, 1, 900_000), (273, 4, 900_000, 1000), (278, 4, 1, 1)))
    ),
    "one strip, compressed": hollow(
        "data/train/red/bomb.tif",
        901 * MIB,
        (
            0,
            tiff(
                *((256, 4, 1, 9900), (257, 4, 1, 9900), (258, 3, 4, 300), (259, 3, 1, 32773), (262, 3, 1, 2)),
                *((277, 3, 1, 4), (278, 4, 1, 9900), (279, 4, 1, 800 * MIB), (338, 3, 1, 2)),
            ),
        ),
        (300, struct.pack("<4H", 16, 16, 16, 16)),
    ),
    "a WebP file": hollow(
        "data/train/red/bomb.webp",
        900 * MIB,
        (0, b"RIFF" + struct.pack("<I", 900 * MIB - 8) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(10)),
    ),
    "an AVIF file": hollow("data/train/red/bomb.avif", 900 * MIB, (0, b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf")),
    "a bitmap's header": hollow(
        "data/train/red/bomb.bmp", 900 * MIB, (0, b"BM" + struct.pack("<IHHII", 0, 0, 0, 54, 700 * MIB))
    ),
    "16 bits, interlaced": picture(png_header(13300, 13400, 16, 0, 1), 26630, 13400),
    "the most pixels of three colours": picture(png_header(10000, 9900, 8, 2), 30001, 9900),
}  # fmt: skip


@pytest.fixture
def working(original: Project, tmp_path: Path) -> tuple[Path, int]:
    """The small project, and the peak of a run on it as it is."""
    folder = tmp_path / "project"
    shutil.copytree(original.folder, folder)
    return folder, _usual(original.folder, tmp_path)


_usual_peak: list[int] = []


def _usual(original: Path, place: Path) -> int:
    if not _usual_peak:
        shutil.copytree(original, place / "usual")
        peak, status, said = peak_of(place / "usual", *SELECT)
        assert status == 0, said
        _usual_peak.append(peak)
    return _usual_peak[0]


NETWORK = ("--arch", "network.py:tiny", "--workers", "0", "--cache-dir", "cache")
SELECT = ("select", "model.safetensors", "data", "-n", "9", *NETWORK)


@pytest.mark.parametrize("bomb", IMAGES.values(), ids=IMAGES.keys())
def test_an_image_takes_little_memory(working: tuple[Path, int], bomb: Bomb) -> None:
    folder, usual = working
    bomb(folder)
    peak, status, said = peak_of(folder, *SELECT)
    assert status == 0, said
    assert peak - usual < LIMIT


@pytest.mark.parametrize(
    "arguments",
    [
        ("polish", "model.safetensors", "data", *NETWORK, "--epochs", "1", "-o", "polished.safetensors"),
        ("suspects", "model.safetensors", "data", *NETWORK, "--all", "--html", "a.html", "--review", "b.html"),
    ],
    ids=["polish", "the pages of suspects"],
)
def test_the_largest_picture_takes_little_memory_everywhere(
    working: tuple[Path, int], arguments: tuple[str, ...]
) -> None:
    folder, usual = working
    IMAGES["16 bits, interlaced"](folder)
    peak, status, said = peak_of(folder, *arguments)
    assert status == 0, said
    assert peak - usual < LIMIT


def zipped(method: int) -> Bomb:
    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "bomb.zip", "w", method) as archive, archive.open("a/0.png", "w") as member:
            for _ in range(600):
                member.write(bytes(MIB))

    return make


def arrays(folder: Path) -> None:
    """Six megabytes that do not compress, beside six hundred that do."""
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("train_images.npy", "w") as member:
            facts = {"descr": "|u1", "fortran_order": False, "shape": (600, 1024, 1024)}
            np.lib.format.write_array_header_1_0(member, facts)
            for _ in range(600):
                member.write(bytes(MIB))
        labels, noise = io.BytesIO(), io.BytesIO()
        np.save(labels, np.arange(600) % 3)
        np.save(noise, np.random.default_rng(0).integers(0, 256, 6 * MIB, np.uint8))
        archive.writestr("train_labels.npy", labels.getvalue())
        archive.writestr("noise.npy", noise.getvalue())


def batches(size: int, start: bytes) -> Bomb:
    def make(folder: Path) -> None:
        (folder / "bomb").mkdir()
        for name in ("data_batch_1", "test_batch"):
            hollow(f"bomb/{name}", size, (0, start))(folder)

    return make


def shard_of(size: int) -> Bomb:
    """Shards of one image of this size, and of small ones."""

    def make(folder: Path) -> None:
        small = (folder / "data/train/red/00.png").read_bytes()
        for split in ("train", "val"):
            (folder / "bomb").mkdir(exist_ok=True)
            with (folder / f"bomb/{split}-0.tar").open("wb") as handle:
                for number in range(9):
                    for name, content in ((f"{number}.png", small), (f"{number}.cls", str(number % 3).encode())):
                        is_bomb = name == "0.png"
                        head = tarfile.TarInfo(name)
                        head.size = size if is_bomb else len(content)
                        handle.write(head.tobuf(tarfile.GNU_FORMAT))
                        handle.seek(size, os.SEEK_CUR) if is_bomb else handle.write(
                            content + bytes(-len(content) % 512)
                        )
                handle.write(bytes(1024))

    return make


CONTAINERS: dict[str, tuple[Bomb, str, int]] = {
    "a zip archive, by bzip2": (zipped(zipfile.ZIP_BZIP2), "bomb.zip", 1),
    "a zip archive, by LZMA": (zipped(zipfile.ZIP_LZMA), "bomb.zip", 1),
    "compressed arrays": (arrays, "bomb.npz", 1),
    "a large batch": (batches(511 * MIB, b"\x80\x04\x8d" + struct.pack("<Q", 500 * MIB)), "bomb", 1),
    "a text in a batch": (batches(220 * MIB, b"\x80\x04\x8d" + struct.pack("<Q", 210 * MIB)), "bomb", 1),
    "dictionaries in a batch": (batches(20 * MIB, b"\x80\x02(" + b"}" * (19 * MIB)), "bomb", 1),
    # Its small images are the same in both splits.
    "an image in a shard": (shard_of(900 * MIB), "bomb", 1),
}


@pytest.mark.parametrize(("bomb", "name", "expected"), CONTAINERS.values(), ids=CONTAINERS.keys())
def test_a_file_of_many_images_takes_little_memory(
    working: tuple[Path, int], bomb: Bomb, name: str, expected: int
) -> None:
    folder, usual = working
    bomb(folder)
    peak, status, said = peak_of(folder, "select", "model.safetensors", name, "-n", "6", *NETWORK)
    assert status == expected, said
    assert "Traceback" not in said
    assert peak - usual < LIMIT


def table(columns: Callable[[bytes], Mapping[str, object]], name: str = "bomb.parquet") -> Bomb:
    def make(folder: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        small = (folder / "data/train/red/00.png").read_bytes()
        parquet.write_table(pyarrow.table(columns(small)), folder / name, compression="zstd")

    return make


def one(value: object, count: int) -> object:
    """A column of one value, which is written once."""
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(count, "i4")), pyarrow.array([value]))


TABLES: dict[str, Bomb] = {
    "images that are written once": table(
        lambda _small: {"image": one(bytes(MIB), 10_000), "label": np.arange(10_000) % 3}
    ),
    "labels that are written once": table(
        lambda small: {"image": one(small, 10_000), "label": one("a" * 100_000, 10_000)}
    ),
    "millions of rows": table(lambda small: {"image": one(small, 10_000_000), "label": one("a", 10_000_000)}),
}


@pytest.mark.parametrize("bomb", TABLES.values(), ids=TABLES.keys())
@pytest.mark.parametrize("way", ["data", "labels"])
def test_a_table_takes_little_memory(working: tuple[Path, int], bomb: Bomb, way: str) -> None:
    folder, usual = working
    bomb(folder)
    data = ("bomb.parquet",) if way == "data" else ("data", "--labels", "bomb.parquet")
    peak, status, said = peak_of(folder, "select", "model.safetensors", *data, "-n", "6", *NETWORK)
    assert status in (0, 1), said
    assert "Traceback" not in said
    assert peak - usual < LIMIT


TEXTS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "labels.csv": (b"path,label\n", (*SELECT, "--labels", "labels.csv")),
    "labels.json": (b'{"path": "', (*SELECT, "--labels", "labels.json")),
    "list.txt": (b"data/train/red/00.png", ("select", "model.safetensors", "list.txt", "-n", "9", *NETWORK)),
    "trusted.jsonl": (b'{"path": "', ("project", *SELECT[1:3], *NETWORK, "--trusted", "trusted.jsonl")),
    "map.csv": (b"folder,class\n", (*SELECT, "--class-map", "map.csv")),
    "map.json": (b'{"red": "', (*SELECT, "--class-map", "map.json")),
    "report.json": (b'{"title": "', ("report", "report.json")),
    "labels.npy": (b"\x93NUMPY\2\0" + struct.pack("<I", 900 * MIB), (*SELECT, "--labels", "labels.npy")),
}


def npy(shape: int) -> bytes:
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, {"descr": "|i1", "fortran_order": False, "shape": (shape,)})
    return start.getvalue()


@pytest.mark.parametrize("count", [100 * MIB, 900 * MIB])
@pytest.mark.parametrize("way", ["--labels", "--trusted"])
def test_an_array_without_content_takes_little_memory(working: tuple[Path, int], count: int, way: str) -> None:
    folder, usual = working
    hollow("array.npy", 128 + count, (0, npy(count)))(folder)
    command, count_of = (SELECT[:3], ("-n", "9")) if way == "--labels" else (("project", *SELECT[1:3]), ())
    peak, status, said = peak_of(folder, *command, *NETWORK, *count_of, way, "array.npy")
    assert status == 1, said
    assert "Traceback" not in said
    assert peak - usual < LIMIT


@pytest.mark.parametrize("size", [1000 * MIB, 3000 * MIB])
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_without_content_takes_little_memory(working: tuple[Path, int], name: str, size: int) -> None:
    folder, usual = working
    start, arguments = TEXTS[name]
    hollow(name, size, (0, start))(folder)
    peak, status, said = peak_of(folder, *arguments)
    assert status == 1, said
    assert [line.partition(":")[0] for line in said.splitlines()][-2:] == ["error", "hint"]
    assert peak - usual < LIMIT
