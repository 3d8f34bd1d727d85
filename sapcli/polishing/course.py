"""What a training has come to: told to people, and kept so that it can go on after it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images: its mean loss in nats, and the learning rate at its end."""

    number: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Course:
    """What became of a training.

    Attributes:
        learning_rate: The peak of the rate, in the end.
        steps: How many steps there were, without those of runs that were given up.
        epochs: The passes over the images.
        restarts: How often it was begun again at a lower rate.
        settled: Whether it came to its end; else the network is as it was.
        seconds: How long it took, in all processes.
    """

    learning_rate: float
    steps: int = 0
    epochs: tuple[Epoch, ...] = ()
    restarts: int = 0
    settled: bool = True
    seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """All that a training needs to go on: tensors by name, and numbers as JSON values."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


class State:
    """The tensors of a training, as a snapshot has them."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self._named = {f"network.{name}": tensor for name, tensor in {**parameters, **buffers}.items()}
        self._named |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
        self._optimizer = optimizer
        self._scaler = scaler

    def tensors(self) -> dict[str, Tensor]:
        """All of them, as they are now, on the CPU."""
        found = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self._named.items()}
        for number, values in self._optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if value is not None:
                    found[f"optimizer.{number}.{name}"] = torch.as_tensor(value).detach().to("cpu", copy=True)
        for name, value in self._scaler.state_dict().items():
            found[f"scaler.{name}"] = torch.tensor(value, dtype=torch.float64)
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put them back."""
        with torch.no_grad():
            for name, tensor in self._named.items():
                tensor.copy_(tensors[name])
        state: dict[int, dict[str, Tensor]] = {}
        scaler: dict[str, float] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, _, key = rest.partition(".")
                state.setdefault(int(number), {})[key] = tensor.clone()
            elif kind == "scaler":
                scaler[rest] = float(tensor)
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        if scaler:
            counted = {
                name: int(value) if name.endswith(("interval", "tracker")) else value for name, value in scaler.items()
            }
            self._scaler.load_state_dict(counted)


def numbers_of(course: Course) -> dict[str, Any]:
    """A course as JSON values."""
    epochs = [[epoch.number, epoch.loss, epoch.learning_rate] for epoch in course.epochs]
    return {**vars(course), "epochs": epochs}


def course_of(numbers: Mapping[str, Any]) -> Course:
    """What `numbers_of` returned, after a way through text."""
    epochs = tuple(Epoch(int(number), float(loss), float(rate)) for number, loss, rate in numbers["epochs"])
    return Course(
        float(numbers["learning_rate"]),
        int(numbers["steps"]),
        epochs,
        int(numbers["restarts"]),
        bool(numbers["settled"]),
        float(numbers["seconds"]),
    )
