"""A repair from start to end on scikit-learn's handwritten digits.

Data with wrong labels, a network that memorised them, and the commands that repair it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

from sapcli.activations.scoring import normalise
from sapcli.checkpoints.saving import write_safetensors
from sapcli.commands.line.console import Terminal
from sapcli.commands.line.next_step import tell_next
from sapcli.commands.line.outputs import write_text
from sapcli.datasets.dataset import Dataset, Role, open_dataset
from sapcli.datasets.images import Images
from sapcli.errors import DatasetError, SapError
from sapcli.machine.files import write_error
from sapcli.machine.progress import Progress
from sapcli.networks.preprocessing import Preprocessing
from sapcli.settings import ResultFormat

CLASSES = tuple(str(digit) for digit in range(10))
PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bilinear",
    crop_pct=1.0,
    crop_mode="center",
    source="the demo",
)
_ARCHITECTURE = "test_resnet"
_NOISE = 0.3
_SIZES = {"train": 1000, "val": 300, "test": 497}
_EPOCHS = 30
_BATCH_SIZE = 64
_LEARNING_RATE = 0.2
_WEIGHT_DECAY = 5e-4

_MARKER = "README.txt"
_MADE_HERE = "Made by `sap demo`, which makes everything here again when it runs. Nothing else needs this folder.\n"


def run_demo(folder: Path, output_format: ResultFormat = ResultFormat.TEXT) -> None:
    """Make noisy data and a network that memorised it in `folder`, then repair it with the real commands.

    Args:
        folder: A new or empty folder, or that of an earlier demo, which is made again.
        output_format: Whether the tables of the commands are the result, or one document of theirs.

    Raises:
        SapError: The folder holds something else or cannot be written, scikit-learn is not installed, or a command
            failed.
    """
    terminal = Terminal()
    data, checkpoint, corrected = folder / "data", folder / "model.safetensors", folder / "model.sap.safetensors"
    # On one thread the network comes out the same whatever the number of cores.
    torch.set_num_threads(1)
    make_model(folder, terminal)
    terminal.note("3. How good it is on the test images, whose labels are all right:")
    is_json = output_format is ResultFormat.JSON
    form = ("--format", "json" if is_json else "table")
    before = _run(terminal, "eval", str(checkpoint), str(data), *form, kept=is_json)
    terminal.note("4. The repair. Nothing tells it which labels are wrong; it trusts 300 of the 1,000 samples:")
    told = ("--format", "json") if is_json else ()
    repair = _run(terminal, "project", str(checkpoint), str(data), "-n", "300", *told, kept=is_json)
    terminal.note("5. The repaired network on the test images, and what it gained:")
    after = _run(terminal, "eval", str(corrected), str(data), "--baseline", str(checkpoint), *form, kept=is_json)
    tell_next(terminal, "suspects", corrected, data, "--html", "suspects.html")
    if is_json:
        from sapcli.reports.documents import DemoDocument, EvaluationDocument, ProjectDocument

        document = DemoDocument(
            folder=str(folder),
            before=EvaluationDocument.model_validate_json(before),
            repair=ProjectDocument.model_validate_json(repair),
            after=EvaluationDocument.model_validate_json(after),
        )
        write_text(None, document.to_json(), is_json=True)


def make_model(folder: Path, progress: Progress) -> None:
    """Write `data/`, `model.safetensors` and `config.json` of the demo.

    Args:
        folder: As for `run_demo`; what an earlier demo left there is removed.
        progress: Told what is made.

    Raises:
        SapError: The folder holds something else or cannot be written, or scikit-learn is not installed.
    """
    data, checkpoint = folder / "data", folder / "model.safetensors"
    try:
        _prepare(folder, [data, checkpoint, folder / "config.json", folder / "model.sap.safetensors"])
        progress.note(
            f"1. Handwritten digits, as PNG files in {data}: {_NOISE:.0%} of the train and val labels are wrong."
        )
        write_digits(data, _SIZES, _NOISE)
        progress.note(f"2. A network that memorises them, wrong labels and all: timm's {_ARCHITECTURE}.")
        module, reproduced = train_classifier(training_split(data), _EPOCHS, progress)
        save_classifier(module, folder)
    except OSError as error:
        raise write_error(str(error.filename or folder), error) from error
    progress.note(f"   It reproduces {reproduced:.1%} of the labels that it was given; saved as {checkpoint}.")


def write_digits(folder: Path, sizes: Mapping[str, int], noise: float, seed: int = 0) -> None:
    """Write some of scikit-learn's 1,797 handwritten digits as 8 x 8 PNG files, `SPLIT/DIGIT/NUMBER.png`.

    Args:
        folder: Where the splits go.
        sizes: How many images each split has. The labels of the one called `test` are all right.
        noise: The share of the images of every other split that stand in another digit's folder.
        seed: Decides which images go where.

    Raises:
        SapError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SapError(
            "the demo's images come with scikit-learn, which is not installed", "pip install 'sapcli[demo]'"
        ) from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(images))
    for split, size in sizes.items():
        members, order = order[:size], order[size:]
        given = digits.target[members]
        if split != "test":
            wrong = generator.permutation(size)[: round(noise * size)]
            # A shift by 1 to 9 is never the right digit, and each of the others as often.
            given[wrong] = (given[wrong] + generator.integers(1, len(CLASSES), len(wrong))) % len(CLASSES)
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for number, label in zip(members, given, strict=True):
            Image.fromarray(images[number]).save(folder / split / CLASSES[label] / f"{number:04}.png")


def training_split(folder: Path) -> Dataset:
    """The training split of what `write_digits` wrote."""
    dataset = open_dataset(folder, Role.LEARN, len(CLASSES), label_names=CLASSES)
    if dataset is None:
        raise DatasetError(f"{folder} has no training images", "run the demo again")
    return dataset


def train_classifier(
    dataset: Dataset, epochs: int, progress: Progress, *, learning_rate: float = _LEARNING_RATE, seed: int = 0
) -> tuple[nn.Module, float]:
    """Train a small residual network on a dataset's labels as they are, on the CPU.

    Args:
        dataset: The images.
        epochs: Passes over them; with enough, all labels are memorised.
        progress: Told of the images done.
        learning_rate: The peak of the one-cycle schedule.
        seed: Decides the initial weights and the order of the images.

    Returns:
        The network, in eval mode, and the share of the labels that it reproduced in the last pass.
    """
    decoded = Images(dataset, PREPROCESSING, batch_size=len(dataset.paths), workers=0)
    batch = next(decoded.batches())
    inputs, labels = normalise(batch.images, PREPROCESSING), batch.labels
    with torch.random.fork_rng(devices=[]), progress.stage("training", epochs * len(labels)) as advance:
        torch.manual_seed(seed)
        module: nn.Module = timm.create_model(_ARCHITECTURE, num_classes=len(CLASSES)).train()
        optimizer = torch.optim.SGD(
            module.parameters(), learning_rate, momentum=0.9, nesterov=True, weight_decay=_WEIGHT_DECAY
        )
        steps = epochs * -(-len(labels) // _BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        for _ in range(epochs):
            right = 0
            for chosen in torch.split(torch.randperm(len(labels)), _BATCH_SIZE):
                logits = module(inputs[chosen])
                right += int((logits.argmax(dim=1) == labels[chosen]).sum())
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(logits, labels[chosen]))
                optimizer.step()
                schedule.step()
                advance(len(chosen))
    return module.eval(), right / len(labels)


def save_classifier(module: nn.Module, folder: Path) -> None:
    """Write a network as `model.safetensors`, and beside it a `config.json` in timm's schema that says what it is."""
    settings = {key: value for key, value in asdict(PREPROCESSING).items() if key != "source"}
    config = {
        "architecture": _ARCHITECTURE,
        "num_classes": len(CLASSES),
        "label_names": CLASSES,
        "pretrained_cfg": settings,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_safetensors(folder / "model.safetensors", module.state_dict(), {"format": "pt"})


def _prepare(folder: Path, outputs: list[Path]) -> None:
    """Make the folder, or remove what an earlier demo left in it.

    Raises:
        SapError: It holds something that is not a demo's.
    """
    marker = folder / _MARKER
    if folder.exists() and not folder.is_dir():
        raise SapError(f"{folder} is a file", "name a folder for the demo")
    if folder.exists() and any(folder.iterdir()) and not (marker.is_file() and marker.read_text() == _MADE_HERE):
        raise SapError(f"{folder} holds files that are not a demo's", "name a new folder for the demo")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(_MADE_HERE)
    for output in outputs:
        if output.is_dir():
            shutil.rmtree(output)
        else:
            output.unlink(missing_ok=True)


def _run(terminal: Terminal, *arguments: str, kept: bool = False) -> bytes:
    """Show a command and run it as a process of its own, on the same terminal.

    Returns:
        What it wrote to stdout, where that is kept and not shown.

    Raises:
        SapError: It failed.
    """
    shown = f"sap {shlex.join(arguments)}"
    terminal.note("")
    terminal.note(f"$ {shown}")
    stdout = subprocess.PIPE if kept else None
    ended = subprocess.run([sys.executable, "-P", "-m", "sapcli", *arguments], check=False, stdout=stdout)
    terminal.note("")
    if ended.returncode != 0:
        raise SapError(f"`{shown}` ended with status {ended.returncode}", "its own message is above")
    return ended.stdout or b""
