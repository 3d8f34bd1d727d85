"""From a checkpoint to its network: what the architecture is, with which arguments, classes and preprocessing.

The architecture is named by the user, by `config.json` beside the checkpoint (timm's schema), by the file's metadata,
or by the tensors' own names and shapes. Whatever named it, the tensors decide: they must fit strictly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from sapcli.checkpoints.checkpoint import Checkpoint
from sapcli.errors import ArchitectureError, SapError
from sapcli.machine.text import in_one_line
from sapcli.networks.building_limits import BuildingLimits
from sapcli.networks.description import Description, NamedClasses, describe, metadata_of
from sapcli.networks.factories import Factory, find_factory, runs_own_code, values_outside_of_checkpoints
from sapcli.networks.fitting import Plan, built_input_size, fitting_plan
from sapcli.networks.loading import Outline, fill, match_entries, written_names
from sapcli.networks.own.outputs import described, way_out
from sapcli.networks.own_model import OwnRecipe, fill_own, load_own, make_contiguous, same_tensors
from sapcli.networks.preprocessing import Preprocessing, Settings, resolve_preprocessing
from sapcli.networks.recognition import name_of_only_match
from sapcli.settings import PreprocessingOverrides

_NO_OVERRIDES = PreprocessingOverrides()
# Another value in place of random ones, to see whether they reach what no checkpoint holds.
_ANOTHER_FILL = 0.5


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
        code_digest: A hash of the user's own code that builds the network; empty for a library's network.
        usual_size: Whether the input size is only what its library publishes: nobody gave it, and the network takes
            images of others.
        runs_first: Whether the network runs once before it is filled, since some shapes wait for the first images.
        factory: What builds it; looked up by its name where None.
        label_source: Where `label_names` stand: `label_names of config.json`; empty without any.
        names_passed_over: What is to be said of class names that are not as many as the outputs, and of a `config.json`
            that is not used, a sentence each.
        is_live: Whether it is that of a module in memory, which nothing names.
    """

    name: str
    arguments: Mapping[str, object]
    num_classes: int
    label_names: tuple[str, ...] | None
    preprocessing: Preprocessing
    source: str
    code_digest: str = ""
    usual_size: bool = False
    runs_first: bool = False
    factory: Factory | None = field(default=None, repr=False, compare=False)
    label_source: str = ""
    names_passed_over: tuple[str, ...] = ()
    is_live: bool = False

    def to_metadata(self) -> dict[str, str]:
        """The metadata keys by which a file that holds them, far from any `config.json`, is understood again."""
        # Ready tensors tell nothing of how images of files are prepared.
        settings = {} if self.preprocessing.is_ready else self.preprocessing.to_settings()
        name = None if self.is_live else self.name
        return metadata_of(Description(name, self.source, self.arguments, settings, self.label_names))


@dataclass(frozen=True)
class LoadedModel:
    """A network filled with a checkpoint's weights.

    Attributes:
        module: The network in eval mode, its parameters contiguous and in float32, unless the user's own code mixes
            types.
        entry_names: From a name in the network's state dict to the checkpoint's entry; tied names may share one.
        extra_entries: The checkpoint's entries that are not the network's.
        written_names: What a corrected file holds: from its names to the checkpoint's entries.
        kept: The parameters and saved buffers that are never changed, with the reason: the network's own code has made
            something else of the checkpoint's entry, or makes other values of it.
        factory: What built it, in whose surroundings it runs; None for a module that came otherwise.
        notes: What there is to be said about the way in which it was built and filled.
        is_the_programs: Whether a program handed the module over, and goes on with it.
    """

    module: nn.Module
    entry_names: Mapping[str, str]
    extra_entries: tuple[str, ...]
    written_names: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    factory: Factory | None = None
    notes: tuple[str, ...] = ()
    is_the_programs: bool = False

    def without_gradients(self) -> contextlib.AbstractContextManager[None]:
        """While nothing is differentiated; see `Factory.without_gradients`."""
        if self.is_the_programs:
            return torch.no_grad()  # what it keeps of this may be differentiated later
        return torch.inference_mode() if self.factory is None else self.factory.without_gradients()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While the network runs: the user's own code does so in its surroundings, and leaves the process alone."""
        own = None if self.factory is None else self.factory.own
        with contextlib.nullcontext() if own is None else own.entered(often=True):
            yield


def resolve_architecture(
    checkpoint: Checkpoint,
    spec: str | None = None,
    arguments: Mapping[str, object] | None = None,
    overrides: PreprocessingOverrides = _NO_OVERRIDES,
    *,
    for_images: bool = True,
) -> Architecture:
    """Find out what a checkpoint's network is.

    Args:
        checkpoint: The checkpoint, of which only names and shapes are read.
        spec: The user's `--arch`; None to take what the checkpoint says, or what its tensors are.
        arguments: The user's `--arch-arg`, before the checkpoint's own.
        overrides: The user's preprocessing options, before all others.
        for_images: Whether images are going to be prepared; otherwise their mean and std need not be known.

    Raises:
        ArchitectureError: If nothing names the architecture, it cannot be built, the tensors do not fit it, or its
            preprocessing is unknown.
    """
    description = describe(checkpoint, spec)
    own = [Settings(description.source, description.settings)]
    if description.trained is not None:
        own.append(Settings(description.trained.source, description.trained.settings))
    sizes = (overrides.input_size, *(item.values.get("input_size") for item in own))
    requested = next((size for size in sizes if size is not None), None)
    limits = BuildingLimits.of(checkpoint)
    limits.check_arguments(description.arguments, description.source)
    factory, plan = _fitting(checkpoint, description, arguments or {}, requested)

    built_for = built_input_size(plan.arguments, [*own, *plan.published])
    sources = [built_for, *own, *plan.published]
    preprocessing = resolve_preprocessing(factory.name, sources, overrides, for_images=for_images)
    # What the user's own code builds is the user's own business.
    with limits.on_tensors() if plan.arguments and factory.own is None else contextlib.nullcontext():
        num_classes = plan.num_classes or _outputs(checkpoint, factory, plan, preprocessing.input_size)
    classes, passed_over = _classes(description, num_classes)
    return Architecture(
        name=factory.name,
        arguments=plan.arguments,
        num_classes=num_classes,
        label_names=None if classes is None else classes.names,
        preprocessing=preprocessing,
        source=_source(spec, description),
        code_digest=factory.code_digest,
        usual_size=requested is None and not runs_own_code(factory.name) and not plan.is_built_for_a_size,
        runs_first=plan.runs_first,
        factory=factory,
        label_source="" if classes is None else classes.source,
        names_passed_over=(*description.passed_over, *passed_over),
    )


def _fitting(
    checkpoint: Checkpoint, description: Description, arguments: Mapping[str, object], requested: object
) -> tuple[Factory, Plan]:
    """What builds the network, and how.

    What a training's arguments name may be the network that it began with, and another one by the end: where it does
    not fit, the tensors decide.
    """
    name, given = description.name, {**description.arguments, **arguments}
    trained = description.trained
    try:
        factory = find_factory(name or name_of_only_match(checkpoint))
        return factory, fitting_plan(factory.renamed(checkpoint, given), factory, given, requested)
    except ArchitectureError:
        if trained is None or name is None or name != trained.name or description.source != trained.source:
            raise
        with contextlib.suppress(ArchitectureError):
            factory = find_factory(name_of_only_match(checkpoint))
            return factory, fitting_plan(checkpoint, factory, arguments, requested)
        raise


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
    factory = architecture.factory or find_factory(architecture.name)
    arguments = _with_classes(factory, architecture.arguments, architecture.num_classes)
    checkpoint = factory.renamed(checkpoint, architecture.arguments)
    if factory.own is None:
        return _library_model(checkpoint, architecture, factory, arguments, device)
    size = architecture.preprocessing.input_size
    model = load_own(OwnRecipe(factory, checkpoint, arguments, size, architecture.runs_first))
    with factory.running(f"cannot be moved to {device}"):
        model.module.to(device)
    written = written_names(checkpoint, model.entry_names, model.extra_entries)
    return LoadedModel(model.module, model.entry_names, model.extra_entries, written, model.kept, factory, model.notes)


def _library_model(
    checkpoint: Checkpoint,
    architecture: Architecture,
    factory: Factory,
    arguments: Mapping[str, object],
    device: torch.device,
) -> LoadedModel:
    """The fast way, as long as no random value that it leaves out reaches what the checkpoint does not replace."""
    notes = []
    # Its parameters are those of the file, but there may be more than parameters, of a size that an argument has.
    with BuildingLimits.of(checkpoint).on_tensors() if architecture.arguments else contextlib.nullcontext():
        network = factory.build(arguments)
        outside = values_outside_of_checkpoints(network)
        differs = bool(outside) and not same_tensors(outside, factory.outside_values(arguments, _ANOTHER_FILL))
        if differs:
            network = factory.build_plainly(arguments)
    if differs:
        notes.append(f"{factory.name} is built with its random values: some reach more than the checkpoint holds")
    # One dtype throughout: half-precision files compute in float32, and are cast back where they are written.
    network.float()
    match = match_entries(checkpoint, Outline.of(network))
    match.require_fit(checkpoint, architecture.name)
    fill(network, checkpoint, match)
    network.eval()
    make_contiguous(network)
    written = written_names(checkpoint, match.entry_names, match.extra_entries)
    return LoadedModel(network.to(device), match.entry_names, match.extra_entries, written, notes=tuple(notes))


def _classes(description: Description, num_classes: int) -> tuple[NamedClasses | None, tuple[str, ...]]:
    """The classes' names that count, and what is to be said of those that do not fit the number of outputs."""
    passed_over: list[str] = []
    for found in description.named_classes:
        if found.binding or len(found.names) == num_classes:
            return found, tuple(passed_over)
        passed_over.append(
            f"{found.source} names {len(found.names)} classes, the network has {num_classes} outputs: not used"
        )
    return None, tuple(passed_over)


def _source(spec: str | None, description: Description) -> str:
    if spec is not None:
        return "--arch"
    return "the tensors' names and shapes" if description.name is None else description.source


def _with_classes(factory: Factory, arguments: Mapping[str, object], num_classes: int) -> dict[str, object]:
    return {**arguments, "num_classes": num_classes} if factory.accepts("num_classes") else dict(arguments)


def _outputs(checkpoint: Checkpoint, factory: Factory, plan: Plan, input_size: tuple[int, int, int]) -> int:
    """The number of outputs of a network whose factory takes no number of classes, by running it once on zeros."""
    size = "x".join(map(str, input_size))
    hint = "Correct the factory, or give --input-size as in the training."
    if factory.own is None:
        network = factory.build(plan.arguments).float().eval()
    else:
        # Its code may need the weights before it can run.
        network = fill_own(OwnRecipe(factory, checkpoint, plan.arguments, input_size, plan.runs_first))
    try:
        with factory.running(f"cannot run on one image of {size}", hint), factory.without_gradients():
            outputs = network(torch.zeros(1, *input_size))
    except SapError:
        raise
    except Exception as error:
        raise ArchitectureError(
            f"{factory.name} cannot run on one image of {size}: {in_one_line(error)}", hint
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise ArchitectureError(
            f"{factory.name} returns {described(outputs)} for one image, expected one row of class scores [1, classes]",
            way_out(outputs),
        )
    return int(outputs.shape[1])
