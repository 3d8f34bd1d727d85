"""Figures: SVG in the page's colours, the same each time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from support.reports import HOSTILE, hostile_report

from sapcli.reports import figures

REPORT = hostile_report()


def _drawings() -> dict[str, str]:
    measurement = REPORT.measurement
    assert measurement is not None
    return {
        "alpha": figures.alpha_figure(REPORT.search),
        "classes": figures.class_figure(measurement.classes),
        "confusion": figures.confusion_figure(measurement.confusion, measurement.confusion.before, "before"),
        "losses": figures.loss_figure(REPORT.losses),
    }


@pytest.mark.parametrize("name", ["alpha", "classes", "confusion", "losses"])
def test_a_figure_is_well_formed_and_takes_its_colours_from_the_page(name: str) -> None:
    svg = _drawings()[name]
    ET.fromstring(svg)
    assert "var(--" in svg
    assert not re.search(r"#0[1-7]0[1-7]0[1-7]\b", svg)


def test_figures_are_the_same_each_time() -> None:
    assert _drawings() == _drawings()


def test_names_stand_in_a_figure_as_they_are() -> None:
    text = "".join(ET.fromstring(_drawings()["classes"]).itertext())
    assert "cat|dog" in text
    assert HOSTILE[:15] in text
