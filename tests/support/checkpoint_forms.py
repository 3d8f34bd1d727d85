"""Every form of checkpoint that `docs/inputs.md` has a row for, made by the tool that writes it."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from support.other_files import KINDS, distributed, prepared
from torch import nn

OPTIONS = ("--input-size", "32", "--mean", "0.5", "--std", "0.5")
NETWORK = """
from torch import nn


def small(num_classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(128, num_classes),
    )
"""


def small(seed: int = 0) -> nn.Sequential:
    """The network of `NETWORK`, with weights of its own."""
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    torch.manual_seed(seed)
    network = scope["small"]()  # type: ignore[operator]
    assert isinstance(network, nn.Sequential)
    return network.eval()


@dataclass(frozen=True)
class Form:
    """A form: what makes it in a folder and returns what to name, and with which options it is given."""

    make: Callable[[Path], str | Path]
    options: tuple[str, ...] = OPTIONS
    needs_arch: bool = True


def _saved(name: str, content: Callable[[], Any], **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(content(), folder / name, **options)
        return folder / name

    return make


def _weights() -> dict[str, torch.Tensor]:
    return dict(small().state_dict())


def _plain(folder: Path) -> Path:
    save_file(_weights(), folder / "model.safetensors")
    return folder / "model.safetensors"


def _shards(folder: Path) -> Path:
    weights = _weights()
    named = {}
    for number, part in enumerate((list(weights)[::2], list(weights)[1::2]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / shard)
        named |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    return folder


def _pickled_shards(folder: Path) -> Path:
    weights = _weights()
    for number, part in enumerate((list(weights)[::2], list(weights)[1::2]), 1):
        torch.save({name: weights[name] for name in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    named = {name: f"pytorch_model-0000{place % 2 + 1}-of-00002.bin" for place, name in enumerate(weights)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": named}))
    return folder


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def _example() -> dict[str, object]:
    network = small()
    return {
        "epoch": 3, "arch": "resnet18", "state_dict": network.state_dict(), "best_acc1": torch.tensor(31.5),
        "optimizer": _optimizer(network).state_dict(),
    }  # fmt: skip


def _reference() -> dict[str, object]:
    network = small()
    return {
        "model": network.state_dict(), "optimizer": _optimizer(network).state_dict(), "lr_scheduler": {}, "epoch": 3,
        "args": argparse.Namespace(model="resnet18", output_dir=Path()),
    }  # fmt: skip


def _timm(folder: Path) -> Path:
    from timm.utils import CheckpointSaver

    network = small()
    saver = CheckpointSaver(network, _optimizer(network), checkpoint_dir=str(folder), recovery_dir=str(folder))
    saver.save_checkpoint(0, metric=30.0)
    return folder / "last.pth.tar"


def _lightning(folder: Path) -> Path:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self, root: Path) -> None:  # noqa: ARG002 - what a caller gives is saved
            super().__init__()
            self.save_hyperparameters()
            self.model = small()
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(4))

        def training_step(self, batch: Any, index: int) -> Any:  # noqa: ARG002
            return self.criterion(self.model(batch[0]), batch[1]) * 0

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.0)

    trainer = lightning.Trainer(
        max_steps=0, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4))
    trainer.fit(Module(folder), torch.utils.data.DataLoader(data, 4))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def _accelerate(save_state: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
        network = accelerator.prepare(small())
        if save_state:
            accelerator.save_state(str(folder / "saved"))
        else:
            accelerator.save_model(network, str(folder / "saved"))
        return folder / "saved"

    return make


def _fastai(export: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        vision = pytest.importorskip("fastai.vision.all")
        for name in ("a", "b", "c", "d"):
            (folder / "pictures" / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(folder / "pictures" / name / f"{number}.png")
        loaders = vision.ImageDataLoaders.from_folder(folder / "pictures", valid_pct=0.5, bs=2, num_workers=0, seed=0)
        learner = vision.Learner(loaders, small(), loss_func=nn.CrossEntropyLoss(), path=folder, model_dir=".")
        if export:
            learner.export(folder / "export.pkl")
            return folder / "export.pkl"
        return Path(learner.save("learned", with_opt=False))

    return make


def _in_folder(make: Callable[[Path], str | Path], *more: str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        make(folder)
        for name in more:
            torch.save(_weights(), folder / name)
        return folder

    return made


def _transformers(kind: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pytest.importorskip("transformers")
        from support.tiny_transformers import save_classifier

        save_classifier(folder, kind, **options)
        return folder

    return make


def _trainers(folder: Path) -> Path:
    made = _transformers("ResNetForImageClassification")(folder / "checkpoint-20")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"state": {}}, made / name)
    (made / "trainer_state.json").write_text("{}")
    return made


def _another_transformers(folder: Path) -> Path:
    _transformers("ViTForImageClassification")(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["ViTForMaskedImageModeling"]}))
    return folder


def _hub_folder(folder: Path) -> Path:
    import timm

    save_file(timm.create_model("test_resnet", num_classes=4).state_dict(), folder / "model.safetensors")
    settings = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "config.json").write_text(json.dumps({"architecture": "test_resnet", "pretrained_cfg": settings}))
    return folder


def _other_config(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"architecture": {"layers": [1, 2]}, "model_args": []}))
    return _plain(folder)


def _lora(folder: Path) -> Path:
    weights = {
        "base_model.model.5.lora_A.weight": torch.zeros(2, 128),
        "base_model.model.5.lora_B.weight": torch.zeros(4, 2),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    return folder


def _quantisation_aware(folder: Path) -> Path:
    observers = {name: torch.zeros(1) for name in prepared().state_dict() if "fake_quant" in name}
    save_file({**_weights(), **observers}, folder / "model.safetensors")
    return folder / "model.safetensors"


def _unmerged(folder: Path) -> Path:
    weights = {name.replace("5.weight", "5.base_layer.weight"): tensor for name, tensor in _weights().items()}
    weights |= {"5.lora_A.default.weight": torch.zeros(2, 128), "5.lora_B.default.weight": torch.zeros(4, 2)}
    save_file(weights, folder / "model.safetensors")
    return folder / "model.safetensors"


def _named(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _kind(name: str) -> Form:
    file, write, _, _ = KINDS[name]

    def make(folder: Path) -> Path:
        write(folder / file)
        return folder / file

    return Form(make)


def _distributed(folder: Path) -> Path:
    distributed(folder / "dcp")
    return folder / "dcp"


def _average(folder: Path) -> Path:
    return _saved("ema.pth", lambda: {"state_dict": small(1).state_dict(), "state_dict_ema": _weights()})(folder)


def _two(folder: Path) -> Path:
    return _saved("two.pth", lambda: {"net1": _weights(), "net2": small(1).state_dict()})(folder)


FORMS: dict[str, Form] = {
    "`model.safetensors`": Form(_plain),
    "shards and `model.safetensors.index.json`": Form(_shards),
    "`model.pt`: a state dict": Form(_saved("model.pt", _weights)),
    "`model.pth` of PyTorch before 1.6": Form(_saved("model.pth", _weights, _use_new_zipfile_serialization=False)),
    "`pytorch_model.bin`": Form(_in_folder(_saved("pytorch_model.bin", _weights))),
    "shards and `pytorch_model.bin.index.json`": Form(_pickled_shards),
    "`checkpoint.pth.tar` of PyTorch's ImageNet example": Form(_saved("checkpoint.pth.tar", _example)),
    "`checkpoint.pth` of torchvision's reference scripts": Form(_saved("checkpoint.pth", _reference)),
    "`last.pth.tar` of timm's training script": Form(_timm),
    "`last.ckpt` of Lightning, with a weighted loss and a path": Form(_lightning),
    "a folder of accelerate's `save_model`": Form(_accelerate(save_state=False)),
    "a folder of accelerate's `save_state`": Form(_accelerate(save_state=True)),
    "`learned.pth` of fastai's `save(with_opt=False)`": Form(_fastai(export=False)),
    "a training file with an average, `--weights ema`": Form(_average, (*OPTIONS, "--weights", "ema")),
    "a training file with nothing but an average": Form(_saved("ema.pth", lambda: {"model_ema": _weights()})),
    "two networks in one file, `--weights net1`": Form(_two, (*OPTIONS, "--weights", "net1")),
    "two networks in one file": Form(_two),
    "names of `DataParallel` (`module.`)": Form(
        _saved("model.pth", lambda: {f"module.{name}": tensor for name, tensor in _weights().items()})),
    "names of `torch.compile` (`_orig_mod.`)": Form(
        _saved("model.pth", lambda: {f"_orig_mod.{name}": tensor for name, tensor in _weights().items()})),
    "an `AveragedModel`": Form(
        _saved("swa.pth", lambda: torch.optim.swa_utils.AveragedModel(small(), use_buffers=True).state_dict())),
    "NumPy's numbers, paths and dates beside the weights": Form(
        _saved("model.pth", lambda: {"state_dict": _weights(), "acc": np.float64(30.5), "out": Path("runs")})),
    "half precision": Form(
        _saved("model.pth", lambda: {name: tensor.half() if tensor.is_floating_point() else tensor
                                     for name, tensor in _weights().items()})),
    "a folder whose only checkpoint is `last.ckpt`": Form(_in_folder(_saved("last.ckpt", _weights))),
    "a folder with several checkpoints": Form(_in_folder(_saved("last.ckpt", _weights), "best.ckpt")),
    "a folder of transformers": Form(_transformers("ViTForImageClassification"), (), needs_arch=False),
    "the same in shards": Form(
        _transformers("ViTForImageClassification", max_shard_size="10KB"), (), needs_arch=False),
    "`checkpoint-20` of transformers' Trainer": Form(_trainers, (), needs_arch=False),
    "a folder of transformers without a classifier": Form(_another_transformers, (), needs_arch=False),
    "a folder as timm saves it for the Hub": Form(_hub_folder, (), needs_arch=False),
    "`hf-hub:OWNER/NAME` that is not in the cache, offline": Form(
        lambda _folder: "hf-hub:nobody-at-all/nothing", (), needs_arch=False),
    "a `config.json` of another schema beside the file, with `--arch`": Form(_other_config),
    "TorchScript (`torch.jit.save`)": _kind("TorchScript"),
    "an exported program (`torch.export.save`)": _kind("exported program"),
    "a distributed checkpoint (`.distcp`)": Form(_distributed),
    "a whole network (`torch.save(model)`)": _kind("whole network"),
    "a whole network in a training file (YOLO)": _kind("whole network in a training file"),
    "`export.pkl` of fastai": Form(_fastai(export=True)),
    "a quantised state dict": _kind("quantised"),
    "quantisation-aware training, with observers": Form(_quantisation_aware),
    "a LoRA adapter alone": Form(_lora),
    "LoRA beside the weights": Form(_unmerged),
    "a pickle of arrays": _kind("pickle of protocol 4"),
    "a NumPy archive": _kind("NumPy archive"),
    "a NumPy array": _kind("NumPy array"),
    "a scikit-learn model": _kind("scikit-learn"),
    "ONNX": _kind("ONNX of PyTorch"),
    "ONNX Runtime's `.ort`": _kind("ONNX Runtime"),
    "HDF5": _kind("HDF5"),
    "Keras": _kind("Keras"),
    "TensorFlow's SavedModel": _kind("TensorFlow"),
    "TensorFlow's checkpoint": _kind("TensorFlow checkpoint"),
    "TensorFlow Lite": _kind("TensorFlow Lite"),
    "Flax": _kind("Flax"),
    "PaddlePaddle": _kind("PaddlePaddle"),
    "MXNet": _kind("MXNet"),
    "GGUF": _kind("GGUF"),
    "Core ML": _kind("Core ML"),
    "TensorRT": _kind("TensorRT"),
    "OpenVINO": _kind("OpenVINO"),
    "ExecuTorch": _kind("ExecuTorch"),
    "a Git LFS pointer": Form(_named("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0")),
    "a compressed file": Form(lambda folder: _named("model.pth.gz", gzip.compress(save(_weights())))(folder)),
    "a web page": _kind("web page"),
}  # fmt: skip
"""By the text of the row."""
