"""Files of other kinds, made by the tools that write them where they are installed, else by their documented form."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from support.small_project import Project, make_project, run_here
from torch import Tensor, nn

from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.errors import CheckpointError


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


def state() -> dict[str, Tensor]:
    return dict(small().state_dict())


def arrays() -> dict[str, object]:
    return {name: tensor.numpy() for name, tensor in state().items()}


IMAGES = torch.zeros(1, 3, 8, 8)


class Quantisable(nn.Module):
    """A network with the stubs that PyTorch's quantisation asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = torch.ao.quantization.QuantStub()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(144, 3)
        self.dequant = torch.ao.quantization.DeQuantStub()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, between the stubs."""
        return self.dequant(self.fc(self.conv(self.quant(images)).flatten(1)))


def prepared() -> nn.Module:
    """The network in the midst of quantisation-aware training."""
    network = Quantisable().train()
    engine = next(name for name in torch.backends.quantized.supported_engines if name != "none")
    torch.backends.quantized.engine = engine
    network.qconfig = torch.ao.quantization.get_default_qat_qconfig(engine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.ao.quantization.prepare_qat(network, inplace=True)
    network(IMAGES)
    return network


def torchscript(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(small(), IMAGES), str(file))


def exported(file: Path) -> None:
    torch.export.save(torch.export.export(small(), (IMAGES,)), file)


def quantised(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torch.ao.quantization.convert(prepared().eval()).state_dict(), file)


def distributed(folder: Path) -> None:
    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(state(), checkpoint_id=folder, no_dist=True)


def pickled(protocol: int, content: Callable[[], object] = arrays) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(pickle.dumps(content(), protocol)) and None


def written(content: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content) and None


def tar(file: Path) -> None:
    content = save(state())
    with tarfile.open(file, "w") as archive:
        member = tarfile.TarInfo("model.safetensors")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def whole(file: Path) -> None:
    torch.save(small(), file)


def whole_in_a_training_file(file: Path) -> None:
    """As ultralytics and YOLOv5 save it."""
    torch.save({"epoch": 3, "model": small(), "optimizer": None}, file)


def of_scikit_learn(file: Path, with_joblib: bool = False) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = linear_model.LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    if with_joblib:
        pytest.importorskip("joblib").dump(model, file)
    else:
        file.write_bytes(pickle.dumps(model))


def torchserve(file: Path) -> None:
    # https://github.com/pytorch/serve/tree/master/model-archiver: a zip archive with MAR-INF/MANIFEST.json
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", "{}")
        archive.writestr("model.pt", "x")


def keras(file: Path) -> None:
    # https://keras.io/api/saving/: "a zip archive" of config.json, metadata.json and model.weights.h5
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "x")


def onnx(producer: bytes, version: int = 8) -> bytes:
    """The first fields of a ModelProto: ir_version (1), producer_name (2), producer_version (3), graph (7)."""
    fields = bytes([0x08, version, 0x12, len(producer)]) + producer
    return fields + b"\x1a\x052.9.0" + b"\x3a\x10" + bytes(16)


KINDS: dict[str, tuple[str, Callable[[Path], None], str, str]] = {
    "TorchScript": ("model.pt", torchscript, "a TorchScript program", "torch.jit.load"),
    "TorchScript named .pth": ("a.pth", torchscript, "a TorchScript program", "torch.jit.load"),
    "exported program": ("model.pt2", exported, "an exported program", "torch.export.load"),
    "exported program named .pt": ("model.pt", exported, "an exported program", "torch.export.load"),
    "NumPy archive": ("a.npz", lambda file: np.savez(file, **arrays()), "a NumPy archive", "save_file"),
    "compressed NumPy archive": (
        "a.npz", lambda file: np.savez_compressed(file, **arrays()), "a NumPy archive", "save_file"),
    "NumPy array": ("a.npy", lambda file: np.save(file, np.zeros((3, 4))), "a single NumPy array", "all weights"),
    "pickled state dict": ("a.pkl", pickled(4, state), "a pickle that torch.save did not write", "torch.save"),
    "quantised": ("a.pt", quantised, "is quantised", "before the quantisation"),
    "gzip": ("a.pth.gz", written(gzip.compress(save(state()))), "compressed (gzip)", "Unpack"),
    "bzip2": ("a.bz2", written(bz2.compress(save(state()))), "compressed (bzip2)", "Unpack"),
    "xz": ("a.safetensors", written(lzma.compress(save(state()))), "compressed (xz)", "Unpack"),
    "tar": ("a.pth", tar, "a tar archive", "Unpack"),
    "Keras": ("a.keras", keras, "a Keras model", "PyTorch checkpoint"),
    "HDF5": ("a.h5", written(b"\x89HDF\r\n\x1a\n" + bytes(100)), "an HDF5 file", "PyTorch checkpoint"),
    "HDF5 named .pt": ("a.pt", written(b"\x89HDF\r\n\x1a\n" + bytes(100)), "an HDF5 file", "PyTorch checkpoint"),
    "ONNX of PyTorch": ("a.onnx", written(onnx(b"pytorch")), "an ONNX graph", "made from"),
    "ONNX of another tool": ("model.bin", written(onnx(b"skl2onnx", 10)), "an ONNX graph", "made from"),
    "ONNX without a producer": ("a.onnx", written(b"\x08\x07\x3a\x20" + bytes(32)), "an ONNX graph", "made from"),
    "GGUF": ("a.gguf", written(b"GGUF\x03\0\0\0" + bytes(64)), "a GGUF file", "made from"),
    "TensorFlow Lite": ("a.tflite", written(b"\x1c\0\0\0TFL3" + bytes(64)), "a TensorFlow Lite model", "made from"),
    "TensorFlow": ("saved_model.pb", written(b"\x08\x01\x12\x80\xff" + bytes(64)), "a TensorFlow model", "PyTorch"),
    "Flax": ("flax_model.msgpack", written(b"\x82\xa6params\x81" + bytes(64)), "a Flax checkpoint", "PyTorch"),
    "whole network": ("model.pt", whole, "a whole pickled network", "state_dict()"),
    "whole network, older": (
        "model.pth", lambda file: torch.save(small(), file, _use_new_zipfile_serialization=False),
        "a whole pickled network", "state_dict()"),
    "whole network in a training file": (
        "last.pt", whole_in_a_training_file, "a training file with a whole pickled network under 'model'", "['model']"),
    "scikit-learn": ("model.pkl", of_scikit_learn, "a scikit-learn model", "neural network"),
    "joblib": ("model.joblib", lambda file: of_scikit_learn(file, True), "a scikit-learn model", "neural network"),
    "MXNet": ("net-0001.params", written(struct.pack("<QQ", 0x112, 0) + bytes(64)), "an MXNet checkpoint", "mxnet.nd"),
    "PaddlePaddle": ("model.pdparams", pickled(4), "a PaddlePaddle checkpoint", "paddle.load"),
    "ExecuTorch": ("model.pte", written(b"\x1c\0\0\0ET12" + bytes(64)), "an ExecuTorch program", "made from"),
    "ONNX Runtime": ("model.ort", written(b"\x1c\0\0\0ORTM" + bytes(64)), "ONNX Runtime's own format", "made from"),
    "OpenVINO": ("model.xml", written(b'<?xml version="1.0"?>\n<net name="m" version="11">'), "OpenVINO", "made from"),
    "ncnn": ("model.param", written(b"7767517\n75 83\nInput data 0 1 data"), "an ncnn model", "made from"),
    "Darknet": ("yolo.weights", written(struct.pack("<iiiq", 0, 2, 5, 32013312) + bytes(64)), "Darknet", "PyTorch"),
    "Caffe": ("net.caffemodel", written(b"\x0a\x07AlexNet" + bytes(64)), "a Caffe model", "PyTorch"),
    "Torch7": ("model.t7", written(struct.pack("<ii", 4, 1) + bytes(64)), "a Torch7 file", "PyTorch"),
    "Core ML": ("model.mlmodel", written(b"\x08\x01\x12\x0a" + bytes(64)), "a Core ML model", "made from"),
    "TensorRT": ("model.engine", written(b"ftrt" + bytes(64)), "a TensorRT engine", "made from"),
    "TensorFlow checkpoint": (
        "model.ckpt.data-00000-of-00001", written(bytes(64)), "a TensorFlow checkpoint", "tf.train.load_variable"),
    "TorchServe": ("model.mar", torchserve, "an archive of TorchServe", "Unpack"),
    "web page": ("a.safetensors", written(b"<!DOCTYPE html>\n<html><body>Sign in"), "a web page", "Download"),
    **{
        f"pickle of protocol {protocol}": (
            "model.pt", pickled(protocol), "a pickle that torch.save did not write", "torch.as_tensor")
        for protocol in range(6)
    },
}  # fmt: skip


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


@pytest.mark.parametrize(
    ("change", "message", "way_out"),
    [(observed, "quantisation-aware", "fake_quant"), (with_adapters, "holds adapters (LoRA)", "merge_and_unload")],
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
