"""Tests of whole networks: a sample of the benchmark over the families of timm, with its checks."""

from __future__ import annotations

import pytest

from benchmarks.architectures import Result, kinds_of, measure, smallest_of_families, totals

SAMPLE = (
    "byobnet",
    "convit",
    "convnext",
    "cspnet",
    "dla",
    "efficientnet",
    "efficientvit_mit",
    "fasternet",
    "ghostnet",
    "hgnet",
    "inception_next",
    "mlp_mixer",
    "mobilenetv3",
    "mobilevit",
    "nfnet",
    "pvt_v2",
    "regnet",
    "repghost",
    "resnest",
    "resnet",
    "shvit",
    "sknet",
    "starnet",
    "swiftformer",
    "vision_transformer",
)
# What a network may have beside its weights, and what timm's NF-Nets make of theirs.
OTHERS = ("in no matrix product or convolution", "transformed before it multiplies activations")


@pytest.mark.parametrize("family", SAMPLE)
def test_the_smallest_network_of_a_family(family: str) -> None:
    result = measure(smallest_of_families()[family])
    assert result.problem is None
    assert result.missed == []
    assert result.change > result.kept_error
    assert all(reason.startswith(OTHERS) for reason in result.others or {})
    if family != "nfnet":
        assert result.projected > 0
        assert result.transformed == []


def test_the_sample_is_a_quarter_of_all_families() -> None:
    assert len(SAMPLE) == 25
    assert len(smallest_of_families()) >= 90


def test_results_are_added_up() -> None:
    results = [Result("a", projected=5, missed=["x"]), Result("b", projected=2, transformed=["y", "z"])]
    assert totals(results) == (7, 1, 2)


def test_names_are_told_without_their_numbers() -> None:
    assert kinds_of(["blocks.0.gamma", "blocks.1.gamma", "pos_embed"]) == ["blocks.*.gamma", "pos_embed"]
