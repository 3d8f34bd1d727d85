"""Files of other kinds, made by the tools that write them where they are installed, else by their documented form."""

from __future__ import annotations

import bz2
import gzip
import io
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
from safetensors.torch import save
from torch import Tensor, nn


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
