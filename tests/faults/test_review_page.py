"""The review page in a browser: decisions by keyboard, the file that it exports, and what the commands make of it.

It is skipped where there is no Chromium.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import chromium
from support.chromium import Page, opened_page
from support.small_project import Project, run_here

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="there is no Chromium")

MODEL = ("model.safetensors", "data", "--arch", "network.py:tiny")
# Of an untouched model that memorised its labels, which contradicts few of them; all images stand on the page.
EVERY = (*MODEL, "--all", "--review", "review.html", "-o", "list.jsonl")


@pytest.fixture
def folder(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small project as working folder."""
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("SAP_CACHE", str(project.folder / "cache"))
    return project.folder


def content(file: Path) -> dict[str, Any]:
    """What a page holds."""
    text = file.read_text()
    block = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    found: dict[str, Any] = json.loads(block)
    return found


def decided(items: list[dict[str, Any]], keys: list[str], classes: list[str]) -> list[dict[str, str]]:
    """The rows that keys mean, pressed on one image after the other."""
    rows = []
    for item, key in zip(items, keys, strict=False):
        label, decision = {
            "k": (classes[item["given"]], "keep"),
            "1": (classes[item["choices"][0]], "take"),
            "2": (classes[item["choices"][1]], "other"),
            "x": ("-1", "leave out"),
        }[key]
        rows.append({"path": item["path"], "label": label, "decision": decision})
    return rows


def forecast(items: list[dict[str, Any]], wrong: list[int]) -> float:
    """How many of the next hundred are wrong: the posterior mode of the docstring, found on a grid."""
    x = np.array([max(-5.0, min(5.0, math.log(max(i["chance"], 1e-9) / max(1 - i["chance"], 1e-9)))) for i in items])
    offsets, slopes = np.meshgrid(np.linspace(-6, 6, 601), np.linspace(-1, 3, 401), indexing="ij")
    logs = -0.5 * (offsets / 2) ** 2 - 0.5 * ((slopes - 1) / 0.5) ** 2  # twice as wide: the model memorised
    for value, is_wrong in zip(x, wrong, strict=False):
        linear = offsets + slopes * value
        logs += is_wrong * linear - np.logaddexp(0, linear)
    best = np.unravel_index(logs.argmax(), logs.shape)
    later = x[len(wrong) : len(wrong) + 100]
    return float((1 / (1 + np.exp(-(offsets[best] + slopes[best] * later)))).sum())


def test_ten_decisions_by_keyboard_come_back_through_the_commands(folder: Path, tmp_path: Path) -> None:
    assert run_here("suspects", *EVERY).status == 0
    page_content = content(folder / "review.html")
    items, classes = page_content["items"], page_content["classes"]
    assert len(items) == 120
    keys = ["k", "1", "x", "2", "1", "k", "x", "1", "2", "k"]
    with opened_page() as page:
        page.open(folder / "review.html")
        page.press("ArrowRight", *keys[:4])
        page.press("u", keys[3])  # undone, and decided again
        page.press(*keys[4:])
        assert page.evaluate("document.getElementById('count').textContent") == "10 of 120 decided"
        said = page.evaluate("document.getElementById('forecast').textContent")
        wrong = [0 if key == "k" else 1 for key in keys]
        assert f"about {round(forecast(items, wrong))} " in said, said
        exported = page.downloaded(tmp_path, "document.getElementById('export').click()", "decisions.csv")
        # The decisions are still there when the page is opened again, and come back from the file.
        page.open(folder / "review.html", width=400, dark=True)
        assert page.evaluate("document.getElementById('count').textContent") == "10 of 120 decided"
        page.evaluate("localStorage.clear()")
        page.open(folder / "review.html")
        assert page.evaluate("document.getElementById('count').textContent") == "0 of 120 decided"
        page.choose_file("#import", exported)
        assert page.evaluate("document.getElementById('count').textContent") == "10 of 120 decided"
        assert (page.messages, page.requests) == ([], [])
    with exported.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert rows == decided(items, keys, classes)

    again = run_here("suspects", *MODEL, "--labels", exported, "--all", "-o", "again.jsonl")
    assert again.status == 0, again.stderr
    labels = {line["path"]: line["given"] for line in map(json.loads, Path("again.jsonl").read_text().splitlines())}
    before = {item["path"]: classes[item["given"]] for item in items}
    left_out = {row["path"] for row in rows if row["label"] == "-1"}
    changed = {row["path"]: row["label"] for row in rows if row["label"] != "-1"}
    assert labels == {path: label for path, label in (before | changed).items() if path not in left_out}
    assert "2 images have the label -1" in again.stderr

    listed = run_here("suspects", *MODEL, "--labels", exported)
    assert "8 labels were decided by a person" in listed.stderr
    assert not {json.loads(line)["path"] for line in listed.stdout.splitlines()} & {row["path"] for row in rows}
    repaired = run_here("project", *MODEL, "-n", "30", "--labels", exported, "-o", "repaired.safetensors")
    assert repaired.status == 0, repaired.stderr
    assert "of 118 training images" in repaired.stderr


def test_a_page_shows_hostile_names_as_text_and_every_control_has_a_name(folder: Path, tmp_path: Path) -> None:
    names = ("</script><script>alert(1)</script>", "b&<img src=x onerror=alert(2)>", 'c"' + "'" + "`${alert(3)}")
    for number, old in enumerate(("blue", "green", "red")):
        # No slash can stand in a name.
        for split in ("train", "val"):
            Path("data", split, old).rename(Path("data", split, names[number].replace("/", "\u2215")))
    Path("map.json").write_text(json.dumps({name.replace("/", "\u2215"): n for n, name in enumerate(names)}))
    strange = sorted(Path("data/train").rglob("*.png"))[0]
    strange.rename(strange.with_name("javascript:alert(4),\n=1+1 \u202e.png"))
    outcome = run_here("suspects", *EVERY, "--class-map", "map.json")
    assert outcome.status == 0, outcome.stderr
    with opened_page() as page:
        for width, dark in ((400, False), (1400, True)):
            page.open(folder / "review.html", width=width, dark=dark)
            page.press("ArrowRight", "ArrowDown", "ArrowUp", "?")
            assert page.evaluate("document.getElementById('keys').open")
            page.evaluate("document.querySelector('#keys button').click()")
            assert not page.evaluate("document.getElementById('keys').open")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("document.scripts.length") == 2
            assert (page.messages, page.requests) == ([], [])
            # Names of all roles that a screen reader stops at, as Chromium computes them.
            unnamed = [
                node["role"]["value"]
                for node in page.send("Accessibility.getFullAXTree")["nodes"]
                if not node["ignored"]
                and node["role"]["value"] in ("button", "combobox", "link", "spinbutton", "article", "progressbar")
                and not node.get("name", {}).get("value")
            ]
            assert unnamed == []
        addresses = page.evaluate("[...document.querySelectorAll('a.picture')].map((a) => a.href)")
        assert addresses
        assert all(address.startswith((folder / "data").as_uri()) for address in addresses)
        page.press("k", "x", "1")
        exported = page.downloaded(tmp_path, "document.getElementById('export').click()", "decisions.csv")
    again = run_here("suspects", *MODEL, "--class-map", "map.json", "--labels", exported, "--all")
    assert again.status == 0, again.stderr
    assert len(again.stdout.splitlines()) == 119


def test_where_labels_come_from_a_file_the_export_repeats_it(folder: Path, tmp_path: Path) -> None:
    images = sorted(path for split in ("train", "val") for path in Path("data", split).rglob("*.png"))
    rows = [(path.relative_to("data").as_posix(), path.parent.name) for path in images]
    rows[5] = (rows[5][0], "-1")
    with Path("data/labels.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("path", "label"), *rows])
    assert run_here("suspects", *EVERY, "-n", "7", "--labels", "data/labels.csv").status == 0
    items = content(folder / "review.html")["items"]
    with opened_page() as page:
        page.open(folder / "review.html")
        page.press("ArrowRight", "1")
        exported = page.downloaded(tmp_path, "document.getElementById('export').click()", "decisions.csv")
    with exported.open(newline="") as handle:
        found = {row["path"]: row["label"] for row in csv.DictReader(handle)}
    classes = ("blue", "green", "red")
    assert found == dict(rows) | {items[0]["path"]: classes[items[0]["choices"][0]]}


def _types_nothing_away(page: Page) -> None:
    """Keys that are typed into a filter decide nothing."""
    page.evaluate("document.getElementById('least').focus()")
    page.press("1", "k", "x")


def test_keys_that_are_typed_into_a_filter_decide_nothing(folder: Path) -> None:
    assert run_here("suspects", *EVERY).status == 0
    with opened_page() as page:
        page.open(folder / "review.html")
        _types_nothing_away(page)
        assert page.evaluate("document.getElementById('count').textContent") == "0 of 120 decided"
