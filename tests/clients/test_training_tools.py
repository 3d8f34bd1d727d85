"""The files of training tools, made by the tools themselves: read as they come; what is written loads back there."""

from __future__ import annotations

import argparse
import collections
import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.client_files import CLASSES, Pictures, evaluated, logits_of, numbers, randomised, write_pictures
from support.small_project import run_here
from torch import Tensor, nn
from torchvision import models, transforms

NETWORK = """
from torch import nn


def small(num_classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(128, num_classes),
    )
"""
HALF = ("--input-size", "32", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
TO_HALF = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Forty images of 32 pixels."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "data")


@pytest.fixture
def arch(tmp_path: Path) -> tuple[str, str]:
    """`--arch` with a network of a file."""
    (tmp_path / "network.py").write_text(NETWORK)
    return "--arch", f"{tmp_path / 'network.py'}:small"


def small(seed: int = 0) -> nn.Sequential:
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    torch.manual_seed(seed)
    network = scope["small"]()  # type: ignore[operator]
    assert isinstance(network, nn.Sequential)
    return randomised(network, seed)  # type: ignore[return-value]


def plain(network: nn.Module, pictures: Pictures, transform: transforms.Compose = TO_HALF) -> tuple[float, float]:
    """Top-1 and loss in plain PyTorch."""
    return numbers(logits_of(network, pictures, transform), pictures.label_numbers(CLASSES))


def assert_equal(found: tuple[float, float], expected: tuple[float, float]) -> None:
    assert found == pytest.approx(expected, abs=1e-4)


def repaired(checkpoint: Path, pictures: Pictures, *options: str, output: str = "out.safetensors") -> Path:
    """Repair with the samples and the alpha given, so that all weights change."""
    path = checkpoint.parent / output
    form = ("--format", "pth") if not output.endswith(".safetensors") else ()
    arguments = ("--alpha", "50", "-n", "12", "--workers", "0", "-o", path, *form, *options)
    outcome = run_here("project", checkpoint, pictures.folder, *arguments)
    assert outcome.status == 0, outcome.stderr
    return path


def assert_loads_back(written: dict[str, Tensor], network: nn.Module) -> nn.Module:
    """The written entries fill the network strictly, and are not those that it had."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(written, strict=True)
    assert any(not torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    return network


def trained_a_step(network: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with a state, as it is after the first step of a training."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    network.train()
    nn.functional.cross_entropy(network(torch.rand(8, 3, 32, 32)), torch.arange(8) % 4).backward()
    optimizer.step()
    network.eval()
    return optimizer


def test_timms_checkpoint_saver(tmp_path: Path, pictures: Pictures) -> None:
    """`arch` and `args` name the network and its preprocessing; the average is chosen by name."""
    import timm
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=4)
    average = ModelEmaV3(network)
    optimizer = trained_a_step(randomised(network, 1))
    args = argparse.Namespace(
        model="test_resnet", mean=[0.3, 0.4, 0.5], std=[0.2, 0.25, 0.3], img_size=None, input_size=[3, 48, 48],
        crop_pct=0.9, interpolation="bilinear", in_chans=None, num_classes=4, gp=None, bn_eps=None, model_kwargs={},
        dataset="", class_map="", data_dir=str(pictures.folder),
    )  # fmt: skip
    saver = CheckpointSaver(
        network, optimizer, args=args, model_ema=average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(0, metric=np.float64(30.5))
    file = tmp_path / "last.pth.tar"
    transform = timm.data.create_transform(
        (3, 48, 48), mean=args.mean, std=args.std, interpolation="bilinear", crop_pct=0.9
    )
    assert_equal(evaluated(file, pictures.folder), plain(network, pictures, transform))
    assert_equal(evaluated(file, pictures.folder, "--weights", "ema"), plain(average.module, pictures, transform))

    outcome = run_here("eval", file, pictures.folder, "--workers", "0")
    assert "timm:test_resnet (arch and args of the file)" in outcome.stderr.replace("args and args", "args")
    assert "state_dict_ema is an average of them: --weights ema" in outcome.stderr

    for options in ((), ("--weights", "ema")):
        output = repaired(file, pictures, "--force", *options)
        assert set(load_file(output)) == set(network.state_dict())
        loaded = timm.create_model("test_resnet", num_classes=4, checkpoint_path=str(output))
        assert_equal(evaluated(output, pictures.folder), plain(loaded, pictures, transform))


def test_torchvisions_reference_script(tmp_path: Path, pictures: Pictures) -> None:
    """https://github.com/pytorch/vision/blob/main/references/classification/train.py."""
    torch.manual_seed(0)
    network = randomised(models.shufflenet_v2_x0_5(num_classes=4))
    average = torch.optim.swa_utils.AveragedModel(models.shufflenet_v2_x0_5(num_classes=4), use_buffers=True)
    optimizer = trained_a_step(network)
    args = argparse.Namespace(
        model="shufflenet_v2_x0_5", val_resize_size=40, val_crop_size=32, train_crop_size=32, interpolation="bilinear",
        data_path="data", device="cpu", weights=None,
    )  # fmt: skip
    content = {
        "model": network.state_dict(),
        "model_ema": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "scaler": {"scale": 65536.0},
        "epoch": 2,
        "args": args,
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    transform = transforms.Compose(
        [
            transforms.Resize(40, transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    file = tmp_path / "checkpoint.pth"
    assert_equal(evaluated(file, pictures.folder), plain(network, pictures, transform))
    assert_equal(evaluated(file, pictures.folder, "--weights", "ema"), plain(average.module, pictures, transform))
    written = load_file(repaired(file, pictures))
    assert_loads_back(written, models.shufflenet_v2_x0_5(num_classes=4))
    # The average's own names begin with `module.`, and it counts; the network's do not.
    written = load_file(repaired(file, pictures, "--weights", "ema", output="ema.safetensors"))
    assert_loads_back(written, models.shufflenet_v2_x0_5(num_classes=4))

    kept = load_file(repaired(file, pictures, "--keep-extra", output="extra.safetensors"))
    assert set(network.state_dict()) < set(kept)
    assert any(name.startswith("optimizer.state.0.") for name in kept)

    container = torch.load(repaired(file, pictures, output="again.pth"), weights_only=False)
    assert container.keys() == content.keys()
    assert container["args"] == args
    assert_loads_back(container["model"], network)
    optimizer.load_state_dict(container["optimizer"])
    assert all(torch.equal(container["model_ema"][name], tensor) for name, tensor in content["model_ema"].items())


@pytest.mark.parametrize("parallel", [False, True])
def test_pytorchs_imagenet_example(tmp_path: Path, pictures: Pictures, arch: tuple[str, str], parallel: bool) -> None:
    """https://github.com/pytorch/examples/blob/main/imagenet/main.py: its best accuracy is a tensor."""
    network = small()
    model = nn.DataParallel(network) if parallel else network
    optimizer = trained_a_step(network)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    content = {
        "epoch": 1,
        "arch": "resnet50",
        "state_dict": model.state_dict(),
        "best_acc1": torch.tensor(31.5),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    torch.save(content, tmp_path / "model_best.pth.tar")
    assert_equal(evaluated(tmp_path, pictures.folder, *arch, *HALF), plain(network, pictures))
    output = repaired(tmp_path / "model_best.pth.tar", pictures, *arch, *HALF)
    assert_loads_back(load_file(output), model)
    assert_equal(evaluated(output, pictures.folder, *arch), plain(network, pictures))
    container = torch.load(repaired(tmp_path / "model_best.pth.tar", pictures, *arch, *HALF, output="again.pth.tar"))
    assert container["best_acc1"] == 31.5
    assert all(torch.equal(load_file(output)[name], tensor) for name, tensor in container["state_dict"].items())


def test_lightning(tmp_path: Path, pictures: Pictures, arch: tuple[str, str]) -> None:
    """A weighted loss, a path and a number of NumPy's among the hyperparameters, and a stopping callback."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self, weights: Tensor, root: Path, rate: object, since: object) -> None:  # noqa: ARG002 - what a caller gives is saved
            super().__init__()
            self.save_hyperparameters()
            self.model = small()
            self.loss_fn = nn.CrossEntropyLoss(weight=weights)
            self.register_buffer("seen", torch.zeros(4, 4))

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:  # noqa: ARG002
            loss: Tensor = self.loss_fn(self.model(batch[0]), batch[1])
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-4)

    module = Module(torch.tensor([1.0, 2.0, 3.0, 4.0]), tmp_path, np.float32(0.1), datetime.date(2024, 2, 29))
    data = torch.utils.data.TensorDataset(torch.rand(8, 3, 32, 32), torch.arange(8) % 4)
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, 4))
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    file = tmp_path / "kept.ckpt"
    network = module.model.eval()
    assert_equal(evaluated(file, pictures.folder, *arch, *HALF), plain(network, pictures))
    output = repaired(file, pictures, *arch, *HALF)
    written = load_file(output)
    assert_loads_back(written, small())
    network.load_state_dict(written)
    assert_equal(evaluated(output, pictures.folder, *arch), plain(network, pictures))
    assert run_here("verify", output, "--input", file).status == 0

    again = repaired(file, pictures, *arch, *HALF, output="again.ckpt")
    loaded = Module.load_from_checkpoint(again, weights_only=False)
    assert all(torch.equal(loaded.model.state_dict()[name], tensor) for name, tensor in written.items())
    assert loaded.hparams["root"] == tmp_path


def test_accelerate(tmp_path: Path, pictures: Pictures, arch: tuple[str, str]) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    network = small()
    model, _optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), 0.1, momentum=0.9))
    accelerator.save_model(model, str(tmp_path / "one"))
    accelerator.save_model(model, str(tmp_path / "shards"), max_shard_size="4KB")
    for name, safe in (("state", True), ("pickled", False)):
        accelerator.save_state(str(tmp_path / name), safe_serialization=safe)
    for folder in ("one", "shards", "state", "pickled"):
        found = evaluated(tmp_path / folder, pictures.folder, *arch, *HALF)
        assert_equal(found, plain(network, pictures))
    written = repaired(tmp_path / "pickled", pictures, *arch, *HALF)
    assert_loads_back(load_file(written), model)


def test_fastai(tmp_path: Path, pictures: Pictures, arch: tuple[str, str]) -> None:
    vision = pytest.importorskip("fastai.vision.all")
    loaders = vision.ImageDataLoaders.from_folder(pictures.folder, valid_pct=0.2, bs=8, num_workers=0, seed=0)
    network = small()
    learner = vision.Learner(loaders, network, loss_func=nn.CrossEntropyLoss(), path=tmp_path, model_dir=".")
    expected = plain(network, pictures)
    for with_opt in (False, True):
        learner.create_opt()
        file = learner.save(f"learned-{with_opt}", with_opt=with_opt)
        assert_equal(evaluated(file, pictures.folder, *arch, *HALF), expected)
        assert_loads_back(load_file(repaired(file, pictures, "--force", *arch, *HALF)), small())
    learner.export(tmp_path / "export.pkl")
    outcome = run_here("eval", tmp_path / "export.pkl", pictures.folder)
    assert outcome.status == 1
    assert "fastai" in outcome.stderr
    assert "load_learner" in outcome.stderr


def test_two_networks_are_asked_for_by_name(tmp_path: Path, pictures: Pictures, arch: tuple[str, str]) -> None:
    """As co-teaching and distillation save them: under keys of their own, or before the names of one state dict."""
    one, other = small(), small(7)
    torch.save({"net1": one.state_dict(), "net2": other.state_dict(), "epoch": 3}, tmp_path / "keys.pth")
    flat = {
        f"{name}.{key}": value
        for name, net in (("student", one), ("teacher", other))
        for key, value in net.state_dict().items()
    }
    torch.save({"state_dict": flat, "pytorch-lightning_version": "2.6.0"}, tmp_path / "flat.ckpt")
    for file, names in (("keys.pth", ("net1", "net2")), ("flat.ckpt", ("student", "teacher"))):
        outcome = run_here("eval", tmp_path / file, pictures.folder, *arch, *HALF)
        assert outcome.status == 1
        assert all(name in outcome.stderr for name in (*names, "--weights")), outcome.stderr
        for name, network in zip(names, (one, other), strict=True):
            found = evaluated(tmp_path / file, pictures.folder, *arch, *HALF, "--weights", name)
            assert_equal(found, plain(network, pictures))
    outcome = run_here("eval", tmp_path / "keys.pth", pictures.folder, *arch, *HALF, "--weights", "net3")
    assert outcome.status == 2
    assert "net1, net2" in outcome.stderr


def test_an_average_alone(tmp_path: Path, pictures: Pictures, arch: tuple[str, str]) -> None:
    torch.save({"state_dict_ema": small().state_dict(), "epoch": 3}, tmp_path / "ema.pth")
    outcome = run_here("eval", tmp_path / "ema.pth", pictures.folder, *arch, *HALF, "--workers", "0")
    assert "the weights are those of state_dict_ema, an average" in outcome.stderr
    assert_equal(evaluated(tmp_path / "ema.pth", pictures.folder, *arch, *HALF), plain(small(), pictures))


def test_harmless_types_beside_the_weights(tmp_path: Path, pictures: Pictures, arch: tuple[str, str]) -> None:
    """NumPy's numbers and arrays, paths, collections and dates are read, and written back as what they were."""
    losses: collections.defaultdict[str, list[float]] = collections.defaultdict(list, train=[0.5])
    beside = {
        "numbers": [np.float64(0.5), np.int64(3), np.bool_(True), np.float16(1)],
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "texts": np.array(["a", "bc"]),
        "path": Path("runs") / "1",
        "recent": collections.deque([1, 2, 3], maxlen=4),
        "losses": losses,
        "counts": collections.Counter(a=3),
        "when": datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "args": argparse.Namespace(lr=0.1, milestones=(3, 4), out=Path("x")),
    }
    torch.save({"state_dict": small().state_dict(), **beside}, tmp_path / "a.pth")
    assert_equal(evaluated(tmp_path / "a.pth", pictures.folder, *arch, *HALF), plain(small(), pictures))
    again = torch.load(repaired(tmp_path / "a.pth", pictures, *arch, *HALF, output="again.pth"), weights_only=False)
    array = again.pop("array")
    texts = again.pop("texts")
    assert np.array_equal(array, beside.pop("array"))  # type: ignore[arg-type]
    assert np.array_equal(texts, beside.pop("texts"))  # type: ignore[arg-type]
    del again["state_dict"]
    path = again.pop("path")
    assert str(path) == str(beside.pop("path"))
    assert str(again["args"].out) == "x"
    again["args"].out = beside["args"].out  # type: ignore[attr-defined]
    assert again == beside
    assert {type(again[name]) for name in ("recent", "losses")} == {collections.deque, collections.defaultdict}
    assert again["recent"].maxlen == 4
