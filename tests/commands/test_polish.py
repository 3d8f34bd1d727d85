"""Tests of `sap polish`: what it writes, what it leaves, what it refuses, and that it goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.small_project import Outcome, Project, network, run_here

import sapcli
from sapcli.machine.cache import Cache
from sapcli.machine.progress import SilentProgress
from sapcli.polishing.training import Training
from sapcli.settings import PolishSettings

OPTIONS = ("--arch", "network.py:tiny", "--cache-dir", "cache", "--epochs", "2")
POLISHED = Path("model.polished.safetensors")


def polish(*options: str | Path) -> Outcome:
    return run_here("polish", "model.safetensors", "data", *OPTIONS, *options)


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        found = opened.metadata()
    assert isinstance(found, dict)
    return found


def changed_in(file: Path) -> set[str]:
    before, after = load_file("model.safetensors"), load_file(file)
    assert [*before] == [*after]
    assert all(before[name].dtype == after[name].dtype for name in before)
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_polished_file_says_how_it_was_made_and_is_verified(project: Project) -> None:
    outcome = polish("--summary", "summary.md", "--epochs", "6")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.decode() == f"{POLISHED}\n"
    metadata = metadata_of(POLISHED)
    assert metadata["sap.polish.result"] == "polished"
    assert metadata["sap.polish.epochs"] == "6"
    assert metadata["sap.polish.start"] == "repaired"
    assert float(metadata["sap.alpha"]) > 0
    assert json.loads(metadata["sap.gain"])["points"] > 0
    assert set(json.loads(metadata["sap.polish.changed"])) == changed_in(POLISHED)
    assert "1.num_batches_tracked" not in changed_in(POLISHED)
    assert "sap polish" in Path("summary.md").read_text()

    assert run_here("verify", POLISHED, "--input", "model.safetensors").status == 0
    assert run_here("verify", POLISHED, "--bases", "model.safetensors", "--input", "model.safetensors").status != 0
    # Without --arch: the file describes itself, but for the code, which only the user may ask for.
    listed = run_here("suspects", POLISHED, "data", "--arch", "network.py:tiny", "--cache-dir", "cache")
    assert listed.status == 0
    assert "not marked as repaired" not in listed.stderr

    tensors = load_file(POLISHED)
    tensors["4.bias"][0] += 1
    save_file(tensors, "other.safetensors", metadata)
    found = run_here("verify", "other.safetensors", "--input", "model.safetensors")
    assert found.status == 1
    assert b"NO   the weights have the hash" in found.stdout


def test_the_same_bytes_again_whether_cached_or_not(project: Project) -> None:
    assert polish().status == 0
    first = POLISHED.read_bytes()
    cached = polish("--force")
    assert "training goes on after epoch 2" in cached.stderr
    assert POLISHED.read_bytes() == first
    shutil.rmtree("cache")
    assert polish("--force", "--workers", "2").status == 0
    assert POLISHED.read_bytes() == first
    assert polish("--seed", "1", "-o", "other.safetensors").status == 0
    assert changed_in(POLISHED)
    assert not torch.equal(load_file("other.safetensors")["4.weight"], load_file(POLISHED)["4.weight"])


def test_a_run_that_ended_goes_on_after_its_last_epoch(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert polish("--epochs", "4").status == 0
    first = POLISHED.read_bytes()
    shutil.rmtree("cache")
    step, steps = Training._step, []

    def dying(self: Training, *arguments: object) -> torch.Tensor:
        steps.append(arguments)
        if len(steps) == 16:
            raise KeyboardInterrupt
        return step(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", dying)
        assert polish("--epochs", "4", "--force").status == 130
    outcome = polish("--epochs", "4", "--force")
    assert "training goes on after epoch 2" in outcome.stderr
    assert "choosing alpha" not in outcome.stderr
    assert POLISHED.read_bytes() == first
    Cache(Path("cache"), SilentProgress()).clear()
    assert not list(Path("cache").iterdir())


def test_what_is_frozen_stays_bit_for_bit(project: Project) -> None:
    assert polish("--head-only", "--no-repair").status == 0
    assert changed_in(POLISHED) <= {"4.weight", "4.bias"}
    frozen = Path("frozen.safetensors")
    assert polish("--freeze", "4", "--no-repair", "-o", frozen).status == 0
    assert not changed_in(frozen) & {"4.weight", "4.bias"}
    assert json.loads(metadata_of(frozen)["sap.polish.freeze"]) == ["4"]


def test_where_training_makes_it_worse_the_model_stays(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Training.run

    def ruin(self: Training, resumed: object = None) -> object:
        course = run(self, resumed)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in self._parameters.values():
                parameter.zero_()
        return course

    monkeypatch.setattr(Training, "run", ruin)
    outcome = polish("--no-repair")
    assert outcome.status == 0, outcome.stderr
    assert changed_in(POLISHED) == set()
    assert metadata_of(POLISHED)["sap.polish.result"] == "unchanged"
    assert metadata_of(POLISHED)["sap.repaired"] == "false"
    gated = polish("--no-repair", "--require-gain", "1", "-o", "gated.safetensors")
    assert gated.status == 3
    assert not Path("gated.safetensors").exists()
    # Without validation images, on those that were held out.
    shutil.rmtree("data/val")
    signs = Path("signs.safetensors")
    assert polish("--no-repair", "-o", signs).status == 0
    assert metadata_of(signs)["sap.polish.result"] == "unchanged"


def test_without_validation_images_some_are_held_out_and_that_is_said(project: Project) -> None:
    shutil.rmtree("data/val")
    outcome = polish()
    assert outcome.status == 0, outcome.stderr
    metadata = metadata_of(POLISHED)
    assert (metadata["sap.polish.held_out"], metadata["sap.polish.images"]) == ("6", "114")
    assert "sap.gain" not in metadata
    assert "the gain is not measured" in outcome.stderr
    refused = polish("--require-gain", "1", "--force")
    assert refused.status == 2
    assert "validation" in refused.stderr


def test_a_repaired_file_is_not_repaired_again(project: Project) -> None:
    arguments = ("model.safetensors", "data", *OPTIONS[:4], "-n", "30")
    assert run_here("project", *arguments).status == 0
    outcome = run_here("polish", "model.sap.safetensors", "data", *OPTIONS, "-o", POLISHED)
    assert outcome.status == 0, outcome.stderr
    assert "was repaired before" in outcome.stderr
    assert metadata_of(POLISHED)["sap.polish.start"] == "given"


def test_training_images_that_are_validation_images_are_not_trained_on(project: Project) -> None:
    for image in sorted(Path("data/val/red").glob("*.png"))[:5]:
        shutil.copy(image, f"data/train/red/copy-{image.name}")
    outcome = polish()
    assert outcome.status == 0, outcome.stderr
    assert metadata_of(POLISHED)["sap.polish.images"] == "120"


def test_an_image_that_cannot_be_read_is_left_out(project: Project) -> None:
    Path("data/train/red/00.png").write_bytes(b"nothing")
    outcome = polish("--labels-as-given")
    assert outcome.status == 0, outcome.stderr
    assert metadata_of(POLISHED)["sap.polish.images"] == "119"
    assert "red/00.png is left out" in outcome.stderr


def test_the_time_that_it_may_take(project: Project) -> None:
    outcome = run_here("polish", "model.safetensors", "data", *OPTIONS[:4], "--max-time", "0.1")
    assert outcome.status == 0, outcome.stderr
    assert 1 <= int(metadata_of(POLISHED)["sap.polish.steps"]) <= 60 * 7


def test_half_precision_is_written_as_it_is_measured(project: Project) -> None:
    tensors = load_file("model.safetensors")
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(halves, "model.safetensors")
    outcome = polish()
    assert outcome.status == 0, outcome.stderr
    assert changed_in(POLISHED)
    assert run_here("verify", POLISHED, "--input", "model.safetensors").status == 0


def test_from_python(project: Project) -> None:
    polished = sapcli.polish(
        "model.safetensors",
        "data",
        settings=PolishSettings(epochs=2),
        arch="network.py:tiny",
        cache_dir="cache",
    )
    assert polished.outcome.changed
    polished.save("python.safetensors")
    assert polish().status == 0
    assert Path("python.safetensors").read_bytes() == POLISHED.read_bytes()
    module = network().eval()
    module.load_state_dict(load_file("python.safetensors"))
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(polished.module(images), module(images))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--freeze", "body"), "--freeze body matches no parameter"),
        (("--freeze", "*"), "no parameter is left to train"),
        (("--epochs", "0"), "--epochs"),
        (("--max-time", "nan"), "--max-time"),
        (("-o", "model.safetensors", "--force"), "never overwritten"),
        (("--augment", "magic"), "--augment"),
    ],
)
def test_what_makes_no_sense_is_refused(project: Project, options: tuple[str, ...], said: str) -> None:
    before = Path("model.safetensors").read_bytes()
    outcome = polish(*options)
    assert outcome.status in (1, 2)
    assert said in outcome.stderr
    assert not POLISHED.exists()
    assert Path("model.safetensors").read_bytes() == before


def test_the_report_of_a_polish(project: Project) -> None:
    shutil.copytree("data/val", "data/test")
    outcome = polish("--report", "polish.html", "--report", "polish.json", "--report", "polish.md")
    assert outcome.status == 0, outcome.stderr
    document = json.loads(Path("polish.json").read_text())
    assert document["format"] == "sap.polish/1"
    assert document["changed"]
    assert len(document["epochs"]) == 2
    assert document["measurement"]["noisy"] is False
    tested = json.loads(run_here("eval", POLISHED, "data", *OPTIONS[:4], "--format", "json").stdout)
    assert document["measurement"]["after"]["top1"] == pytest.approx(tested["top1"])
    page, text = Path("polish.html").read_text(), Path("polish.md").read_text()
    assert "learning rate at its end" in page
    assert page.count("<svg") >= 2
    assert text.startswith("## Polish of model.safetensors")
    for form, expected in (("md", text), ("html", page)):
        again = run_here("report", "polish.json", "--format", form)
        assert again.status == 0, again.stderr
        assert again.stdout.decode() == expected
    # What was written is what was measured, also after the report had the given model in the network.
    assert run_here("verify", POLISHED, "--input", "model.safetensors").status == 0
