"""Tests of the command line: what is on stdout and stderr, the exit status, and what is written."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import timm
import torch
import typer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.command_line import run_process
from support.digits import SIZES, Trained
from support.processes import SAP, sap
from support.small_project import Outcome, Project, make_project, run_here, without_privileges

from sapcli.commands.app import app
from sapcli.datasets.decoding import Decoder

COUNT = ("-n", "60")
COMMANDS = tuple(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def repaired(noisy: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corrected checkpoint of `sap project`."""
    output = tmp_path_factory.mktemp("repaired") / "repaired.safetensors"
    ended = sap("project", noisy.checkpoint, noisy.data, *COUNT, "-o", output)
    assert ended.status == 0, ended.stderr
    assert ended.stdout.decode() == f"{output}\n"
    return output


def json_of(ended: Outcome) -> dict[str, object]:
    """The JSON object that is all of stdout."""
    assert ended.status == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert isinstance(document, dict)
    return document


def header_of(checkpoint: Path) -> dict[str, dict[str, object]]:
    """The header of a safetensors file, in its order."""
    content = checkpoint.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert isinstance(header, dict)
    return header


def copy_of(trained: Trained, folder: Path) -> Path:
    """The checkpoint and its config.json in another folder."""
    folder.mkdir(exist_ok=True)
    shutil.copy(trained.checkpoint.with_name("config.json"), folder)
    return Path(shutil.copy(trained.checkpoint, folder))


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["cache", "info"], ["cache", "clear"]])
def test_help_comes_without_heavy_imports(command: list[str]) -> None:
    program = (
        "import sys; from sapcli.commands.entry import run; status = run(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy'};"
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(status)"
    )
    process = run_process([sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True)
    assert process.returncode == 0
    assert process.stderr.split() == []
    assert " ".join(["sap", *command]) in process.stdout
    if not command:
        assert all(name in process.stdout for name in COMMANDS)


def test_a_pipeline_carries_nothing_but_the_data(noisy: Trained, repaired: Path, tmp_path: Path) -> None:
    model, data, piped = noisy.checkpoint, noisy.data, tmp_path / "piped.safetensors"
    command, count = shlex.join(SAP), shlex.join(COUNT)
    pipeline = (
        f"set -o pipefail; {command} select {model} {data} {count}"
        f" | {command} project {model} {data} --trusted - -o - | tee {piped}"
        f" | {command} eval - {data}/test --baseline {model} --format json"
    )
    process = run_process(["bash", "-c", pipeline], capture_output=True)
    document = json_of(Outcome(process.returncode, process.stdout, process.stderr.decode()))
    assert document["images"] == SIZES["test"]
    assert document["gain"] is not None
    assert piped.read_bytes() == repaired.read_bytes()


@pytest.mark.parametrize(("closed", "is_heard"), [("<&-", True), (">&-", False), ("2>&-", True)])
def test_a_stream_that_is_closed_ends_nothing(tmp_path: Path, closed: str, is_heard: bool) -> None:
    command = f"{shlex.join(SAP)} cache info --cache-dir {tmp_path} {closed}"
    process = run_process(["bash", "-c", command], capture_output=True)
    assert (process.returncode, process.stderr) == (0, b"")
    assert (b"0 entries" in process.stdout) == is_heard


def test_selected_samples_are_json_lines_in_balance(noisy: Trained) -> None:
    ended = run_here("select", noisy.checkpoint, noisy.data, *COUNT)
    assert ended.status == 0
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [set(row) for row in rows] == [{"index", "path", "label", "loss"}] * 60
    assert sorted(row["label"] for row in rows) == sorted("0123456789" * 6)
    assert all((noisy.data / row["path"]).parent.name == row["label"] for row in rows)


def test_artifacts_that_are_handed_over_make_the_same_repair(noisy: Trained, repaired: Path, tmp_path: Path) -> None:
    trusted, bases = tmp_path / "trusted.jsonl", tmp_path / "bases.safetensors"
    output = tmp_path / "model.safetensors"
    assert run_here("select", noisy.checkpoint, noisy.data, *COUNT, "-o", trusted).status == 0
    ended = run_here("activations", noisy.checkpoint, noisy.data, "--trusted", trusted, "-o", bases)
    assert ended.stdout.decode() == f"{bases}\n"
    assert run_here("project", noisy.checkpoint, noisy.data, "--bases", bases, "-o", output).status == 0
    assert output.read_bytes() == repaired.read_bytes()


def test_another_alpha_decodes_no_training_image(
    noisy: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(noisy.data, data)
    cache, options = tmp_path / "cache", (*COUNT, "--batchnorm", "keep", "--workers", "0")
    first, other, again = (tmp_path / f"{name}.safetensors" for name in ("first", "other", "again"))
    arguments = ("project", noisy.checkpoint, data, *options, "--cache-dir", cache)
    assert run_here(*arguments, "--alpha", "1000", "-o", first).status == 0
    decode, decoded = Decoder.__call__, []

    def noted(self: Decoder, paths: Sequence[str]) -> object:
        decoded.extend(paths)
        return decode(self, paths)

    monkeypatch.setattr(Decoder, "__call__", noted)
    for alpha, output in (("300", other), ("1000", again)):
        ended = run_here(*arguments, "--alpha", alpha, "-o", output, "--strict-images")
        assert ended.status == 0, ended.stderr
    assert decoded
    assert not [path for path in decoded if path.startswith("train/")]
    for image in (data / "train").rglob("*.png"):
        image.write_bytes(b"\0" * image.stat().st_size)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    assert "2 entries" not in (info := run_here("cache", "info", "--cache-dir", cache).stdout.decode())
    assert str(cache) in info
    assert run_here("cache", "clear", "--cache-dir", cache).status == 0
    assert ": 0 entries" in run_here("cache", "info", "--cache-dir", cache).stdout.decode()
    assert run_here(*arguments, "--alpha", "1000", "-o", first, "--force").status == 1


def test_the_corrected_file_is_like_its_input(noisy: Trained, tmp_path: Path) -> None:
    model = copy_of(noisy, tmp_path)
    # In another order than the network's own, and with metadata of the user's.
    tensors = dict(sorted(load_file(noisy.checkpoint).items(), key=lambda entry: entry[0][::-1]))
    save_file(tensors, model, {"origin": "last night's run"})
    output = tmp_path / "model.sap.safetensors"
    ended = run_here("project", model, noisy.data, *COUNT, "--alpha", "1000", "--skip-layers", "layer1")
    assert ended.status == 0, ended.stderr
    assert ended.stdout.decode() == f"{output}\n"

    before, after = header_of(model), header_of(output)
    assert before.pop("__metadata__") == {"origin": "last night's run"}
    metadata = after.pop("__metadata__")
    assert metadata["origin"] == "last night's run"
    assert metadata["sap.alpha"] == "1000"
    assert metadata["sap.repaired"] == "true"
    assert list(before.items()) == list(after.items())

    corrected = load_file(output)
    projected = set(json.loads(str(metadata["sap.projected"])))
    assert "layer2.0.conv1.weight" in projected
    assert "layer1.0.conv1.weight" not in projected
    statistics = {name for name in tensors if name.endswith((".running_mean", ".running_var"))}
    changed = {name for name in tensors if not torch.equal(tensors[name], corrected[name])}
    assert projected <= changed <= projected | statistics
    assert changed & statistics

    network = timm.create_model("test_resnet", num_classes=10)
    network.load_state_dict(corrected, strict=True)


def test_batchnorm_statistics_stay_when_they_are_to_be_kept(noisy: Trained, tmp_path: Path) -> None:
    output = tmp_path / "kept.safetensors"
    options = ("--alpha", "1000", "--batchnorm", "keep", "-o", output)
    assert run_here("project", noisy.checkpoint, noisy.data, *COUNT, *options).status == 0
    before, after = load_file(noisy.checkpoint), load_file(output)
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)


def test_a_network_without_wrong_labels_is_not_made_worse(clean: Trained, tmp_path: Path) -> None:
    output = tmp_path / "repaired.safetensors"
    assert run_here("project", clean.checkpoint, clean.data, *COUNT, "-o", output).status == 0
    options = ("--baseline", clean.checkpoint, "--split", "val", "--format", "json")
    gain = json_of(run_here("eval", output, clean.data, *options))["gain"]
    assert isinstance(gain, float)
    assert gain >= 0


def test_measurements_are_the_same_in_every_format(noisy: Trained, repaired: Path) -> None:
    arguments = ("eval", repaired, noisy.data, "--baseline", noisy.checkpoint, "--quiet")
    table, default, comma_separated = (
        run_here(*arguments, *options) for options in (("--format", "table"), (), ("--format", "csv"))
    )
    document = json_of(default)
    assert default.stderr == ""
    assert {"top1", "top5", "loss", "ece", "images", "baseline", "gain", "gain_interval"} <= set(document)
    (row,) = csv.DictReader(io.StringIO(comma_separated.stdout.decode()))
    baseline = document["baseline"]
    assert isinstance(baseline, dict)
    assert float(row["top1"]) == document["top1"]
    assert float(row["baseline.top1"]) == baseline["top1"]
    assert float(row["gain"]) == document["gain"]
    assert f"{document['top1']:.2f}%" in table.stdout.decode()


def test_gates_end_with_3(noisy: Trained, tmp_path: Path) -> None:
    ended = run_here("eval", noisy.checkpoint, noisy.data, "--min-accuracy", "100", "--quiet")
    assert ended.status == 3
    assert json.loads(ended.stdout)["images"] == SIZES["test"]
    assert_two_lines(ended)

    output = tmp_path / "repaired.safetensors"
    ended = run_here("project", noisy.checkpoint, noisy.data, *COUNT, "--require-gain", "99", "-o", output, "--quiet")
    assert ended.status == 3
    assert_two_lines(ended)
    assert not output.exists()


def test_a_closed_pipe_ends_quietly(noisy: Trained) -> None:
    command = f"set -o pipefail; {shlex.join(SAP)} select {noisy.checkpoint} {noisy.data} --quiet | head -n 1"
    process = run_process(["bash", "-c", command], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert json.loads(process.stdout)["index"] >= 0


def assert_two_lines(ended: Outcome) -> None:
    """The two lines of an error, and nothing else, on stderr."""
    lines = ended.stderr.splitlines()
    assert [line[:7] for line in lines] == ["error: ", "hint:  "], ended.stderr


def missing(_model: Path, data: Path) -> tuple[str | Path, ...]:
    return data / "none.safetensors", data


def truncated(model: Path, data: Path) -> tuple[str | Path, ...]:
    model.write_bytes(model.read_bytes()[:-100])
    return model, data


def pickled(model: Path, data: Path) -> tuple[str | Path, ...]:
    model.write_bytes(pickle.dumps({"weight": [1.0]}))
    return model, data


def without_images(model: Path, data: Path) -> tuple[str | Path, ...]:
    shutil.rmtree(data)
    (data / "train" / "cat").mkdir(parents=True)
    return model, data


def a_class_too_many(model: Path, data: Path) -> tuple[str | Path, ...]:
    (data / "train" / "ten").mkdir()
    Image.new("L", (8, 8)).save(data / "train" / "ten" / "10.png")
    return model, data


def another_architecture(model: Path, data: Path) -> tuple[str | Path, ...]:
    return model, data, "--arch", "timm:test_vit"


def misshapen(model: Path, data: Path) -> tuple[str | Path, ...]:
    tensors = load_file(model)
    tensors["conv1.0.weight"] = torch.zeros(16, 3, 5, 5)
    tensors["conv1.3.bias"] = torch.zeros(16)
    del tensors["conv1.4.weight"]
    save_file(tensors, model)
    return model, data


def no_such_device(model: Path, data: Path) -> tuple[str | Path, ...]:
    return model, data, "--device", "cuda:99"


def unknown_device(model: Path, data: Path) -> tuple[str | Path, ...]:
    return model, data, "--device", "abacus"


def no_architecture(model: Path, data: Path) -> tuple[str | Path, ...]:
    save_file({"table": torch.zeros(4, 4)}, model)
    model.with_name("config.json").unlink()
    return model, data


def existing_output(model: Path, data: Path) -> tuple[str | Path, ...]:
    model.with_name("model.sap.safetensors").write_bytes(b"precious")
    return model, data


def onto_itself(model: Path, data: Path) -> tuple[str | Path, ...]:
    return model, data, "-o", model, "--force"


def unknown_option(model: Path, data: Path) -> tuple[str | Path, ...]:
    return model, data, "--alhpa", "3"


def senseless_alpha(model: Path, data: Path) -> tuple[str | Path, ...]:
    return model, data, "--alpha", "many"


def no_data(model: Path, _data: Path) -> tuple[str | Path, ...]:
    return (model,)


def misspelt_layers(model: Path, data: Path) -> tuple[str | Path, ...]:
    return model, data, "--layers", "nothing"


@pytest.mark.parametrize(
    ("arrange", "status", "named"),
    [
        (missing, 1, ["none.safetensors"]),
        (truncated, 1, ["model.safetensors"]),
        (pickled, 1, ["model.safetensors", "pickle"]),
        (without_images, 1, ["data", "no images"]),
        (a_class_too_many, 1, ["ten"]),
        (another_architecture, 1, ["test_vit", "missing", "unexpected"]),
        (misshapen, 1, ["conv1.0.weight", "(16, 3, 5, 5)", "conv1.3.bias", "conv1.4.weight"]),
        (no_such_device, 1, ["cuda:99"]),
        (no_architecture, 1, ["--arch"]),
        (existing_output, 1, ["model.sap.safetensors", "--force"]),
        (onto_itself, 1, ["model.safetensors"]),
        (unknown_option, 2, ["--alhpa"]),
        (unknown_device, 2, ["abacus"]),
        (senseless_alpha, 2, ["--alpha", "many"]),
        (no_data, 2, ["CHECKPOINT and DATA are both needed", "sap project CHECKPOINT DATA"]),
        (misspelt_layers, 2, ["--layers nothing matches no weight"]),
    ],
)
def test_an_error_is_two_lines_and_writes_nothing(
    noisy: Trained,
    tmp_path: Path,
    arrange: Callable[[Path, Path], tuple[str | Path, ...]],
    status: int,
    named: list[str],
) -> None:
    model, data = copy_of(noisy, tmp_path), tmp_path / "data"
    shutil.copytree(noisy.data, data)
    arguments = arrange(model, data)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ended = run_here("project", *arguments, *COUNT)
    assert ended.status == status, ended.stderr
    assert ended.stdout == b""
    assert_two_lines(ended)
    assert all(text in ended.stderr for text in named), ended.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("arguments", "status"), [(["none.safetensors", "."], 1), (["--alhpa", "3"], 2)])
def test_a_process_ends_with_its_error(arguments: list[str], status: int, tmp_path: Path) -> None:
    ended = sap("project", *arguments, folder=tmp_path)
    assert (ended.status, ended.stdout) == (status, b"")
    assert_two_lines(ended)


def test_a_corrected_checkpoint_names_its_network_itself(repaired: Path) -> None:
    with safe_open(repaired, "pt") as file:
        assert file.metadata()["sap.architecture"] == "timm:test_resnet"
    assert not repaired.with_name("config.json").exists()


@pytest.fixture(scope="module")
def bare(noisy: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's tensors without its config.json, which leaves open how images are prepared."""
    return Path(shutil.copy(noisy.checkpoint, tmp_path_factory.mktemp("bare") / "bare.safetensors"))


def test_a_baseline_that_says_nothing_is_taken_for_the_same(noisy: Trained, repaired: Path, bare: Path) -> None:
    expected = json_of(run_here("eval", repaired, noisy.data, "--baseline", noisy.checkpoint))
    ended = run_here("eval", repaired, noisy.data, "--baseline", bare)
    assert json_of(ended) == expected
    assert "differently prepared" not in ended.stderr


def test_a_baseline_on_images_prepared_otherwise_is_pointed_out(noisy: Trained, bare: Path, tmp_path: Path) -> None:
    other = copy_of(noisy, tmp_path)
    config = json.loads(noisy.checkpoint.with_name("config.json").read_text())
    config["pretrained_cfg"]["crop_pct"] = 0.5
    other.with_name("config.json").write_text(json.dumps(config))
    ended = run_here("eval", noisy.checkpoint, noisy.data, "--baseline", other)
    assert "differently prepared images" in ended.stderr


def test_an_unreadable_validation_image_is_named(noisy: Trained, tmp_path: Path) -> None:
    data = shutil.copytree(noisy.data, tmp_path / "data")
    broken = sorted((data / "val").rglob("*.png"))[3]
    broken.write_bytes(b"no image")
    output = tmp_path / "out.safetensors"
    ended = run_here("project", noisy.checkpoint, data, *COUNT, "--alpha", "3000", "-o", output)
    assert ended.status == 0
    assert f"{broken.relative_to(data)} is left out" in ended.stderr


def test_classes_in_another_order_are_suspected(noisy: Trained, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in noisy.data.glob("test/*"):
        shutil.copytree(folder, data / "test" / str((int(folder.name) + 3) % 10))
    config = json.loads(noisy.checkpoint.with_name("config.json").read_text())
    del config["label_names"]
    other = copy_of(noisy, tmp_path)
    other.with_name("config.json").write_text(json.dumps(config))
    ended = run_here("eval", other, data)
    assert "hardly better than guessing" in ended.stderr
    assert "--class-map" in ended.stderr


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A network of three colours that says nothing of itself."""
    return make_project(tmp_path_factory.mktemp("colours"))


def _own(project: Project) -> tuple[str | Path, ...]:
    return project.data, "--arch", f"{project.folder / 'network.py'}:tiny"


def test_a_corrected_file_remembers_the_order_of_the_classes(colours: Project, tmp_path: Path) -> None:
    order = tmp_path / "order.txt"
    order.write_text("red\nblue\ngreen\n")
    output = tmp_path / "out.safetensors"
    common = ("-n", "60", "--alpha", "1000", "--class-map", order, "-o", output)
    assert run_here("project", colours.checkpoint, *_own(colours), *common).status == 0
    with safe_open(output, "pt") as file:
        assert json.loads(file.metadata()["sap.label_names"]) == ["red", "blue", "green"]
    told, remembered = (run_here("eval", output, *_own(colours), *extra) for extra in (("--class-map", order), ()))
    assert remembered.stdout == told.stdout
    # The order is wrong, so that nearly all labels are contradicted: where only the file says it, that is an error.
    assert "hardly better than guessing" in remembered.stderr
    assert run_here("suspects", output, *_own(colours), "--class-map", order).status == 0
    assert run_here("suspects", output, *_own(colours)).status == 1


def test_numbers_in_an_order_of_their_own_are_remembered(colours: Project, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, number in (("blue", "2"), ("green", "0"), ("red", "1")):
            shutil.copytree(colours.data / split / name, tmp_path / "data" / split / number)
    order, output = tmp_path / "order.txt", tmp_path / "out.safetensors"
    order.write_text("2\n0\n1\n")
    own = tmp_path / "data", *_own(colours)[1:]
    assert run_here("project", colours.checkpoint, *own, "-n", "60", "--class-map", order, "-o", output).status == 0
    by_colours = run_here(
        "eval", output, colours.data, *_own(colours)[1:], "--class-map", _colours_as_numbers(tmp_path)
    )
    by_numbers = run_here("eval", output, *own)
    assert json.loads(by_numbers.stdout)["top1"] == json.loads(by_colours.stdout)["top1"] > 80


def _colours_as_numbers(folder: Path) -> Path:
    file = folder / "colours.csv"
    file.write_text("folder,class\nblue,0\ngreen,1\nred,2\n")
    return file


def test_the_classes_of_a_training_script_are_the_networks(colours: Project, tmp_path: Path) -> None:
    weights = load_file(colours.checkpoint)
    for names, expected in ((["red", "blue", "green"], ["red", "blue", "green"]), (["red", "blue"], None)):
        torch.save({"model_state_dict": weights, "classes": names, "epoch": 3}, tmp_path / "training.pth")
        ended = run_here("inspect", tmp_path / "training.pth", *_own(colours)[1:])
        assert json.loads(ended.stdout)["label_names"] == expected


def test_an_output_that_cannot_be_written_is_told_of_at_once(colours: Project, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with without_privileges():
        ended = run_here("project", colours.checkpoint, *_own(colours), "-o", tmp_path / "closed" / "out.safetensors")
    assert ended.status == 1
    assert ended.stderr.startswith("error: Cannot write")
    assert "Permission denied" in ended.stderr


def test_trusting_most_of_the_images_is_pointed_out(noisy: Trained) -> None:
    assert "more than half" in run_here("select", noisy.checkpoint, noisy.data, "-n", "200").stderr
    assert "more than half" not in run_here("select", noisy.checkpoint, noisy.data, *COUNT).stderr


def test_no_output_is_called_a_pickle(noisy: Trained, tmp_path: Path) -> None:
    ended = run_here("project", noisy.checkpoint, noisy.data, "-o", tmp_path / "out.pth")
    assert ended.status == 2
    assert "always safetensors" in ended.stderr


def test_a_dry_run_minds_no_output(noisy: Trained, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"kept")
    assert run_here("project", noisy.checkpoint, noisy.data, *COUNT, "--dry-run", "-o", output).status == 0
    assert output.read_bytes() == b"kept"
