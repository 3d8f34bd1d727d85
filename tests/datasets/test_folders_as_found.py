"""Tests of whole commands on folders whose classes are in another order, and whose images cannot all be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.command_line import run
from support.digits import Trained

COUNT = ("-n", "40")


def sap(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """The exit status, stdout and stderr of a command."""
    status = run([*map(str, arguments), "--workers", "0"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def with_classes_renamed(trained: Trained, folder: Path, names: dict[str, str]) -> tuple[Path, Path]:
    """A copy of the model and its data with other names for classes, the model's in the order of its outputs."""
    data = folder / "data"
    for source in sorted(trained.data.rglob("*.png")):
        split, label, name = source.relative_to(trained.data).parts
        target = data / split / names.get(label, label) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    model = folder / "model"
    model.mkdir()
    config = json.loads(trained.checkpoint.with_name("config.json").read_text())
    labels = [names.get(label, label) for label in config["label_names"]]
    (model / "config.json").write_text(json.dumps(config | {"label_names": labels}))
    return Path(shutil.copyfile(trained.checkpoint, model / "model.safetensors")), data


def test_the_order_of_the_folders_changes_nothing(
    noisy: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two classes whose folders swap places keep their outputs, since they are matched by name."""
    # In the order of their names, the renamed folders of the first two classes come last, the second before the first.
    model, data = with_classes_renamed(noisy, tmp_path, {"0": "zero", "1": "one"})
    found = {}
    for name, checkpoint, folder in (("plain", noisy.checkpoint, noisy.data), ("renamed", model, data)):
        output = tmp_path / f"{name}.safetensors"
        status, selected, error = sap(capsys, "select", checkpoint, folder, *COUNT)
        assert status == 0, error
        lines = [json.loads(line) for line in selected.splitlines()]
        status, _, error = sap(
            capsys, "project", checkpoint, folder, *COUNT, "--batchnorm", "keep", "--alpha", "1000", "-o", output
        )
        assert status == 0, error
        status, report, error = sap(capsys, "eval", output, folder, "--format", "json")
        assert status == 0, error
        found[name] = {(Path(line["path"]).name, line["label"]) for line in lines}, output, json.loads(report)
    originals, plain, before = found["plain"]
    renamed, output, after = found["renamed"]
    assert {(name, {"zero": "0", "one": "1"}.get(label, label)) for name, label in renamed} == originals
    first, second = load_file(plain), load_file(output)
    for name, tensor in first.items():
        # The samples come in another order, so sums differ in their last digits.
        assert float((tensor.double() - second[name].double()).norm()) <= 1e-4 * float(tensor.double().norm()), name
    assert after["top1"] == before["top1"]
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-4)
    assert after["classes"]["zero"]["images"] == before["classes"]["0"]["images"]


@pytest.mark.parametrize("command", ["select", "activations", "project", "eval"])
def test_a_class_that_the_model_does_not_know_is_named(
    noisy: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(noisy.data, data)
    for split in data.iterdir():
        (split / "9").rename(split / "platypus")
    status, output, error = sap(capsys, command, noisy.checkpoint, data, "-o", tmp_path / "out.safetensors")
    assert (status, output) == (1, "")
    assert "platypus" in error
    assert not (tmp_path / "out.safetensors").exists()


@pytest.fixture(scope="module")
def damaged(noisy: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of the data with one unreadable image in every split, and which by split."""
    data = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(noisy.data, data)
    unreadable = {}
    for split in sorted(data.iterdir()):
        image = sorted((split / "3").iterdir())[0]
        image.write_bytes(b"\x89PNG\r\n\x1a\n no image")
        unreadable[split.name] = str(image.relative_to(data))
    return data, unreadable


@pytest.fixture(scope="module")
def every_sample(damaged: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of all training images, the unreadable one among them."""
    path = tmp_path_factory.mktemp("list") / "all.txt"
    images = sorted((damaged[0] / "train").rglob("*.png"))
    path.write_text("\n".join(image.relative_to(damaged[0]).as_posix() for image in images))
    return path


def test_an_unreadable_image_is_never_trusted_and_moves_no_other(
    noisy: Trained, damaged: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    data, unreadable = damaged
    everything = ("-n", "100000")
    _, before, _ = sap(capsys, "select", noisy.checkpoint, noisy.data, *everything)
    status, after, error = sap(capsys, "select", noisy.checkpoint, data, *everything)
    assert status == 0
    assert unreadable["train"] in error
    records = {}
    for name, lines in (("before", before), ("after", after)):
        records[name] = {record["path"]: record for record in map(json.loads, lines.splitlines())}
    missing = records["before"].keys() - records["after"].keys()
    # As many as the smallest class has are taken of each, so that others may be left out for it; none may move.
    assert unreadable["train"] not in records["after"]
    assert unreadable["train"] in missing
    for path, record in records["after"].items():
        original = records["before"].get(path, record)
        assert record["index"] == original["index"]
        assert record["label"] == original["label"]
        assert record["loss"] == pytest.approx(original["loss"], abs=1e-4)


@pytest.mark.parametrize("command", ["select", "activations", "project", "eval"])
def test_every_stage_names_it_or_stops(
    noisy: Trained,
    damaged: tuple[Path, dict[str, str]],
    every_sample: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    data, unreadable = damaged
    output = tmp_path / "out"
    arguments: list[str | Path] = [command, noisy.checkpoint, data, "-o", output]
    if command in {"activations", "project"}:
        arguments += ["--trusted", every_sample]
    if command == "project":
        arguments += ["--alpha", "3000"]
    status, _, error = sap(capsys, *arguments)
    assert status == 0, error
    left_out = unreadable["test" if command == "eval" else "train"]
    assert left_out in error
    assert output.stat().st_size
    output.unlink()
    # What was made before is kept, and so is the knowledge of what could not be read.
    status, _, error = sap(capsys, *arguments)
    assert status == 0
    assert left_out in error
    output.unlink()
    status, _, error = sap(capsys, *arguments, "--strict-images")
    assert status == 1
    assert left_out in error or unreadable["val"] in error
    assert not output.exists()


def test_the_others_are_judged_as_ever(
    noisy: Trained, damaged: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    data, unreadable = damaged
    _, before, _ = sap(capsys, "eval", noisy.checkpoint, noisy.data, "--format", "json")
    _, after, _ = sap(capsys, "eval", noisy.checkpoint, data, "--format", "json")
    first, second = json.loads(before), json.loads(after)
    assert second["unreadable"] == [unreadable["test"]]
    assert second["images"] == first["images"] - 1
    assert second["classes"]["3"]["images"] == first["classes"]["3"]["images"] - 1
    others = [name for name in first["classes"] if name != "3"]
    assert {name: second["classes"][name] for name in others} == {name: first["classes"][name] for name in others}
