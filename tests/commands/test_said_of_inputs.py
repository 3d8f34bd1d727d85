"""What the commands say of inputs that may not be meant as they are given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.schemas import validated
from support.small_project import Project, run_here
from torch import nn

OWN = ("--arch", "network.py:tiny")


def test_a_class_map_that_overrides_the_files_names_says_so(project: Project) -> None:
    names = json.dumps(["blue", "green", "red"])
    save_file(load_file("model.safetensors"), "named.safetensors", {"label_names": names})
    Path("map.csv").write_text("folder,class\nred,green\ngreen,2\nblue,0\n")
    command = ("eval", "named.safetensors", "data", *OWN)
    said = run_here(*command, "--class-map", "map.csv").stderr
    assert (
        "warning: map.csv overrides the checkpoint's own names: 'red' is 'green' (output 1) and not output 2;" in said
    )
    assert "'green' is 'red' (output 2) and not output 1" in said
    Path("same.csv").write_text("folder,class\nred,red\ngreen,1\n")
    assert "overrides" not in run_here(*command, "--class-map", "same.csv").stderr
    unnamed = run_here("eval", "model.safetensors", "data", *OWN, "--class-map", "map.csv")
    assert "overrides" not in unnamed.stderr


def test_a_csv_as_data_is_called_by_its_name(project: Project) -> None:
    rows = [
        f"val/{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(Path("data/val").rglob("*.png"))
    ]
    Path("data/judged.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    ended = run_here("eval", "model.safetensors", "data/judged.csv", *OWN)
    assert ended.status == 0, ended.stderr
    assert "evaluating model.safetensors on data/judged.csv: 60 images" in ended.stderr
    whole = run_here("eval", "model.safetensors", "data", *OWN)
    assert "evaluating model.safetensors on data/val: 60 images" in whole.stderr


@pytest.mark.parametrize(
    ("size", "images", "turned"),
    [("16,24", (16, 24), True), ("24,16", (16, 24), False), ("16,24", (24, 16), False), ("16", (16, 24), False),
     ("16,24", (20, 20), False)],
)  # fmt: skip
def test_a_turned_input_size_is_noticed(project: Project, size: str, images: tuple[int, int], turned: bool) -> None:
    Path("pool.py").write_text(
        "from torch import nn\ndef pool(num_classes=3):\n"
        "    layers = [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)]\n"
        "    return nn.Sequential(*layers)\n"
    )
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    save_file(network.state_dict(), "pool.safetensors")
    for name in ("a", "b", "c"):
        (Path("wide") / name).mkdir(parents=True)
        Image.new("RGB", images).save(Path("wide") / name / "1.png")
    options = ("--arch", "pool.py:pool", "--input-size", size, "--mean", "0.5", "--std", "0.5")
    ended = run_here("eval", "pool.safetensors", "wide", *options)
    assert ended.status == 0, ended.stderr
    assert ("give --input-size 3,24,16" in ended.stderr) == turned


def test_an_inspection_needs_no_mean(project: Project) -> None:
    source = Path("network.py").read_text().replace("pretrained_cfg", "unused")
    Path("plain.py").write_text(source)
    options = ("--arch", "plain.py:tiny", "--input-size", "8", "--format")
    document = validated("inspect", run_here("inspect", "model.safetensors", *options, "json").stdout)
    assert document["preprocessing"]["mean"] is document["preprocessing"]["std"] is None
    assert [weight["projected"] for weight in document["weights"]] == [True, True]
    table = run_here("inspect", "model.safetensors", *options, "table").stdout.decode()
    assert "mean not known, std not known" in table
    known = run_here("inspect", "model.safetensors", *OWN, "--format", "json")
    assert validated("inspect", known.stdout)["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    ended = run_here("eval", "model.safetensors", "data", "--arch", "plain.py:tiny", "--input-size", "8")
    assert ended.status == 1
    assert "--mean, --std" in ended.stderr
