"""Files of other kinds are named, with the line that makes of them what is taken."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.other_files import (
    KINDS,
    distributed,
    exported,
    pickled,
    prepared,
    state,
    torchscript,
    whole,
    whole_in_a_training_file,
)
from support.small_project import Project, make_project, run_here
from torch import Tensor

from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.errors import CheckpointError


@pytest.mark.parametrize(("name", "make", "what", "way_out"), KINDS.values(), ids=KINDS.keys())
def test_what_it_is_and_the_way_out(
    tmp_path: Path, name: str, make: Callable[[Path], None], what: str, way_out: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / name)
    assert what in caught.value.message
    assert way_out in caught.value.hint
    told = caught.value.message + caught.value.hint
    assert "\n" not in told
    for wrong in ("damaged", "cut off", "bytes", "operand", "magic", "enforce", "Unsupported", "GLOBAL"):
        assert wrong not in told, told


def stepped() -> torch.optim.Optimizer:
    """An optimizer with a state."""
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    parameter.grad = torch.ones(3, 2)
    optimizer = torch.optim.Adam([parameter])
    optimizer.step()
    return optimizer


OTHER_CONTENT: dict[str, tuple[object, str, str]] = {
    "an optimizer": (stepped().state_dict(), "is the state of an optimizer", "Name the checkpoint with the weights"),
    "a schedule": (
        torch.optim.lr_scheduler.StepLR(stepped(), 2).state_dict(),
        "is the state of a schedule of learning rates",
        "Name the checkpoint with the weights",
    ),
    "a scaler": (
        torch.amp.GradScaler("cpu").state_dict(),
        "is the state of a gradient scaler",
        "Name the checkpoint with the weights",
    ),
    "an optimizer's under a key": (
        {"optimizer_state_dict": stepped().state_dict(), "epoch": 3},
        "holds no weights beside optimizer_state_dict",
        "Name the checkpoint with the weights",
    ),
    "arrays": (
        {name: tensor.numpy() for name, tensor in state().items()},
        "holds arrays of NumPy in the place of tensors",
        "torch.load(FILE, weights_only=False).items()",
    ),
    "arrays under a key": (
        {"model": {name: tensor.numpy() for name, tensor in state().items()}, "author": "x"},
        "holds arrays of NumPy in the place of tensors",
        "torch.load(FILE, weights_only=False)['model'].items()",
    ),
    "a tuple": ((3, state()), "holds a tuple of 2, with a state dict at 1", "torch.load(FILE)[1]"),
    "a list": ([state(), state()], "holds a list of 2, with a state dict at 0 and 1", "torch.load(FILE)[0]"),
    "a tensor": (torch.zeros(3, 4), "holds a single tensor [3, 4]", "all weights of the network"),
    "nothing": (None, "holds nothing", "all weights of the network"),
}


@pytest.mark.parametrize(("content", "what", "way_out"), OTHER_CONTENT.values(), ids=OTHER_CONTENT.keys())
def test_other_content_of_a_pytorch_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, what: str, way_out: str
) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "a.pt")
    assert what in caught.value.message
    assert way_out in caught.value.hint
    line = caught.value.hint.partition(": ")[2]
    if line.startswith("torch.save("):  # it makes what is taken
        monkeypatch.chdir(tmp_path)
        exec(line, {"torch": torch, "FILE": "a.pt"})
        made = open_checkpoint(tmp_path / "model.pt")
        assert all(torch.equal(made.read(name), tensor) for name, tensor in state().items())


def test_weights_in_a_list_beside_an_optimizer_are_weights(tmp_path: Path) -> None:
    content = {"optimizer": stepped().state_dict(), "layers": [torch.ones(2, 3)], "confusion": torch.ones(2, 2).numpy()}
    torch.save(content, tmp_path / "a.pt")
    assert "layers.0" in open_checkpoint(tmp_path / "a.pt").entries


def test_arguments_of_a_training_are_no_network(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.save(transformers.TrainingArguments(output_dir=str(tmp_path / "run")), tmp_path / "training_args.bin")
    with pytest.raises(CheckpointError, match="is the arguments of a training by transformers, without weights"):
        open_checkpoint(tmp_path / "training_args.bin")


def test_a_folder_of_deepspeed(tmp_path: Path) -> None:
    # https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/utils/zero_to_fp32.py
    (tmp_path / "global_step3").mkdir()
    (tmp_path / "latest").write_text("global_step3")
    (tmp_path / "zero_to_fp32.py").write_text("")
    (tmp_path / "global_step3" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(CheckpointError, match="DeepSpeed") as caught:
        open_checkpoint(tmp_path)
    assert "zero_to_fp32.py FOLDER OUTPUT" in caught.value.hint


def test_a_distributed_checkpoint_and_its_folder(tmp_path: Path) -> None:
    distributed(tmp_path / "dcp")
    for source in (tmp_path / "dcp", next((tmp_path / "dcp").glob("*.distcp")), tmp_path / "dcp" / ".metadata"):
        with pytest.raises(CheckpointError, match="distributed checkpoint") as caught:
            open_checkpoint(source)
        assert "dcp_to_torch" in caught.value.hint
    # The way out leads there.
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "model.pt")
    checkpoint = open_checkpoint(tmp_path / "model.pt")
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in state().items())


@pytest.mark.parametrize(
    ("make", "way"),
    [
        (torchscript, lambda file: torch.jit.load(str(file)).state_dict()),
        (exported, lambda file: dict(torch.export.load(file).state_dict)),
        (whole, lambda file: torch.load(file, weights_only=False).state_dict()),
        (
            whole_in_a_training_file,
            lambda file: torch.load(file, weights_only=False)["model"].float().state_dict(),
        ),
        (
            pickled(4),
            lambda file: {name: torch.as_tensor(value) for name, value in pickle.loads(file.read_bytes()).items()},
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_ways_out_lead_there(
    tmp_path: Path, make: Callable[[Path], None], way: Callable[[Path], dict[str, Tensor]]
) -> None:
    make(tmp_path / "given.pt2")
    torch.save(way(tmp_path / "given.pt2"), tmp_path / "model.pt")
    checkpoint = open_checkpoint(tmp_path / "model.pt")
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in state().items())


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_another_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    torch.save(state(), tmp_path / "a.pt", pickle_protocol=protocol)
    said = ""
    try:
        names = list(open_checkpoint(tmp_path / "a.pt").entries)
    except CheckpointError as error:
        names, said = list(state()), error.message
    assert names == list(state())
    assert not said or ("pickle protocol" in said and "operand" not in said)


@pytest.mark.parametrize("name", ["last.ckpt", "model_best.pth.tar", "checkpoint.pt.tar"])
def test_a_folder_whose_only_checkpoint_has_another_ending(tmp_path: Path, name: str) -> None:
    torch.save({"state_dict": state(), "epoch": 3}, tmp_path / name)
    (tmp_path / "hparams.yaml").write_text("x: 1")
    assert set(state()) <= set(open_checkpoint(tmp_path).entries)
    torch.save({"state_dict": state()}, tmp_path / f"other-{name}")
    with pytest.raises(CheckpointError, match=r"2 checkpoints: .*Name one|2 checkpoints"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("saved_model.pb", "TensorFlow"),
        ("model.onnx", "an ONNX graph"),
        ("weights.h5", "an HDF5 file"),
        ("_CHECKPOINT_METADATA", "an Orbax checkpoint"),
        ("model.ckpt.data-00000-of-00001", "a TensorFlow checkpoint"),
    ],
)
def test_a_folder_of_another_kind(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(CheckpointError, match=what):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "I4", "C128"])
def test_a_dtype_of_a_newer_format_is_no_damage(tmp_path: Path, dtype: str) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(CheckpointError, match=f"cannot be read by this version: .* has the dtype '{dtype}'") as caught:
        open_checkpoint(tmp_path / "a.safetensors")
    assert "Copy or download" not in caught.value.hint
    assert "quantisation" in caught.value.hint


def adapter(prefix: str = "base_model.model.", default: str = "") -> dict[str, Tensor]:
    """What peft saves of LoRA on one layer, and a classifier that it trained as a whole."""
    return {
        f"{prefix}blocks.0.attn.qkv.lora_A{default}.weight": torch.zeros(4, 16),
        f"{prefix}blocks.0.attn.qkv.lora_B{default}.weight": torch.zeros(48, 4),
        f"{prefix}head.weight": torch.zeros(3, 16),
    }


@pytest.mark.parametrize(
    "tensors",
    [
        adapter(),
        adapter("", ".default"),
        {"unet.down.0.lora_down.weight": torch.zeros(4, 8), "unet.down.0.lora_up.weight": torch.zeros(8, 4)},
        {"a.hada_w1_a": torch.zeros(2, 2), "a.hada_w1_b": torch.zeros(2, 2)},
    ],
)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_alone(tmp_path: Path, tensors: dict[str, Tensor], name: str) -> None:
    (torch.save if name.endswith(".bin") else save_file)(tensors, tmp_path / name)  # type: ignore[operator]
    (tmp_path / "adapter_config.json").write_text("{}")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match="is an adapter") as caught:
            open_checkpoint(source)
        assert "merge_and_unload" in caught.value.hint


def test_names_that_only_look_like_an_adapter(tmp_path: Path) -> None:
    tensors = {"flora_A.weight": torch.ones(2, 2), "explora_up.bias": torch.ones(2)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert set(open_checkpoint(tmp_path / "a.safetensors").entries) == set(tensors)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


def observed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    observers = [name for name in prepared().state_dict() if "fake_quant" in name or "activation_post" in name]
    return tensors | {name.replace("conv.", "0."): torch.zeros(1) for name in observers}


def with_adapters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An unmerged network of peft: the weights stand under `base_layer`."""
    renamed = {name.replace("4.weight", "4.base_layer.weight"): tensor for name, tensor in tensors.items()}
    return renamed | {"4.lora_A.default.weight": torch.zeros(2, 512), "4.lora_B.default.weight": torch.zeros(3, 2)}


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that GPTQ gives to a linear layer."""
    rest = {name: tensor for name, tensor in tensors.items() if name != "4.weight"}
    names = {"qweight": (64, 3), "qzeros": (1, 1), "g_idx": (512,)}
    return rest | {f"4.{name}": torch.zeros(shape, dtype=torch.int32) for name, shape in names.items()}


@pytest.mark.parametrize(
    ("change", "message", "way_out"),
    [
        (observed, "quantisation-aware", "fake_quant"),
        (with_adapters, "holds adapters (LoRA)", "merge_and_unload"),
        (packed, "is quantised (GPTQ, AWQ)", "before the quantisation"),
    ],
)
def test_networks_that_were_changed_for_training(
    project: Project,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    way_out: str,
) -> None:
    from safetensors.torch import load_file

    save_file(change(load_file(project.checkpoint)), tmp_path / "changed.safetensors")
    outcome = run_here(
        "eval", tmp_path / "changed.safetensors", project.data, "--arch", f"{project.folder / 'network.py'}:tiny"
    )
    assert outcome.status == 1
    error, hint = outcome.stderr.splitlines()[-2:]
    assert message in error
    assert way_out in hint
