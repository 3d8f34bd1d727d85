"""One image file in, the model's pixels out: timm's transform to the bit, and every form of image that people have."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision.datasets import ImageFolder

import sapcli.datasets.decoding
from sapcli.datasets.decoding import Decoded, Decoder, Pixels, Scaling, Treatment
from sapcli.errors import UsageError
from sapcli.networks.preprocessing import Preprocessing
from sapcli.settings import Exif

PLAIN = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center", "the tests")
GREY = replace(PLAIN, input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))


def decoded(path: Path, preprocessing: Preprocessing = PLAIN) -> Pixels:
    (image,) = Decoder(path.parent, preprocessing)([path.name])
    assert not isinstance(image, str), image
    return image.pixels


def treatment(path: Path) -> Treatment:
    (image,) = Decoder(path.parent, PLAIN)([path.name])
    assert isinstance(image, Decoded)
    return image.treatment or Treatment()


def reason(path: Path, preprocessing: Preprocessing = PLAIN) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (text,) = Decoder(path.parent, preprocessing)([path.name])
    assert isinstance(text, str)
    assert text
    assert "\n" not in text
    return text


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def timm_pixels(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """What timm's transform makes of a picture but for the normalisation, uint8 `[3, H, W]`."""
    transform = create_transform(
        preprocessing.input_size,
        use_prefetcher=True,
        mean=preprocessing.mean,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )
    pixels: Pixels = np.asarray(transform(image))
    return pixels


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (9, 31), (50, 20), (3, 5)])
@pytest.mark.parametrize(
    "preprocessing",
    [
        PLAIN,
        replace(PLAIN, interpolation="bicubic", crop_pct=0.875),
        replace(PLAIN, interpolation="lanczos", crop_pct=0.9, crop_mode="squash"),
        replace(PLAIN, crop_mode="border", crop_pct=0.95, mean=(0.1, 0.5, 0.9)),
        replace(PLAIN, input_size=(3, 6, 12), interpolation="nearest", crop_pct=0.8),
        replace(PLAIN, input_size=(3, 12, 6), crop_mode="border"),
        GREY,
        replace(GREY, crop_mode="border", crop_pct=0.95),
    ],
)
def test_pixels_are_timms(tmp_path: Path, size: tuple[int, int], preprocessing: Preprocessing) -> None:
    image = noise(*size)
    image.save(tmp_path / "a.png")
    transform = create_transform(
        preprocessing.input_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )
    pixels = decoded(tmp_path / "a.png", preprocessing)
    assert pixels.dtype == np.uint8
    assert pixels.shape == preprocessing.input_size
    reference = transform(image.convert("L" if preprocessing.input_size[0] == 1 else "RGB")).numpy()
    mean, std = (np.array(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    np.testing.assert_allclose((pixels / 255 - mean) / std, reference, atol=1e-6)


def photograph(width: int, height: int) -> Image.Image:
    """Noise whose amplitude falls with the frequency, as in photographs, `[height, width, 3]`."""
    spectrum = np.fft.fft2(np.random.default_rng(0).standard_normal((3, height, width)))
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequencies[0, 0] = 1
    values = np.fft.ifft2(spectrum / frequencies).real
    values = (values - values.min()) / (values.max() - values.min()) * 255
    return Image.fromarray(values.transpose(1, 2, 0).astype(np.uint8))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("form", "orientation"), [("JPEG", 1), ("JPEG", 6), ("MPO", 1)])
def test_a_large_jpeg_is_read_in_a_smaller_size(tmp_path: Path, form: str, orientation: int, crop_mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph(1448, 1000).save(tmp_path / "a.jpg", form, quality=95, exif=exif)
    preprocessing = replace(
        PLAIN, input_size=(3, 48, 64), interpolation="bicubic", crop_mode=crop_mode, exif=Exif.APPLY
    )
    found = decoded(tmp_path / "a.jpg", preprocessing).astype(int)
    expected = timm_pixels(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")), preprocessing).astype(int)
    difference = np.abs(found - expected)
    assert 0 < difference.mean() < 0.5
    assert difference.max() <= 4


@pytest.mark.parametrize(
    ("size", "preprocessing"),
    [
        ((1000, 1000), replace(PLAIN, input_size=(3, 64, 64))),
        ((1401, 1001), replace(PLAIN, input_size=(3, 64, 64))),
        ((1400, 1000), replace(PLAIN, input_size=(3, 300, 300))),
        ((1400, 1000), replace(PLAIN, interpolation="nearest")),
    ],
)
def test_other_jpegs_are_read_as_they_are(tmp_path: Path, size: tuple[int, int], preprocessing: Preprocessing) -> None:
    photograph(*size).save(tmp_path / "a.jpg", quality=95)
    expected = timm_pixels(Image.open(tmp_path / "a.jpg"), preprocessing)
    np.testing.assert_array_equal(decoded(tmp_path / "a.jpg", preprocessing), expected)


@pytest.mark.parametrize(
    ("mode", "colour", "pixel"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("LA", (100, 50), (100, 100, 100)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("P", 0, (10, 20, 30)),
        ("I;16", 25700, (100, 100, 100)),
    ],
)
def test_modes(tmp_path: Path, mode: str, colour: object, pixel: tuple[int, int, int]) -> None:
    image = Image.new(mode, (8, 8), colour)  # type: ignore[arg-type]
    if mode == "P":
        image.putpalette([10, 20, 30])
    image.save(tmp_path / "a.png")
    assert tuple(decoded(tmp_path / "a.png")[:, 3, 3]) == pixel


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = decoded(tmp_path / "a.jpg")[:, 3, 3].astype(int)
    assert red < 20
    assert min(green, blue) > 235


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(decoded(tmp_path / f"a{suffix}", GREY)[0], np.round(values / 257))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_eight_bits_stored_in_more_are_what_the_usual_loader_sees(tmp_path: Path, suffix: str, dtype: type) -> None:
    if suffix != ".tif" and dtype is np.int32:
        pytest.skip("the format has no 32 bits")
    values = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(dtype)
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat" / f"a{suffix}"
    Image.fromarray(values).save(path)
    ((theirs, _label),) = ImageFolder(str(tmp_path))
    np.testing.assert_array_equal(decoded(path), np.asarray(theirs).transpose(2, 0, 1))
    assert treatment(path) == Treatment(Scaling.AS_THEY_ARE, float(values.max()))


@pytest.mark.parametrize(
    ("lowest", "highest", "scaling"),
    [
        (0.0, 1.0, Scaling.UNIT),
        (0.25, 0.5, Scaling.UNIT),
        (0.0, 255.0, Scaling.AS_THEY_ARE),
        (0.0, 60000.0, Scaling.SIXTEEN_BITS),
        (-1.0, 1.0, Scaling.OWN_RANGE),
        (-3e30, 3e30, Scaling.OWN_RANGE),
        (0.0, 1e5, Scaling.OWN_RANGE),
    ],
)
def test_floats_are_scaled_by_their_range(tmp_path: Path, lowest: float, highest: float, scaling: Scaling) -> None:
    values = np.linspace(lowest, highest, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.tif")
    exact = values.astype(np.float64)
    expected = {
        Scaling.UNIT: exact * 255,
        Scaling.AS_THEY_ARE: exact,
        Scaling.SIXTEEN_BITS: exact / 257,
        Scaling.OWN_RANGE: (exact - exact.min()) / (exact.max() - exact.min()) * 255,
    }[scaling]
    np.testing.assert_allclose(decoded(tmp_path / "a.tif", GREY)[0], expected, atol=0.5 + 1e-6)
    assert treatment(tmp_path / "a.tif").scaling is scaling


@pytest.mark.parametrize("values", [[-1000, 3000], [0, 65536], [-(2**31), 2**31 - 1]])
def test_integers_beyond_16_bits_take_their_own_range(tmp_path: Path, values: list[int]) -> None:
    Image.fromarray(np.repeat(np.array([values], np.int32), 2, axis=0)).resize((8, 8), 0).save(tmp_path / "a.tif")
    found = decoded(tmp_path / "a.tif", GREY)[0]
    assert (found[:, :4] == 0).all()
    assert (found[:, 4:] == 255).all()
    assert treatment(tmp_path / "a.tif") == Treatment(Scaling.OWN_RANGE, float(values[1]))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers_are_unreadable(tmp_path: Path, number: float) -> None:
    values = np.zeros((8, 8), np.float32)
    values[3, 4] = number
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert "NaN or an infinity" in reason(tmp_path / "a.tif")


def test_a_black_image_tells_nothing_of_how_the_others_are_meant(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "a.png")
    assert not decoded(tmp_path / "a.png").any()
    assert treatment(tmp_path / "a.png") == Treatment()


@pytest.mark.parametrize(
    ("mode", "form"), [("I;16", "png"), ("F", "tif"), ("I", "tif"), ("RGBA", "png"), ("P", "gif"), ("L", "jpg")]
)
def test_strips_make_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, form: str) -> None:
    picture = photograph(96, 64)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode != "RGB":
        picture = picture.convert(mode)
    picture.save(tmp_path / f"a.{form}")
    preprocessing = replace(PLAIN, input_size=(3, 8, 10), exif=Exif.APPLY)
    whole = decoded(tmp_path / f"a.{form}", preprocessing).astype(int)
    monkeypatch.setattr(sapcli.datasets.decoding, "_NO_COPY", 1)
    monkeypatch.setattr(sapcli.datasets.decoding, "_STRIP", 96 * 7)
    in_strips = decoded(tmp_path / f"a.{form}", preprocessing).astype(int)
    difference = np.abs(in_strips - whole)
    assert 0 < difference.max() <= 16
    assert difference.mean() < 3
    # Where nothing can be left out, the strips are the picture.
    monkeypatch.setattr(sapcli.datasets.decoding, "_TIMES_THE_SIZE", 100)
    np.testing.assert_array_equal(decoded(tmp_path / f"a.{form}", preprocessing), whole)


def test_channels_of_the_model(tmp_path: Path) -> None:
    noise(8, 8, 4).save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png", GREY).shape == (1, 8, 8)
    four = replace(PLAIN, input_size=(4, 8, 8), mean=(0.5,) * 4, std=(0.5,) * 4)
    np.testing.assert_array_equal(decoded(tmp_path / "a.png", four), np.asarray(noise(8, 8, 4)).transpose(2, 0, 1))
    with pytest.raises(UsageError, match=r"5 channels \(from the tests\)"):
        Decoder(tmp_path, replace(PLAIN, input_size=(5, 8, 8)))


ORIENTATIONS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_exif_rotation_is_undone_where_asked_for(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright, stored = noise(8, 8), ORIENTATIONS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    (upright if stored is None else upright.transpose(stored)).save(path, exif=exif, **options)
    found = decoded(path, replace(PLAIN, exif=Exif.APPLY))
    np.testing.assert_array_equal(found, np.asarray(upright).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_exif_rotation_is_otherwise_what_the_usual_loader_makes_of_it(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat" / f"a{suffix}"
    noise(8, 8).save(path, exif=exif)
    ((theirs, _label),) = ImageFolder(str(tmp_path))
    np.testing.assert_array_equal(decoded(path), np.asarray(theirs).transpose(2, 0, 1))
    # Pillow itself turns TIFF files.
    assert treatment(path).oriented == (orientation != 1 and suffix != ".tif")


def test_damaged_exif_data_is_no_reason_to_leave_an_image_out(tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")).transpose(2, 0, 1)
    for exif in Exif:
        np.testing.assert_array_equal(decoded(tmp_path / "a.jpg", replace(PLAIN, exif=exif)), expected)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), (level, level, level)) for level in (0, 128, 255)]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
    assert not decoded(tmp_path / f"a{suffix}").any()


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(decoded(tmp_path / "a.jpg"), np.asarray(noise(8, 8)).transpose(2, 0, 1))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_decompression_bombs_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of_size(60000, 60000))
    assert "exceeds limit" in reason(tmp_path / "bomb.png")
    (tmp_path / "sliver.png").write_bytes(png_of_size(1, 80_000_000))
    assert "too narrow" in reason(tmp_path / "sliver.png")


def test_damaged_files_are_unreadable(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "JPEG")
    contents = {
        "empty.png": b"",
        "text.png": b"hello",
        "truncated.jpg": buffer.getvalue()[:600],
        "postscript.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert reason(tmp_path / name)
    assert reason(tmp_path / "missing.png") == "No such file or directory"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO", "PCX"]),
    position=st.floats(0, 1),
    garbage=st.binary(min_size=1, max_size=16),
    cut=st.booleans(),
)
def test_damage_anywhere_gives_pixels_or_a_reason(
    tmp_path: Path, kind: str, position: float, garbage: bytes, cut: bool
) -> None:
    buffer = io.BytesIO()
    noise(16, 16).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    start = int(position * len(content))
    content[start : start + len(garbage)] = garbage
    path = tmp_path / "a.png"
    path.write_bytes(content[: start + len(garbage)] if cut else content)
    (result,) = Decoder(tmp_path, PLAIN)(["a.png"])
    assert (result.pixels.shape == (3, 8, 8)) if isinstance(result, Decoded) else result
