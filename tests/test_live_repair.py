"""A module and a dataset in memory: repaired as the same weights and images are from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from support.digits import Trained
from support.small_project import Project, make_project
from support.small_project import network as colour_network
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional

from sapcli import PreprocessingOverrides, repair
from sapcli.errors import ArchitectureError, CheckpointError, DatasetError, NumericsError
from sapcli.machine.progress import SilentProgress
from sapcli.settings import SelectionSettings

# The demo's preprocessing: images of 8 pixels are resized to 32.
PREPROCESSING = PreprocessingOverrides(
    input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=1.0
)
AS_GIVEN: dict[str, Any] = {"trusted_count": 60, "alpha": 3000}


@pytest.fixture(scope="module")
def from_files(noisy: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of a repair from files."""
    output = tmp_path_factory.mktemp("files") / "repaired.safetensors"
    return load_file(repair(noisy.checkpoint, noisy.data, **AS_GIVEN).save(output))


def trained_module(noisy: Trained) -> nn.Module:
    """The network with the weights of the checkpoint, as a user has it after the training."""
    module: nn.Module = timm.create_model("test_resnet", num_classes=10)
    module.load_state_dict(load_file(noisy.checkpoint))
    return module.train()


def ready(folder: Path) -> TensorDataset:
    """The images of a folder as the inputs of the network, by plain Pillow and PyTorch."""
    inputs, labels = [], []
    for path, label in ImageFolder(folder).samples:
        resized = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        inputs.append((functional.to_tensor(resized) - 0.5) / 0.5)
        labels.append(label)
    return TensorDataset(torch.stack(inputs), torch.tensor(labels))


def assert_same_weights(module: nn.Module, expected: dict[str, Tensor]) -> None:
    state = module.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-6)


def test_pictures_in_memory_give_the_weights_of_the_files(noisy: Trained, from_files: dict[str, Tensor]) -> None:
    module = trained_module(noisy)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    training, validation = ImageFolder(noisy.data / "train"), ImageFolder(noisy.data / "val")
    data: dict[str, Any] = {"dataset": training, "validation": validation, "preprocessing": PREPROCESSING}
    searched = repair(module=module, trusted_count=60, **data)
    assert searched.outcome.choice == repair(noisy.checkpoint, noisy.data, trusted_count=60).outcome.choice
    if not searched.outcome.changed:
        assert_same_weights(module, before)
    module.load_state_dict(before)
    repaired = repair(module=module, **data, **AS_GIVEN)
    assert repaired.module is module
    assert not module.training
    assert repaired.outcome.changed
    assert any(not torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert_same_weights(module, from_files)


def test_ready_tensors_give_the_weights_of_the_files(
    noisy: Trained, from_files: dict[str, Tensor], tmp_path: Path
) -> None:
    module = trained_module(noisy)
    training, validation = ready(noisy.data / "train"), ready(noisy.data / "val")
    repaired = repair(module=module, dataset=training, validation=validation, **AS_GIVEN)
    assert_same_weights(module, from_files)
    saved = load_file(repaired.save(tmp_path / "repaired.safetensors"))
    assert_same_weights(module, saved)


def test_a_file_and_a_dataset_and_a_module_and_a_folder(
    noisy: Trained, from_files: dict[str, Tensor], tmp_path: Path
) -> None:
    pictures = ImageFolder(noisy.data / "train"), ImageFolder(noisy.data / "val")
    tensors = ready(noisy.data / "train"), ready(noisy.data / "val")
    for training, validation in (pictures, tensors):
        repaired = repair(noisy.checkpoint, dataset=training, validation=validation, **AS_GIVEN)
        assert_same_weights(repaired.module, from_files)
    saved = repaired.save(tmp_path / "of_tensors.safetensors")
    assert (
        repair(saved, noisy.data, trusted_count=60, alpha=1e9, preprocessing=PREPROCESSING).outcome.before is not None
    )
    module = trained_module(noisy)
    repair(module=module, data=noisy.data, preprocessing=PREPROCESSING, **AS_GIVEN)
    assert_same_weights(module, from_files)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project of three colours."""
    return make_project(tmp_path_factory.mktemp("live") / "project")


class Listed(Dataset[Any]):
    """Pairs as they are handed over."""

    def __init__(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.pairs[index]


def pairs_of(colours: Project, split: str = "train") -> list[tuple[Image.Image, int]]:
    """The images of a split with their labels."""
    return [(image.copy(), label) for image, label in ImageFolder(colours.data / split)]


def colour_module(colours: Project) -> nn.Module:
    """The network of three colours, trained."""
    module = colour_network()
    module.load_state_dict(load_file(colours.checkpoint))
    return module


def test_arrays_and_tensors_of_8_bits_are_pictures(colours: Project) -> None:
    results = []
    pairs = pairs_of(colours)
    forms = (
        pairs,
        [(functional.pil_to_tensor(image), torch.tensor(label)) for image, label in pairs],
        Listed(
            [
                (torch.from_numpy(functional.pil_to_tensor(image).permute(1, 2, 0).numpy()).numpy(), label)
                for image, label in pairs
            ]
        ),
    )
    for dataset in forms:
        module = colour_module(colours)
        repair(module=module, dataset=dataset, alpha=30, trusted_count=30)
        results.append(module.state_dict())
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_a_module_of_half_precision_stays_one(colours: Project) -> None:
    module = colour_module(colours).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    repair(module=module, dataset=pairs_of(colours), alpha=30, trusted_count=30)
    after = module.state_dict()
    assert {name: tensor.dtype for name, tensor in after.items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert not torch.equal(after["4.weight"], before["4.weight"])
    assert torch.equal(after["4.bias"], before["4.bias"])
    assert optimizer.param_groups[0]["params"][0] is next(module.parameters())


def test_training_images_that_are_validation_images_are_not_trusted(colours: Project) -> None:
    training = pairs_of(colours)
    repaired = repair(
        module=colour_module(colours), dataset=training, validation=training[::2], alpha=30, trusted_count=30
    )
    paths = {f"sample {number}" for number in range(0, len(training), 2)}
    trusted = repaired.session.select(SelectionSettings(30))
    assert not paths & {sample.path for sample in trusted.samples}


class Augmenting(Listed):
    """Another image each time."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        _image, label = self.pairs[index]
        return torch.rand(3, 8, 8), label


class Failing(Listed):
    """Every third sample cannot be read, and every fifth has no label."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if index % 3 == 0:
            raise OSError("the disk is gone")
        image, label = self.pairs[index]
        return image, -1 if index % 5 == 0 else label


def test_samples_that_cannot_be_read_are_left_out_and_told_of(colours: Project) -> None:
    told: list[str] = []

    class Listener(SilentProgress):
        def warn(self, text: str) -> None:
            told.append(text)

    pairs = pairs_of(colours)
    module, expected = colour_module(colours), colour_module(colours)
    repair(module=module, dataset=Failing(pairs), alpha=30, trusted_count=30, progress=Listener())
    left = [pair for index, pair in enumerate(pairs) if index % 3 and index % 5]
    repair(module=expected, dataset=left, alpha=30, trusted_count=30)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in module.state_dict().items())
    assert any("40 samples cannot be read and are left out: 0 (OSError: the disk is gone)" in text for text in told)
    assert any("16 samples have the label -1" in text for text in told)


def test_a_part_of_a_dataset_knows_its_classes(colours: Project) -> None:
    folder = ImageFolder(colours.data / "train")
    repaired = repair(
        module=colour_module(colours), dataset=Subset(folder, range(0, 120, 2)), alpha=30, trusted_count=30
    )
    assert repaired.session.training.classes == ("blue", "green", "red")


PICTURE = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "empty"),
        (iter([]), "numbers"),
        ([PICTURE], "sample 0 of the dataset: it is an Image, not a pair"),
        ([(PICTURE, 7)], "sample 0 of the dataset: its label is 7, and the network has the outputs 0 to 2"),
        ([(PICTURE, 0.5)], "its label is a float"),
        ([(PICTURE, torch.tensor([0.0, 1.0, 0.0]))], r"its label is a tensor \[3\]"),
        ([("cat.png", 0)], "none of its 1 samples can be used: it is a str, not an image"),
        (Augmenting([(PICTURE, 0)] * 9), "another image each time"),
        ([(torch.zeros(2, 3, 8, 8), 0)], r"tensors of the shape \(2, 3, 8, 8\)"),
        ([(torch.zeros(1, 4, 4), 0)], "the module cannot run on images of 1x4x4"),
    ],
)
def test_what_is_no_dataset_is_an_error_and_changes_nothing(colours: Project, dataset: Any, message: str) -> None:
    module = colour_module(colours)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises((DatasetError, ArchitectureError), match=message) as caught:
        repair(module=module, dataset=dataset)
    assert caught.value.hint
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_module_that_is_none_is_an_error(colours: Project) -> None:
    dataset = pairs_of(colours)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        repair(module=nn.Flatten(), dataset=dataset)
    with pytest.raises(ArchitectureError, match="no values yet"):
        repair(module=nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), dataset=dataset)
    broken = colour_module(colours)
    with torch.no_grad():
        broken[4].bias[1] = torch.nan  # type: ignore[index]
    with pytest.raises(NumericsError, match=r"4\.bias of the module"):
        repair(module=broken, dataset=dataset)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"data": "data", "dataset": [(PICTURE, 0)], "checkpoint": "model.safetensors"},
        {"checkpoint": "model.safetensors", "module": nn.Linear(1, 1), "data": "data"},
        {"module": nn.Linear(1, 1), "data": "data", "arch": "timm:resnet18"},
        {"checkpoint": "model.safetensors", "dataset": [(PICTURE, 0)], "validation": "val"},
        {"checkpoint": "model.safetensors", "dataset": [(PICTURE, 0)], "class_map": "map.csv"},
        {"checkpoint": "model.safetensors", "data": "data", "validation": [(PICTURE, 0)]},
    ],
)
def test_arguments_that_do_not_go_together_are_an_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        repair(**arguments)


def test_a_repair_that_fails_puts_the_module_back(colours: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from sapcli.repairs import pipeline

    def fail(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "measure", fail)
    module = colour_module(colours).half()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        repair(module=module, dataset=pairs_of(colours), validation=pairs_of(colours, "val"), alpha=3, trusted_count=30)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float16}


class KeepsItsTable(nn.Module):
    """A network that makes a table of a weight once for each number of images, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(8))
        self.f = nn.Linear(3 * 8 * 8, 3)
        self.tables: dict[int, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        if len(x) not in self.tables:
            self.tables[len(x)] = self.scale.tanh()[:, None, None] * 1.0
        logits: torch.Tensor = self.f((x * self.bias * self.tables[len(x)]).flatten(1))
        return logits


def test_what_a_module_keeps_can_be_differentiated_afterwards() -> None:
    torch.manual_seed(0)
    images = torch.randn(30, 3, 8, 8)
    samples = TensorDataset(images, torch.arange(30) % 3)
    module = KeepsItsTable()
    repair(module=module, dataset=samples, trusted_count=9, alpha=100)
    assert len(module.tables) > 1
    for count in module.tables:
        module(images[:count]).sum().backward()  # of what is made in inference mode PyTorch refuses gradients
    assert module.f.weight.grad is not None
