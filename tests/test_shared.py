"""A repair of a real network on real images, where the shared checkpoint and data lie beside the project."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from support.small_project import run_here

SHARED = Path(__file__).parents[2] / "shared"
CHECKPOINT = SHARED / "checkpoints" / "cifar10_resnet18_half_noisy25.safetensors"
ARCHITECTURE = SHARED / "checkpoints" / "cifar_resnet.py"
IMAGES = SHARED / "data" / "cifar10_noisy.tar.xz"
EVERY = 20

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT.exists() and IMAGES.exists()), reason="the shared checkpoint and data are not beside the project"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every twentieth image of every class of every split: 1,000 to learn from, 250 to choose on, 500 to judge on."""
    folder = tmp_path_factory.mktemp("shared")
    seen: dict[str, int] = {}
    with tarfile.open(IMAGES) as archive:
        for member in archive:
            if not member.isfile():
                continue
            of_class = member.name.rpartition("/")[0]
            seen[of_class] = seen.get(of_class, 0) + 1
            if seen[of_class] % EVERY == 0:
                archive.extract(member, folder, filter="data")
    return folder / "cifar10_noisy"


def test_a_network_that_memorised_wrong_labels_gets_better(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "repaired.safetensors"
    architecture = ("--arch", f"{ARCHITECTURE}:resnet18_half")
    ended = run_here("project", CHECKPOINT, data, *architecture, "-n", "300", "--alpha", "3000", "-o", output)
    assert ended.status == 0, ended.stderr
    ended = run_here("eval", output, data, *architecture, "--baseline", CHECKPOINT)
    assert ended.status == 0, ended.stderr
    document = json.loads(ended.stdout)
    # On all 10,000 test images it is 59.65; the standard error of 500 is 2.2.
    assert document["baseline"]["top1"] == pytest.approx(59.65, abs=6.6)
    assert document["gain"] > 3
