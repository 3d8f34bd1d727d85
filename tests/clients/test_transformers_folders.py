"""Folders of transformers: evaluated as its own pipeline does, and written as folders that it loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.client_files import Pictures, evaluated, metrics_of, numbers, write_pictures
from support.small_project import run_here
from support.tiny_transformers import KINDS, save_classifier

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Forty images of several sizes, which the processors have to resize and crop."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "data", [(32, 32), (50, 40), (200, 130), (31, 70)])


def by_pipeline(folder: Path, pictures: Pictures) -> tuple[float, float]:
    """Top-1 and loss of transformers' own pipeline."""
    pipeline = transformers.pipeline("image-classification", model=str(folder), top_k=None)
    labels = pipeline.model.config.id2label
    names = [labels[number] for number in range(len(labels))]
    rows = []
    for path in pictures.paths:
        scores = {found["label"]: found["score"] for found in pipeline(str(path), function_to_apply="none")}
        rows.append([scores[name] for name in names])
    return numbers(torch.tensor(rows), pictures.label_numbers(names))


def weights_that_meet_activations(folder: Path, pictures: Pictures) -> set[str]:
    """The weights of the linear layers and convolutions that multiply something in transformers' own pipeline.

    One of a single column is left out: all energy lies in that column, so it stays as it is.
    """
    pipeline = transformers.pipeline("image-classification", model=str(folder))
    found = set()

    def watched(name: str) -> Callable[[Any, tuple[torch.Tensor, ...], Any], None]:
        return lambda _module, inputs, _output: found.add(name) if inputs[0].any() else None

    for name, module in pipeline.model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and module.weight[0].numel() > 1:
            module.register_forward_hook(watched(f"{name}.weight"))
    pipeline(str(pictures.paths[0]))
    return found


def repaired(source: Path, pictures: Pictures, *options: str | Path) -> Path:
    outcome = run_here("project", source, pictures.folder, "--alpha", "50", "-n", "12", "--workers", "0", *options)
    assert outcome.status == 0, outcome.stderr
    return Path(outcome.stdout.decode().strip())


def names_in(file: Path) -> set[str]:
    with safe_open(file, "pt") as opened:
        return set(opened.keys())


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_the_folder_that_is_written(tmp_path: Path, pictures: Pictures, kind: str) -> None:
    folder = tmp_path / "model"
    model = save_classifier(folder, kind)
    (folder / "README.md").write_text("a card")
    assert evaluated(folder, pictures.folder) == pytest.approx(by_pipeline(folder, pictures), abs=1e-4)

    output = repaired(folder, pictures)
    assert output == tmp_path / "model.sap"
    assert {path.name for path in output.iterdir()} == {path.name for path in folder.iterdir()}
    assert names_in(output / "model.safetensors") == names_in(folder / "model.safetensors")
    loaded, told = type(model).from_pretrained(output, output_loading_info=True)
    assert not any(told.values())
    changed = {
        name
        for name, tensor in model.state_dict().items()
        if tensor.dim() > 1 and not torch.equal(tensor, loaded.state_dict()[name])
    }
    met = weights_that_meet_activations(folder, pictures)
    assert len(met) > 5
    assert met <= changed
    assert evaluated(output, pictures.folder) == pytest.approx(by_pipeline(output, pictures), abs=1e-4)


def test_another_place_and_forms_of_the_weights(tmp_path: Path, pictures: Pictures) -> None:
    """Shards, PyTorch's own files and their shards; a trainer's folder; what is beside them goes along."""
    model = save_classifier(tmp_path / "plain", "ViTForImageClassification")
    plain = repaired(tmp_path / "plain", pictures)
    expected = by_pipeline(plain, pictures)
    forms: dict[str, Any] = {
        "shards": lambda folder: model.save_pretrained(folder, max_shard_size="10KB"),
        "pickled": lambda folder: torch.save(dict(model.state_dict()), folder / "pytorch_model.bin"),
        "checkpoint-20": lambda folder: model.save_pretrained(folder),
    }
    for name, save in forms.items():
        folder = tmp_path / name
        folder.mkdir()
        save(folder)
        for file in ("config.json", "preprocessor_config.json"):
            (folder / file).write_bytes((tmp_path / "plain" / file).read_bytes())
        for file in ("optimizer.pt", "trainer_state.json", "training_args.bin"):
            (folder / file).write_text("x")
        (folder / "runs").mkdir()
        output = repaired(folder, pictures, "-o", tmp_path / f"{name}-out")
        assert output == tmp_path / f"{name}-out"
        kept = {path.name for path in folder.iterdir()} - {"runs"}
        if name != "shards":
            assert {path.name for path in output.iterdir()} == kept - {"pytorch_model.bin"} | {"model.safetensors"}
        assert by_pipeline(output, pictures) == pytest.approx(expected, abs=1e-5)


def test_nothing_is_replaced_without_force(tmp_path: Path, pictures: Pictures) -> None:
    save_classifier(tmp_path / "model", "ResNetForImageClassification")
    output = repaired(tmp_path / "model", pictures)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    again = run_here("project", tmp_path / "model", pictures.folder, "--alpha", "500", "-n", "12", "--workers", "0")
    assert again.status == 1
    assert "exists already" in again.stderr
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    repaired(tmp_path / "model", pictures, "--force", "--alpha", "500")
    assert (output / "model.safetensors").read_bytes() != before["model.safetensors"]
    itself = run_here("project", tmp_path / "model", pictures.folder, "-o", tmp_path / "model", "--force")
    assert itself.status == 1
    assert "never overwritten" in itself.stderr
    assert not list(tmp_path.glob(".sap-*"))


def test_a_single_file_remembers_the_network_and_its_processor(tmp_path: Path, pictures: Pictures) -> None:
    save_classifier(tmp_path / "model", "DeiTForImageClassification")
    file = repaired(tmp_path / "model", pictures, "-o", tmp_path / "elsewhere.safetensors")
    folder = repaired(tmp_path / "model", pictures)
    assert evaluated(file, pictures.folder) == pytest.approx(by_pipeline(folder, pictures), abs=1e-4)
    assert run_here("verify", folder, "--input", tmp_path / "model").status == 0
    compared = run_here("eval", folder, pictures.folder, "--baseline", tmp_path / "model", "--format", "json")
    assert metrics_of(compared) == pytest.approx(by_pipeline(folder, pictures), abs=1e-4)


def test_the_processor_of_a_trainers_checkpoint_is_that_of_the_run(tmp_path: Path, pictures: Pictures) -> None:
    folder = tmp_path / "run" / "checkpoint-7"
    save_classifier(folder, "ViTForImageClassification")
    (folder / "preprocessor_config.json").rename(tmp_path / "run" / "preprocessor_config.json")
    found = evaluated(folder, pictures.folder)
    (folder / "preprocessor_config.json").write_bytes((tmp_path / "run" / "preprocessor_config.json").read_bytes())
    assert found == pytest.approx(by_pipeline(folder, pictures), abs=1e-4)


def test_a_folder_without_a_processor_asks_for_the_preprocessing(tmp_path: Path, pictures: Pictures) -> None:
    save_classifier(tmp_path / "model", "ViTForImageClassification")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    outcome = run_here("eval", tmp_path / "model", pictures.folder)
    assert outcome.status == 1
    assert "--mean" in outcome.stderr
    options = ("--input-size", "32", "--mean", "0.5", "--std", "0.5")
    assert run_here("eval", tmp_path / "model", pictures.folder, *options).status == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["ViTModel"]}, "no image classifier"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}, "knows no model of the type 'mine'"),
        ({"hidden_size": 24}, "does not fit"),
    ],
)
def test_what_cannot_be_built_is_told_in_two_lines(
    tmp_path: Path, pictures: Pictures, change: dict[str, object], message: str
) -> None:
    save_classifier(tmp_path / "model", "ViTForImageClassification")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model" / "code.py").write_text("raise SystemExit('it ran')")
    outcome = run_here("eval", tmp_path / "model", pictures.folder)
    assert outcome.status == 1
    assert message in outcome.stderr
    assert "it ran" not in outcome.stderr


def test_timms_wrapper(tmp_path: Path, pictures: Pictures) -> None:
    import timm

    network = timm.create_model("test_resnet", num_classes=4)
    config = transformers.TimmWrapperConfig(
        architecture="test_resnet", num_labels=4, do_pooling=True,
        id2label=dict(enumerate(("cow", "doe", "ape", "bee"))), model_args={},
    )  # fmt: skip
    config.pretrained_cfg = {**network.pretrained_cfg, "num_classes": 4}
    model = transformers.TimmWrapperForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    assert evaluated(tmp_path / "model", pictures.folder) == pytest.approx(
        by_pipeline(tmp_path / "model", pictures), abs=1e-4
    )
    output = repaired(tmp_path / "model", pictures)
    assert evaluated(output, pictures.folder) == pytest.approx(by_pipeline(output, pictures), abs=1e-4)


@pytest.mark.parametrize("hidden", [True, False])
def test_it_is_imported_for_its_own_models_alone(tmp_path: Path, pictures: Pictures, hidden: bool) -> None:
    """An ordinary checkpoint imports none of the optional libraries; without transformers, two lines say what to do."""
    import timm
    from safetensors.torch import save_file

    libraries = ("transformers", "datasets", "pyarrow", "lightning", "pytorch_lightning", "accelerate")
    save_file(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "model.safetensors")
    source = tmp_path / "model.safetensors"
    options = ["--arch", "test_resnet", "--input-size", "32"]
    if hidden:
        save_classifier(tmp_path / "model", "ViTForImageClassification")
        source, options = tmp_path / "model", []
    program = f"""
import sys
if {hidden}:
    sys.modules["transformers"] = None
import sapcli.commands.entry
status = sapcli.commands.entry.run(["eval", {str(source)!r}, {str(pictures.folder)!r}, "--workers", "0", *{options!r}])
print("imported", [name for name in {libraries!r} if sys.modules.get(name)], "status", status)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**os.environ}, timeout=300
    )
    assert f"imported [] status {int(hidden)}" in done.stdout, done.stderr
    if hidden:
        error, hint = done.stderr.strip().splitlines()[-2:]
        assert "is a model of transformers'" in error
        assert "pip install 'sapcli[transformers]'" in hint


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        ("Siglip2ImageProcessor", {"max_num_patches": 16, "patch_size": 8}, "pixel_attention_mask [1, 16]"),
        (
            "ImageGPTImageProcessor",
            {"size": {"height": 8, "width": 8}, "clusters": [[0, 0, 0], [1, 1, 1]]},
            "makes input_ids [1, 64] of an image",
        ),
    ],
)
def test_processors_that_make_more_than_pixels_are_named(
    tmp_path: Path, pictures: Pictures, kind: str, arguments: dict[str, Any], says: str
) -> None:
    save_classifier(tmp_path / "model", "ViTForImageClassification")
    getattr(transformers, kind)(**arguments).save_pretrained(tmp_path / "model")
    ended = run_here("eval", tmp_path / "model", pictures.folder)
    assert ended.status == 1
    error, hint = [line for line in ended.stderr.splitlines() if line.startswith(("error: ", "hint:  "))]
    assert f"the {kind} of " in error
    assert says in error
    assert "--arch" in hint
