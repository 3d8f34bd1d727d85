"""Models' folders that are written again, with what lies beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.checkpoints.folder_saving import left_out, write_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with another folder in it."""
    place = tmp_path / "model"
    (place / "more").mkdir(parents=True)
    config = {"model_type": "resnet", "architectures": ["ResNetForImageClassification"], "transformers_version": "4.56"}
    (place / "config.json").write_text(json.dumps(config))
    (place / "more" / "words.txt").write_text("red\n")
    save_file({"a": torch.zeros(2)}, place / "model.safetensors")
    return place


@pytest.mark.parametrize(
    "links", [{"around": "."}, {"up": ".."}, {"more/back": ".."}, {"more/self": ".", "more/x": "."}]
)
def test_links_that_lead_back_are_not_followed(folder: Path, links: dict[str, str]) -> None:
    for name, target in links.items():
        (folder / name).symlink_to(target)
    checkpoint = open_checkpoint(str(folder))
    output = folder.parent / "out"
    write_model(checkpoint, output, {"a": torch.ones(2)}, {})
    found = {str(path.relative_to(output)) for path in output.rglob("*")}
    assert found == {"config.json", "model.safetensors", "more", "more/words.txt"}
    assert load_file(output / "model.safetensors")["a"].tolist() == [1.0, 1.0]
    assert set(left_out(checkpoint)) == {name for name in links if "/" not in name}


def test_other_links_are_copied_as_what_they_lead_to(folder: Path) -> None:
    (folder.parent / "blob").write_text("blue\n")
    (folder / "words.txt").symlink_to("../blob")
    (folder / "again").symlink_to("more")
    write_model(open_checkpoint(str(folder)), folder.parent / "out", {}, {})
    for name in ("words.txt", "again/words.txt", "more/words.txt"):
        copied = folder.parent / "out" / name
        assert not copied.is_symlink()
        assert copied.read_text() == (folder / name).read_text()
