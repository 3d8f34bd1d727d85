"""Images that are made to run programs, to take memory, or to be waited for."""

from __future__ import annotations

import base64
import io
import os
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile
from support.data_folders import opened, write_classes
from support.memory import peak_of

from sapcli.datasets.decoding import Decoder, longest_side
from sapcli.datasets.image_files import image_formats, image_suffixes
from sapcli.datasets.thumbnails import thumbnail
from sapcli.networks.preprocessing import Preprocessing

PLAIN = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center", "the tests")

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(any PostScript)\n%%EOF\n"


def result(path: Path) -> object:
    (found,) = Decoder(path.parent, PLAIN)([path.name])
    return found


def png(width: int = 8, height: int = 8) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, "PNG")
    return content.getvalue()


# Nothing is run, and nothing inside of an image is opened by another reader


def iptc(inside: bytes) -> bytes:
    def field(record: int, dataset: int, value: bytes) -> bytes:
        return bytes([0x1C, record, dataset]) + struct.pack(">H", len(value)) + value

    head = field(3, 60, b"\1\0") + field(3, 20, b"\0\0\0\x08") + field(3, 30, b"\0\0\0\x08")
    return head + field(3, 120, b"\0\0\0\5") + field(8, 10, inside)


def ico(inside: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 8, 8, 0, 0, 1, 32, len(inside), 22) + inside


def icns(inside: bytes) -> bytes:
    return b"icns" + struct.pack(">I", 16 + len(inside)) + b"ic07" + struct.pack(">I", 8 + len(inside)) + inside


@pytest.mark.parametrize(
    "content",
    [iptc(EPS), iptc(png()), EPS, ico(png()), icns(png()), b"\xd7\xcd\xc6\x9a" + bytes(40), b"GRIB" + bytes(40)],
    ids=["EPS in IPTC", "PNG in IPTC", "EPS", "PNG in ICO", "PNG in ICNS", "WMF", "GRIB"],
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_what_other_programs_or_readers_would_open_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, name: str
) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho called >> {tmp_path}/called\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / name
    path.write_bytes(content)
    assert isinstance(result(path), str)
    assert thumbnail(path) is None
    assert longest_side(path) is None
    assert not (tmp_path / "called").exists()


def test_only_formats_that_were_looked_at_are_opened() -> None:
    assert set(image_formats()).isdisjoint(
        {"EPS", "IPTC", "ICO", "ICNS", "WMF", "FITS", "MPEG", "HDF5", "GRIB", "BUFR"}
    )
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm"} <= set(image_suffixes())
    assert {".eps", ".ps", ".pdf", ".iim", ".ico"}.isdisjoint(image_suffixes())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA", "SGI", "PCX", "DIB"])
def test_no_program_is_started_for_any_format(tmp_path: Path, form: str) -> None:
    started: list[str] = []

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn") and watched:
            started.append(str(arguments))

    watched = True
    sys.addaudithook(audit)
    path = tmp_path / "a.png"
    Image.effect_noise((8, 8), 50).convert("P" if form == "GIF" else "RGB").save(path, form)
    assert not isinstance(result(path), str)
    watched = False
    assert started == []


# Nothing is waited for


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_takes_an_images_place_after_the_listing_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    dataset = opened(write_classes(tmp_path))
    path = tmp_path / dataset.paths[0]
    path.unlink()
    {"pipe": os.mkfifo, "device": lambda place: place.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    reason = result(path)
    assert isinstance(reason, str)
    assert reason == "not a regular file"
    assert thumbnail(path) is None
    assert longest_side(path) is None
    assert len(opened(tmp_path).fingerprint) == len(dataset.fingerprint) == 64


# Nothing takes more memory than is allowed

DECODED = """
from pathlib import Path
from PIL import Image, ImageFile
from sapcli.datasets.decoding import Decoder
from sapcli.networks.preprocessing import Preprocessing
Image.init()
decoder = Decoder(Path({folder!r}), Preprocessing((3, 224, 224), (.5,) * 3, (.5,) * 3, "bicubic", .9, "center", "t"))
decoder._transform
start()
(found,) = decoder([{name!r}])
print(found if isinstance(found, str) else found.pixels.max())
"""


def peak(path: Path) -> float:
    return peak_of(DECODED.format(folder=str(path.parent), name=path.name))


def png_of(width: int, height: int, depth: int, colour: int, filler: int) -> bytes:
    """A PNG of one value throughout, made without making the picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = b"\0" + bytes([filler]) * (width * channels * depth // 8)
    compressor = zlib.compressobj(1)
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "bytes_per_pixel"),
    [((7000, 7000, 16, 0, 9), 4), ((5000, 5000, 8, 6, 9), 6), ((7000, 7000, 8, 0, 9), 4)],
    ids=["16 bits", "with alpha", "grey"],
)
def test_the_peak_of_large_pictures(tmp_path: Path, content: tuple[int, ...], bytes_per_pixel: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of(*content))
    assert peak(path) < bytes_per_pixel * content[0] * content[1] / 1e6 + 15


def tiled_tiff(side: int) -> bytes:
    """A TIFF of 8 by 8 pixels in a tile of `side` by `side`, deflated."""
    data = zlib.compress(bytes(1 << 20))
    tags = [
        *((256, 3, 8), (257, 3, 8), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)),
        *((322, 4, side), (323, 4, side), (324, 4, 8), (325, 4, len(data))),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def png_that_says(width: int, height: int, colour: int) -> bytes:
    """A PNG that says it is so large, and holds next to nothing."""
    content = bytearray(png_of(8, 8, 8, colour, 9))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def progressive_jpeg_that_says(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", progressive=True)
    content = bytearray(buffer.getvalue())
    start = content.index(b"\xff\xc2") + 5
    content[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def bitmap_that_says(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "BMP")
    content = bytearray(buffer.getvalue())
    content[18:26] = struct.pack("<II", width, height)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        png_that_says(12000, 12000, 6),
        png_that_says(12000, 12000, 2),
        png_that_says(14000, 14000, 0),
        progressive_jpeg_that_says(9000, 9000),
        bitmap_that_says(12000, 12000),
        tiled_tiff(40000),
    ],
    ids=["PNG with alpha", "PNG", "grey PNG", "progressive JPEG", "BMP", "tile of TIFF"],
)
@pytest.mark.parametrize("pillows_own", [Image.MAX_IMAGE_PIXELS, None])
def test_what_would_take_too_much_is_refused_before_it_is_decoded(
    tmp_path: Path, content: bytes, pillows_own: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A user's own code may have set Pillow's bound to none.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_own)
    (tmp_path / "a.png").write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
        found = result(tmp_path / "a.png")
    assert "exceeds limit" in str(found)


def test_the_peak_of_a_tile_that_is_larger_than_its_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(tiled_tiff(40000))
    assert peak(tmp_path / "a.png") < 30


def test_thumbnails_are_upright_and_small(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (400, 200), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 200, 200))
    picture.save(tmp_path / "a.jpg", exif=exif)
    address = thumbnail(tmp_path / "a.jpg")
    assert address is not None
    small = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert small.size == (48, 96)
    red, _green, blue = small.getpixel((24, 10))  # type: ignore[misc]
    assert blue > red
