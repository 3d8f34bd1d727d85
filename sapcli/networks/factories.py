"""From the name of an architecture to the function that builds it: timm's, torchvision's, and the user's own.

Nothing here downloads anything or knows a single architecture. A library's network is built without random values,
which the checkpoint replaces; the user's own is built as its code builds it, since those values may reach further.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sapcli.errors import ArchitectureError
from sapcli.machine.signals import INTERRUPTIONS
from sapcli.machine.text import in_one_line
from sapcli.networks.building_limits import BuildingLimits, NetworkTooLargeError
from sapcli.networks.huggingface.classifiers import PREFIX, as_named_in_network, build_classifier
from sapcli.networks.light_imports import without_compiler
from sapcli.networks.own.own_code import RUN_AGAIN, OwnCode, load_own_code
from sapcli.settings import names_own_code

if TYPE_CHECKING:
    from sapcli.checkpoints.checkpoint import Checkpoint

# What would fetch or unpickle weights other than the checkpoint's; a config.json from elsewhere must not reach it.
_WEIGHT_ARGUMENTS = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights"}
)

_NAME = re.compile(r"[a-z][\w.]{1,99}")
_CORRECT = "Correct the factory, or its arguments (--arch-arg key=value); --debug shows the traceback."

_RANDOM_FILLS = frozenset(
    {
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        torch.Tensor.erfinv_,  # by which timm makes normal values of uniform ones, at a high cost
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.trunc_normal_,
        nn.init.kaiming_normal_,
        nn.init.kaiming_uniform_,
    }
)


@dataclass(frozen=True)
class Factory:
    """A function that builds a network.

    Attributes:
        name: The canonical name: `timm:NAME`, `torchvision:NAME`, `package.module:factory`, `path/to/file.py:factory`.
        function: The function itself.
        own: The user's own code that it belongs to; None for a library's.
        settings: The preprocessing that the library publishes beside the network, in timm's terms, where the network
            does not carry it itself.
        names: From the network's names to the entries of a checkpoint, for a library that renames what it loads; called
            with the checkpoint and `config`.
    """

    name: str
    function: Callable[..., object]
    own: OwnCode | None = None
    settings: Callable[[], Mapping[str, object] | None] = lambda: None
    names: Callable[..., Mapping[str, str]] | None = None

    @property
    def code_digest(self) -> str:
        """SHA-256 of all of the user's own code that the function leads to; empty for a library's."""
        return "" if self.own is None else self.own.digest

    def accepts(self, argument: str) -> bool:
        """Whether the function can be called with `argument`."""
        parameters = _parameters(self.function)
        return argument in parameters or _takes_any_keyword(parameters)

    def renamed(self, checkpoint: Checkpoint, arguments: Mapping[str, object]) -> Checkpoint:
        """The checkpoint with its entries known by the network's names, where the library renames what it loads."""
        if self.names is None or "config" not in arguments:
            return checkpoint
        return dataclasses.replace(checkpoint, known_as=self.names(checkpoint, config=arguments["config"]))

    def options_of(self, network: nn.Module) -> dict[str, object]:
        """The arguments, with their defaults, that shape `network`: the factory's, and those it hands to its class."""
        declared = _parameters(self.function)
        if _takes_any_keyword(declared):
            declared = _parameters(type(network)) | declared
        return {name: parameter.default for name, parameter in declared.items() if name not in _WEIGHT_ARGUMENTS}

    def build(self, arguments: Mapping[str, object], *, seed: int | None = None) -> nn.Module:
        """Build the network on the CPU: the user's own as its code does, a library's with zeros for random values.

        Args:
            arguments: What the function is called with.
            seed: For the random numbers of the user's own code where it does not seed them itself.

        Raises:
            ArchitectureError: If an argument would fetch other weights, or the factory fails or returns no network.
        """
        if self.own is None:
            with _InsteadOfRandom(0.0):
                return self._called(arguments)
        with self.own.building(self._failed(arguments), _CORRECT, seed):
            return self._called(arguments)

    def build_plainly(self, arguments: Mapping[str, object]) -> nn.Module:
        """Build the network as its code does, random values and all; raises as `build` does."""
        if self.own is not None:
            return self.build(arguments)
        with torch.random.fork_rng(devices=[]):
            return self._called(arguments)

    def outside_values(self, arguments: Mapping[str, object], fill: float) -> dict[str, torch.Tensor]:
        """What no checkpoint holds of a library's network that is built with `fill` in place of all random values.

        Raises:
            ArchitectureError: As `build` does.
        """
        with _InsteadOfRandom(fill):
            return values_outside_of_checkpoints(self._called(arguments))

    def outline(self, arguments: Mapping[str, object], limits: BuildingLimits | None = None) -> nn.Module:
        """Build the network for its names and shapes only: a library's without memory where the factory permits it.

        The user's own code is not tried with tensors without values: it could compute for ever with them.

        Args:
            arguments: What the factory is called with.
            limits: How much of a library's network may be built; None for any amount.

        Raises:
            ArchitectureError: As in `build`, or if the network is beyond the limits.
        """
        if self.own is not None:
            return self.build(arguments)
        # A factory that computes with values cannot run on the meta device; with its parameters alone there, most can.
        with limits.on_modules() if limits else contextlib.nullcontext():
            try:
                with torch.device("meta"):
                    return self.build(arguments)
            except NetworkTooLargeError:
                raise
            except ArchitectureError:
                on_tensors = limits.on_tensors() if limits else contextlib.nullcontext()
            with on_tensors:
                try:
                    with _EmptyOnMeta():
                        return self.build(arguments)
                except NetworkTooLargeError:
                    raise
                except ArchitectureError:
                    return self.build(arguments)

    def without_gradients(self) -> contextlib.AbstractContextManager[None]:
        """While nothing is differentiated: the fastest way, but for the user's own code the one that it knows.

        What is made under inference mode takes part in no gradient, and the user's code may ask for one, or keep what
        it has made.
        """
        return torch.inference_mode() if self.own is None else torch.no_grad()

    @contextlib.contextmanager
    def running(self, doing: str, hint: str = RUN_AGAIN) -> Iterator[None]:
        """Run what belongs to the network; of the user's own code, in its surroundings.

        Args:
            doing: What is done, for the error.
            hint: What to do where it fails.

        Raises:
            ArchitectureError: The user's own code raises something.
        """
        with contextlib.nullcontext() if self.own is None else self.own.running(f"{self.name} {doing}", hint):
            yield

    def _called(self, arguments: Mapping[str, object]) -> nn.Module:
        refused = sorted(_WEIGHT_ARGUMENTS & arguments.keys()) if self.own is None else []
        if refused:
            raise ArchitectureError(
                f"the argument {refused[0]!r} of {self.name} is refused: the weights come from the checkpoint",
                f"Leave {refused[0]!r} out of --arch-arg and of model_args.",
            )
        try:
            with warnings.catch_warnings():
                # Libraries announce changes of initial values that are never used here.
                warnings.simplefilter("ignore", FutureWarning)
                network = self.function(**arguments)
        except (NetworkTooLargeError, *INTERRUPTIONS):
            raise
        except BaseException as error:
            raise ArchitectureError(f"{self._failed(arguments)}: {in_one_line(error)}", _CORRECT) from error
        if not isinstance(network, nn.Module):
            raise ArchitectureError(
                f"{self.name} returned a {type(network).__name__}, not a torch.nn.Module",
                "Name a function or class that returns the network.",
            )
        return network

    def _failed(self, arguments: Mapping[str, object]) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"{self.name}({given}) failed"


def values_outside_of_checkpoints(network: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a network that its state dict does not have: buffers that are not saved, and plain attributes."""
    saved = {id(value) for value in network.state_dict(keep_vars=True).values()}
    found: dict[str, torch.Tensor] = {}
    for prefix, module in network.named_modules():
        for name, value in [*module.named_buffers(recurse=False), *vars(module).items()]:
            if isinstance(value, torch.Tensor) and id(value) not in saved:
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


def find_factory(spec: str) -> Factory:
    """The factory that `spec` names.

    Args:
        spec: `timm:NAME`, `torchvision:NAME`, a bare NAME (timm's first, else torchvision's), `package.module:factory`
            (from the working folder or an installed package), or `path/to/file.py:factory`.

    Raises:
        ArchitectureError: If there is no such architecture, module, file or function, or importing it fails.
    """
    spec = _without_hub(spec)
    library, colon, name = spec.partition(":")
    if not colon:
        return _find_timm(spec) or _find_torchvision(spec) or _unknown(spec)
    if library == "timm":
        return _find_timm(name) or _unknown(spec)
    if library == "torchvision":
        return _find_torchvision(name) or _unknown(spec)
    if spec.startswith(PREFIX):
        return Factory(
            spec,
            functools.partial(build_classifier, name),
            names=functools.partial(as_named_in_network, class_name=name),
        )
    place, _, name = spec.rpartition(":")
    own = load_own_code(spec, place)
    return Factory(spec, own.get(spec, name), own)


def known_library(name: str, *, prefers_timm: bool = True) -> str | None:
    """The library that has a network of that name, without imports for names that can be none's.

    Args:
        name: A bare name, or one with its library before it (`torchvision:resnet18`, `timm/resnet18`).
        prefers_timm: Which of both goes first where both have it.
    """
    library, colon, bare = _without_hub(name).rpartition(":")
    if not _NAME.fullmatch(bare) or (colon and library not in {"timm", "torchvision"}):
        return None
    find = {"timm": _find_timm, "torchvision": _find_torchvision}
    order = ("timm", "torchvision") if prefers_timm else ("torchvision", "timm")
    return next((each for each in ((library,) if colon else order) if find[each](bare) is not None), None)


def runs_own_code(spec: str) -> bool:
    """Whether `spec` names code outside of timm and torchvision, which only the user may ask for."""
    return names_own_code(_without_hub(spec))


def _without_hub(spec: str) -> str:
    """A spec without the Hub's spelling of timm's names, `hf-hub:timm/NAME` and `timm/NAME`."""
    library, colon, name = spec.partition(":")
    if colon and library in {"hf-hub", "hf_hub"}:
        return f"timm:{name.removeprefix('timm/')}"
    return f"timm:{spec.removeprefix('timm/')}" if not colon and spec.startswith("timm/") else spec


def _find_timm(name: str) -> Factory | None:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        return None
    return Factory(f"timm:{name}", functools.partial(timm.create_model, name))


def _find_torchvision(name: str) -> Factory | None:
    with without_compiler():
        from torchvision import models

    if name not in models.list_models(module=models):
        return None
    return Factory(
        f"torchvision:{name}",
        functools.partial(models.get_model, name, weights=None),
        settings=functools.partial(_torchvision_settings, name),
    )


def _torchvision_settings(name: str) -> dict[str, object] | None:
    """The preprocessing of torchvision's published weights of `name`, in timm's terms; None without such weights."""
    from torchvision import models

    weights = getattr(models.get_model_weights(name), "DEFAULT", None)
    if weights is None:
        return None
    transforms = weights.transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    crop_pct = crop / resize
    if math.floor(crop / crop_pct) != resize:  # timm resizes to the floor of this quotient
        crop_pct = math.nextafter(crop_pct, 0.0)
    return {
        "input_size": (3, crop, crop),
        "mean": transforms.mean,
        "std": transforms.std,
        "interpolation": transforms.interpolation.value,
        "crop_pct": crop_pct,
        "crop_mode": "center",
    }


def _unknown(spec: str) -> Factory:
    import timm
    from torchvision import models

    known = [f"timm:{name}" for name in timm.list_models()]
    known += [f"torchvision:{name}" for name in models.list_models(module=models)]
    bare = spec.rpartition(":")[2]
    close = difflib.get_close_matches(bare, {name.partition(":")[2] for name in known}, n=3)
    near = [name for name in known if name.partition(":")[2] in close]
    raise ArchitectureError(
        f"no architecture named {spec!r} in timm {timm.__version__} or torchvision",
        f"Did you mean {', '.join(near)}? Your own: --arch path/to/file.py:factory."
        if near
        else "Give a name of timm or torchvision, or your own factory as --arch path/to/file.py:factory.",
    )


class _InsteadOfRandom(TorchFunctionMode):
    """One value instead of random initial ones, which the checkpoint replaces and which cost most of a build."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM_FILLS:
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).fill_(self._value)
        return func(*args, **kwargs)


class _EmptyOnMeta(TorchFunctionMode):
    """Tensors that are made empty, as parameters are, go to the meta device; those with values stay where they are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _parameters(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some builtins tell nothing about themselves
        return {}


def _takes_any_keyword(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
