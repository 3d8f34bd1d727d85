"""The Python interface: what its documentation shows, as it shows it."""

from __future__ import annotations

import doctest
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import timm
import torch
from safetensors.torch import load_file
from support.digits import Trained
from torchvision.datasets import ImageFolder

import sapcli
from sapcli import api, repair


def test_the_examples_of_the_documentation_run(noisy: Trained, tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", num_classes=10)
    net.load_state_dict(load_file(noisy.checkpoint))
    dataset = [(image.resize((32, 32)), label) for image, label in ImageFolder(noisy.data / "train")]
    # The size that the images have, instead of what the library publishes.
    net.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    names = {"checkpoint": noisy.checkpoint, "data": noisy.data, "folder": tmp_path, "torch": torch}
    names |= {"net": net, "dataset": dataset}
    results = doctest.testmod(api, extraglobs=names)
    assert results.attempted > 8
    assert results.failed == 0


def test_what_is_saved_is_the_network_that_was_measured(noisy: Trained, tmp_path: Path) -> None:
    repaired = repair(noisy.checkpoint, noisy.data, trusted_count=60, alpha=3000)
    saved = load_file(repaired.save(tmp_path / "repaired.safetensors"))
    state = repaired.module.state_dict()
    assert saved.keys() == load_file(noisy.checkpoint).keys()
    assert all(torch.equal(saved[name], state[name]) for name in saved)


def test_a_notebook_shows_a_small_report(noisy: Trained, tmp_path: Path) -> None:
    checkpoint = shutil.copy(noisy.checkpoint, tmp_path / "<b>model.safetensors")
    shutil.copy(noisy.checkpoint.with_name("config.json"), tmp_path)
    repaired = repair(checkpoint, noisy.data, trusted_count=60, alpha=3000)
    html = repaired._repr_html_()
    tree = ElementTree.fromstring(html)
    rows = {row[0].text: row[1].text for row in tree.iter("tr")}
    assert rows["alpha"] == "3000, as given"
    assert rows["trusted"] == "60 samples"
    assert repaired.outcome.before is not None
    assert rows["before"] == f"{repaired.outcome.before.top1:.2f}% of the validation labels"
    assert [point.text for point in tree.iter("li")] == list(repaired.outcome.weak_points)
    assert "&lt;b&gt;model.safetensors" in html


def test_the_package_imports_without_torch() -> None:
    program = "import sys, sapcli; print('torch' in sys.modules, 'repair' in dir(sapcli))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == ["False", "True"]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    import sapcli

    with pytest.raises(AttributeError, match="'rapair'"):
        _ = sapcli.rapair  # type: ignore[attr-defined]


def test_no_wing_hides_a_name_of_the_interface() -> None:
    # Importing a folder of the package binds its name in the package, in the place of a function called alike.
    wings = {module.name for module in pkgutil.iter_modules(sapcli.__path__)}
    assert not wings & {name for name in sapcli.__all__ if not name.startswith("_")}


def test_a_misspelt_option_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'bach_size'.*batch_size"):
        repair(tmp_path / "none.safetensors", tmp_path, bach_size=3)  # type: ignore[call-arg]
