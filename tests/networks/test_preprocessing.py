"""Tests of the preprocessing and where it comes from."""

from __future__ import annotations

import math

import pytest
import torchvision

from sapcli.errors import ArchitectureError, SapError, UsageError
from sapcli.networks.factories import find_factory
from sapcli.networks.preprocessing import Settings, resolve_preprocessing
from sapcli.settings import PreprocessingOverrides

CONFIG = Settings("config.json", {"input_size": [3, 32, 32], "mean": 0.5, "std": None})
NETWORK = Settings(
    "the network",
    {"input_size": (3, 64, 64), "mean": (0, 0, 0), "std": (1, 1, 1), "crop_pct": 0.9, "interpolation": "bilinear"},
)


def test_each_setting_comes_from_the_first_source_that_has_it() -> None:
    overrides = PreprocessingOverrides(crop_pct=0.8)
    preprocessing = resolve_preprocessing("net", [CONFIG, NETWORK], overrides)
    assert (preprocessing.input_size, preprocessing.mean) == ((3, 32, 32), (0.5, 0.5, 0.5))
    assert (preprocessing.std, preprocessing.interpolation) == ((1.0, 1.0, 1.0), "bilinear")
    assert (preprocessing.crop_pct, preprocessing.crop_mode) == (0.8, "center")
    assert preprocessing.source == "config.json, the network, --crop-pct, the default crop_mode"
    assert str(preprocessing) == "3x32x32, bilinear, crop 0.8, mean 0.5,0.5,0.5, std 1,1,1"


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (PreprocessingOverrides(), "--input-size, --mean, --std"),
        (PreprocessingOverrides(input_size=(3, 8, 8)), "--mean, --std"),
        (PreprocessingOverrides(mean=(0.5,), std=(0.5,), crop_pct=1.0), "--input-size"),
    ],
)
def test_what_nothing_tells_is_asked_for(overrides: PreprocessingOverrides, options: str) -> None:
    with pytest.raises(ArchitectureError) as raised:
        resolve_preprocessing("net", [], overrides)
    assert raised.value.hint.startswith(f"Give {options} ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_size", [3, 32]),
        ("input_size", [3, 60_000, 60_000]),
        ("input_size", [60_000, 20, 20]),
        ("crop_pct", 0.001),
        ("input_size", [3, 0, 32]),
        ("input_size", "3,32,32"),
        ("input_size", 32),
        ("mean", [0.5, 0.5]),
        ("mean", "0.5"),
        ("mean", [math.nan] * 3),
        ("std", 0.0),
        ("std", [1, 1, -1]),
        ("interpolation", "random"),
        ("interpolation", 3),
        ("crop_pct", 0),
        ("crop_pct", math.inf),
        ("crop_pct", 10**400),
        ("crop_mode", "corner"),
    ],
)
def test_values_that_make_no_sense_are_named(key: str, value: object) -> None:
    with pytest.raises(ArchitectureError, match=rf"{key} is .* \(from config.json\)"):
        resolve_preprocessing("net", [Settings("config.json", {key: value}), NETWORK], PreprocessingOverrides())


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_torchvision_resizes_to_the_same_pixels_as_its_published_weights(name: str) -> None:
    settings = find_factory(f"torchvision:{name}").settings()
    assert settings is not None
    preprocessing = resolve_preprocessing(name, [Settings("", settings)], PreprocessingOverrides())
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    assert preprocessing.input_size == (3, *transforms.crop_size * 2)
    assert math.floor(preprocessing.input_size[1] / preprocessing.crop_pct) == transforms.resize_size[0]


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize("source", ["option", "config.json"])
@pytest.mark.parametrize(
    "values",
    [
        {key: tuple(255 * value for value in numbers) for key, numbers in IMAGENET.items()},
        {"mean": (103.94, 116.78, 123.68), "std": (1.0, 1.0, 1.0)},
        {"mean": (0.5, 0.5, 0.5), "std": (127.5, 127.5, 127.5)},
        {"mean": (127.5,), "std": (0.5,)},
    ],
)
def test_mean_and_std_of_0_to_255(source: str, values: dict[str, tuple[float, ...]]) -> None:
    given = {"input_size": (3, 8, 8), **values}
    overrides = PreprocessingOverrides(**(given if source == "option" else {}))
    with pytest.raises(SapError, match=r"0 to 255.*\[0, 1\]") as caught:
        resolve_preprocessing("net", [Settings("config.json", given)], overrides)
    assert isinstance(caught.value, UsageError if source == "option" else ArchitectureError)
    # What the hint proposes are the right values: the same images look the same with them.
    words = caught.value.hint.rstrip(".").split()
    proposed = {
        key: tuple(float(value) for value in words[words.index(f"--{key}") + 1].split(",")) for key in ("mean", "std")
    }
    for key, numbers in values.items():
        for value, divided in zip(numbers * (3 // len(numbers)), proposed[key], strict=True):
            assert divided == pytest.approx(value / 255 if value >= 1 else value, rel=1e-4)


@pytest.mark.parametrize(("mean", "std"), [((0.0,), (1.0,)), ((1.0,), (0.5,)), ((0.0,), (1 / 255,)), ((0.5,), (0.5,))])
def test_mean_and_std_of_unit_range(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    found = resolve_preprocessing("net", [], PreprocessingOverrides(input_size=(3, 8, 8), mean=mean, std=std))
    assert (found.mean, found.std) == (mean * 3, std * 3)
