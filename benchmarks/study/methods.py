"""The methods that are compared: each makes a network of a cell's, as a user would with what a user has."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.study import rivals
from benchmarks.study.tasks import Task, save
from benchmarks.study.training import Recipe, has_batchnorm, logits, train
from sapcli import polish, repair
from sapcli.settings import BatchNorm, PolishSettings

_TRUSTED_EPOCHS = 10


@dataclass(frozen=True)
class Method:
    """A way to make a better network.

    Attributes:
        name: In tables.
        make: Makes the network of a task.
        is_ours: Whether it is a command of this tool, which must not make a network worse.
        limit: Whether it knows the right labels.
        applies: Whether it is worth its time on a task.
    """

    name: str
    make: Callable[[Task], nn.Module]
    is_ours: bool = False
    limit: bool = False
    applies: Callable[[Task], bool] = lambda _task: True


def run(method: Method, task: Task) -> tuple[Path, float]:
    """The weights that a method makes, and how many seconds it took; from the folder if they are there."""
    file = task.folder / f"{method.name.replace(' ', '-').replace(',', '')}.safetensors"
    started = time.perf_counter()
    save(method.make(task), file)
    return file, time.perf_counter() - started


def _unchanged(task: Task) -> nn.Module:
    return task.network(task.checkpoint)


def _project(batchnorm: BatchNorm, validation: bool, name: str) -> Callable[[Task], nn.Module]:
    def make(task: Task) -> nn.Module:
        repaired = repair(
            task.checkpoint,
            task.training_file,
            batchnorm=batchnorm,
            trusted_count=task.preset.trusted,
            arch=task.architecture,
            validation=task.validation_file if validation else None,
            device=str(task.device),
            seed=task.cell.seed,
            cache_dir=task.folder / "cache",
        )
        return task.network(repaired.save(task.folder / f"{name}.safetensors"))

    return make


def _polish(as_given: bool, name: str) -> Callable[[Task], nn.Module]:
    def make(task: Task) -> nn.Module:
        polished = polish(
            task.checkpoint,
            task.training_file,
            settings=PolishSettings(epochs=task.preset.polish_epochs, labels_as_given=as_given),
            arch=task.architecture,
            validation=task.validation_file,
            device=str(task.device),
            seed=task.cell.seed,
            cache_dir=task.folder / "cache",
        )
        return task.network(polished.save(task.folder / f"{name}.safetensors"))

    return make


def _trusted(task: Task) -> Tensor:
    """The trusted samples, by the rule of `sap select` in plain PyTorch: of each class those with the lowest loss."""
    losses = _losses(task)
    labels = task.given[task.training]
    share = task.preset.trusted // len(task.pictures.classes)
    lowest = [
        members[losses[members].argsort()[:share]]
        for members in ((labels == label).nonzero().flatten() for label in range(len(task.pictures.classes)))
    ]
    return task.training[torch.cat(lowest)]


def _losses(task: Task) -> Tensor:
    images, labels = task.images(task.training)
    said = logits(task.network(task.checkpoint), images, task.device)
    return torch.nn.functional.cross_entropy(said, labels, reduction="none")


def _suspicious(task: Task) -> Tensor:
    """As many samples as are trusted, with the highest loss: what the model itself believes least."""
    return task.training[_losses(task).argsort(descending=True)[: task.preset.trusted]]


def _fine_tuned_on_trusted(task: Task) -> nn.Module:
    recipe = replace(task.recipe_to_go_on, epochs=_TRUSTED_EPOCHS, rate=_tenth_of_usual(task))
    return rivals.fine_tune(_unchanged(task), task.images(_trusted(task)), recipe, task.device, task.cell.seed)


def _tenth_of_usual(task: Task) -> float:
    return 0.01 if has_batchnorm(task.network()) else 1e-4


def _fine_tuned_on_all(task: Task) -> nn.Module:
    images = task.images(task.training)
    return train(_unchanged(task), *images, task.recipe_to_go_on, task.device, task.cell.seed)


def _ssd(task: Task) -> nn.Module:
    retain, forget = task.images(_trusted(task)), task.images(_suspicious(task))
    return rivals.ssd(_unchanged(task), retain, forget, task.images(task.validation), task.device)


def _scrub(task: Task) -> nn.Module:
    retain, forget = task.images(_trusted(task)), task.images(_suspicious(task))
    validation = task.images(task.validation)
    return rivals.scrub(_unchanged(task), retain, forget, validation, task.device, task.cell.seed)


def _relabelled(task: Task) -> nn.Module:
    """What `sap suspects --apply csv` writes, the repaired model's answers, as labels of a new training."""
    repaired = task.network(task.folder / "project.safetensors")
    answers = task.given.clone()
    answers[task.training] = logits(repaired, task.pictures.images[task.training], task.device).argmax(1)
    images = task.images(task.training, answers)
    return train(task.network(), *images, task.recipe, task.device, task.cell.seed)


def _on_right_labels(best: bool) -> Callable[[Task], nn.Module]:
    def make(task: Task) -> nn.Module:
        right = task.training[~task.wrong]
        recipe = task.recipe
        if best:
            recipe = Recipe(recipe.epochs, recipe.batch_size, "mixup", crops=True, averaged=True)
        return train(task.network(), *task.images(right), recipe, task.device, task.cell.seed)

    return make


def _has_wrong(task: Task) -> bool:
    return bool(task.wrong.any())


def _is_first(task: Task) -> bool:
    """The best recipe is measured once a network."""
    return task.cell.noise == "symmetric-25" and task.cell.training == "plain" and task.cell.seed == 0


METHODS = (
    Method("unchanged", _unchanged),
    Method("SAP as published", _project(BatchNorm.KEEP, validation=True, name="as-published")),
    Method("project", _project(BatchNorm.REESTIMATE, validation=True, name="project"), is_ours=True),
    Method("project, training folder alone", _project(BatchNorm.REESTIMATE, False, name="alone"), is_ours=True),
    Method("polish", _polish(as_given=False, name="polish"), is_ours=True),
    Method("polish, labels as given", _polish(as_given=True, name="polish-as-given"), is_ours=True),
    Method("fine-tuned on trusted", _fine_tuned_on_trusted),
    Method("fine-tuned on all", _fine_tuned_on_all),
    Method("SSD", _ssd),
    Method("SCRUB", _scrub),
    Method("relabelled and trained again", _relabelled),
    Method("trained on right labels", _on_right_labels(best=False), limit=True, applies=_has_wrong),
    Method("best recipe on right labels", _on_right_labels(best=True), limit=True, applies=_is_first),
)
