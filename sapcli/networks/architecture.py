"""From a checkpoint to its network: what the architecture is, with which arguments, classes and preprocessing.

The architecture is named by the user, by `config.json` beside the checkpoint (timm's schema), by the file's metadata,
or by the tensors' own names and shapes. Whatever named it, the tensors decide: they must fit strictly.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from sapcli.checkpoints.checkpoint import Checkpoint, Form
from sapcli.errors import ArchitectureError
from sapcli.networks.building_limits import BuildingLimits
from sapcli.networks.description import Description, describe, metadata_of
from sapcli.networks.factories import Factory, find_factory, in_one_line, runs_own_code
from sapcli.networks.fitting import built_input_size, fitting_plan, is_built_for_a_size, published_settings
from sapcli.networks.loading import Outline, fill, match_entries
from sapcli.networks.preprocessing import Preprocessing, Settings, resolve_preprocessing
from sapcli.networks.recognition import name_of_only_match
from sapcli.settings import PreprocessingOverrides

_NO_OVERRIDES = PreprocessingOverrides()


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint's network is.

    Attributes:
        name: `timm:resnet18`, `torchvision:resnet18`, `package.module:factory` or `path/to/file.py:factory`.
        arguments: What the factory is called with, beside the number of classes.
        num_classes: The number of the network's outputs, from the tensors.
        label_names: The classes' names in the order of the outputs, where the checkpoint has them.
        preprocessing: How its input images are prepared.
        source: What named the architecture: `--arch`, `config.json`, `the metadata`, `the tensors' names and shapes`.
        code_digest: A hash of the user's own file that builds the network; empty for a library's network.
        usual_size: Whether the input size is only what its library publishes: nobody gave it, and the network takes
            images of others.
    """

    name: str
    arguments: Mapping[str, object]
    num_classes: int
    label_names: tuple[str, ...] | None
    preprocessing: Preprocessing
    source: str
    code_digest: str = ""
    usual_size: bool = False

    def to_metadata(self) -> dict[str, str]:
        """The metadata keys by which a file that holds them, far from any `config.json`, is understood again."""
        settings = {key: value for key, value in vars(self.preprocessing).items() if key != "source"}
        return metadata_of(Description(self.name, self.source, self.arguments, settings, self.label_names))


@dataclass(frozen=True)
class LoadedModel:
    """A network filled with a checkpoint's weights.

    Attributes:
        module: The network in eval mode, in float32, its parameters contiguous.
        entry_names: From a name in the network's state dict to the checkpoint's entry; tied names may share one.
        extra_entries: The checkpoint's entries that are not the network's.
    """

    module: nn.Module
    entry_names: Mapping[str, str]
    extra_entries: tuple[str, ...]


def resolve_architecture(
    checkpoint: Checkpoint,
    spec: str | None = None,
    arguments: Mapping[str, object] | None = None,
    overrides: PreprocessingOverrides = _NO_OVERRIDES,
) -> Architecture:
    """Find out what a checkpoint's network is.

    Args:
        checkpoint: The checkpoint, of which only names and shapes are read.
        spec: The user's `--arch`; None to take what the checkpoint says, or what its tensors are.
        arguments: The user's `--arch-arg`, before the checkpoint's own.
        overrides: The user's preprocessing options, before all others.

    Raises:
        ArchitectureError: If nothing names the architecture, it cannot be built, the tensors do not fit it, or its
            preprocessing is unknown.
    """
    description = describe(checkpoint, spec)
    factory = find_factory(description.name or name_of_only_match(checkpoint))
    own = Settings(description.source, description.settings)
    requested = overrides.input_size or description.settings.get("input_size")
    limits = BuildingLimits.of(checkpoint)
    limits.check_arguments(description.arguments, description.source)
    plan = fitting_plan(checkpoint, factory, {**description.arguments, **(arguments or {})}, requested)

    published = published_settings(factory, plan.network)
    built_for = built_input_size(plan.arguments, [own, *published])
    preprocessing = resolve_preprocessing(factory.name, [built_for, own, *published], overrides)
    with limits.on_tensors() if plan.arguments else nullcontext():
        num_classes = plan.num_classes or _outputs(factory, plan.arguments, preprocessing.input_size)
    return Architecture(
        name=factory.name,
        arguments=plan.arguments,
        num_classes=num_classes,
        label_names=_label_names(checkpoint, description, num_classes),
        preprocessing=preprocessing,
        source=_source(spec, description),
        code_digest=factory.code_digest,
        usual_size=requested is None
        and not runs_own_code(factory.name)
        and not is_built_for_a_size(factory, plan.network),
    )


def load_model(checkpoint: Checkpoint, architecture: Architecture, device: torch.device) -> LoadedModel:
    """Build a checkpoint's network and fill it with the checkpoint's weights, strictly.

    Args:
        checkpoint: The checkpoint, read one tensor at a time.
        architecture: What `resolve_architecture` found for it.
        device: Where the network goes.

    Raises:
        ArchitectureError: If the factory fails, or names or shapes do not fit.
        CheckpointError: If a tensor cannot be read.
        NumericsError: If a weight is not finite.
    """
    factory = find_factory(architecture.name)
    # One dtype throughout: half-precision files compute in float32, and are cast back where they are written.
    arguments = _with_classes(factory, architecture.arguments, architecture.num_classes)
    # Its parameters are those of the file, but there may be more than parameters, of a size that an argument has.
    with BuildingLimits.of(checkpoint).on_tensors() if architecture.arguments else nullcontext():
        network = factory.build(arguments).float()
    match = match_entries(checkpoint, Outline.of(network))
    match.require_fit(checkpoint.source, architecture.name)
    fill(network, checkpoint, match)
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    return LoadedModel(network.to(device), match.entry_names, match.extra_entries)


def _label_names(checkpoint: Checkpoint, description: Description, num_classes: int) -> tuple[str, ...] | None:
    """The classes' names; those that a training script saved beside the weights only where they are as many."""
    names = description.label_names
    saved_by_script = checkpoint.form is Form.PICKLE and "label_names" not in (checkpoint.config or {})
    return None if saved_by_script and names is not None and len(names) != num_classes else names


def _source(spec: str | None, description: Description) -> str:
    if spec is not None:
        return "--arch"
    return "the tensors' names and shapes" if description.name is None else description.source


def _with_classes(factory: Factory, arguments: Mapping[str, object], num_classes: int) -> dict[str, object]:
    return {**arguments, "num_classes": num_classes} if factory.accepts("num_classes") else dict(arguments)


def _outputs(factory: Factory, arguments: Mapping[str, object], input_size: tuple[int, int, int]) -> int:
    """The number of outputs of a network whose factory takes no number of classes, by running it once on zeros."""
    network = factory.build(arguments).float()
    try:
        with torch.inference_mode():
            outputs = network(torch.zeros(1, *input_size))
    except Exception as error:
        size = "x".join(map(str, input_size))
        raise ArchitectureError(
            f"{factory.name} cannot run on one image of {size}: {in_one_line(error)}",
            "Correct the factory, or give --input-size as in the training.",
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise ArchitectureError(
            f"{factory.name} does not return one row of class scores per image",
            "Name a factory whose network returns a tensor of images by classes.",
        )
    return int(outputs.shape[1])
