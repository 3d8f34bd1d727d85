"""torchvision without PyTorch's compiler: nobody notices but the clock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torchvision
from PIL import Image
from safetensors.torch import save_file


def run(program: str) -> list[str]:
    """What a Python program prints, a word a piece."""
    return subprocess.check_output([sys.executable, "-c", program], text=True).split()


@pytest.mark.parametrize("size", [32, 16])
def test_the_measurement_of_a_torchvision_network_needs_neither_compiler_nor_timm(tmp_path: Path, size: int) -> None:
    save_file(torchvision.models.resnet18(num_classes=2).state_dict(), tmp_path / "model.safetensors")
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (name == "cat" and "red") or "blue").save(tmp_path / "data" / name / "1.png")
    arguments = ("eval", "model.safetensors", "data", "--arch", "torchvision:resnet18", "--crop-pct", "1")
    program = f"""
import sys
import sapcli.commands.entry
status = sapcli.commands.entry.run({[*arguments, "--input-size", str(size), "--quiet"]!r})
loaded = ["torchvision", "torch._dynamo", "timm"]
print(*(name in sys.modules for name in loaded), status, file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    needs_timm = str(size != 32)  # images that are resized go through timm's transform
    assert ended.stderr.split() == ["True", needs_timm, needs_timm, "0"]


def test_the_compiler_is_there_for_whoever_wants_it() -> None:
    program = """
import sys, torch
from sapcli.networks.light_imports import without_compiler
with without_compiler():
    import torchvision
assert "torch._dynamo" not in sys.modules
roi_align = sys.modules["torchvision.ops.roi_align"]
print(roi_align.is_compile_supported("cpu"))
from torch._dynamo.utils import is_compile_supported
print(is_compile_supported("cpu"), torch._dynamo.__file__.endswith("__init__.py"))
boxes = torch.tensor([[0, 0.0, 0.0, 4.0, 4.0]])
pooled = torchvision.ops.roi_align(torch.ones(1, 2, 8, 8), boxes, (2, 2))
print(float(pooled.sum()), torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""
    first, second, is_real, pooled, compiled = run(program)
    assert first == second
    assert (is_real, float(pooled), float(compiled)) == ("True", 8.0, 2.0)


def test_other_names_are_the_compilers_own() -> None:
    program = """
import sys
from sapcli.networks.light_imports import without_compiler
with without_compiler():
    from torch._dynamo.utils import counters
    import torch
    print(type(counters).__name__, torch._dynamo.config is sys.modules["torch._dynamo.config"])
"""
    assert run(program) == ["defaultdict", "True"]
