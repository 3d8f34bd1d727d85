"""A small data folder with wrong labels, and a network that was trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sapcli.commands.demo import save_classifier, train_classifier, training_split, write_digits
from sapcli.machine.progress import SilentProgress

SIZES = {"train": 300, "val": 100, "test": 100}
_EPOCHS = 20


@dataclass(frozen=True)
class Trained:
    """A network trained on a data folder.

    Attributes:
        data: With train/, val/ and test/.
        checkpoint: model.safetensors, beside its config.json.
        reproduced: The share of the training labels that it reproduced in the last pass.
    """

    data: Path
    checkpoint: Path
    reproduced: float


def train(folder: Path, noise: float) -> Trained:
    """Write digits and train a network on them, in a few seconds."""
    data = folder / "data"
    write_digits(data, SIZES, noise)
    module, reproduced = train_classifier(training_split(data), _EPOCHS, SilentProgress())
    save_classifier(module, folder)
    return Trained(data, folder / "model.safetensors", reproduced)
