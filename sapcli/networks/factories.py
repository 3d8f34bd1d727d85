"""From the name of an architecture to the function that builds it: timm's, torchvision's, and the user's own.

Nothing here draws random weights, downloads anything, or knows a single architecture.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sapcli.errors import ArchitectureError
from sapcli.networks.building_limits import BuildingLimits, NetworkTooLargeError

# What would fetch or unpickle weights other than the checkpoint's; a config.json from elsewhere must not reach it.
_WEIGHT_ARGUMENTS = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights"}
)

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
        folder: The folder that is importable while it runs; None for a library's.
        settings: The preprocessing that the library publishes beside the network, in timm's terms, where the network
            does not carry it itself.
    """

    name: str
    function: Callable[..., object]
    folder: Path | None = None
    settings: Callable[[], Mapping[str, object] | None] = lambda: None

    @property
    def code_digest(self) -> str:
        """SHA-256 of the file that the user's own function stands in; empty for a library's, or where there is none."""
        if self.folder is None:
            return ""
        with contextlib.suppress(TypeError, OSError):
            source = inspect.getsourcefile(inspect.unwrap(self.function))
            return "" if source is None else hashlib.sha256(Path(source).read_bytes()).hexdigest()
        return ""

    def accepts(self, argument: str) -> bool:
        """Whether the function can be called with `argument`."""
        parameters = _parameters(self.function)
        return argument in parameters or _takes_any_keyword(parameters)

    def options_of(self, network: nn.Module) -> dict[str, object]:
        """The arguments, with their defaults, that shape `network`: the factory's, and those it hands to its class."""
        declared = _parameters(self.function)
        if _takes_any_keyword(declared):
            declared = _parameters(type(network)) | declared
        return {name: parameter.default for name, parameter in declared.items() if name not in _WEIGHT_ARGUMENTS}

    def build(self, arguments: Mapping[str, object]) -> nn.Module:
        """Build the network on the CPU, in eval mode, its random initial values left at zero.

        Raises:
            ArchitectureError: If an argument would fetch other weights, or the factory fails or returns no network.
        """
        refused = sorted(_WEIGHT_ARGUMENTS & arguments.keys()) if self.folder is None else []
        if refused:
            raise ArchitectureError(
                f"the argument {refused[0]!r} of {self.name} is refused: the weights come from the checkpoint",
                f"Leave {refused[0]!r} out of --arch-arg and of model_args.",
            )
        try:
            with _importable(self.folder), warnings.catch_warnings(), _ZeroInsteadOfRandom():
                # Libraries announce changes of initial values that are never used here.
                warnings.simplefilter("ignore", FutureWarning)
                network = self.function(**arguments)
        except NetworkTooLargeError:
            raise
        except (Exception, SystemExit) as error:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise ArchitectureError(
                f"{self.name}({given}) failed: {in_one_line(error)}",
                "Correct the factory, or its arguments (--arch-arg key=value); --debug shows the traceback.",
            ) from error
        if not isinstance(network, nn.Module):
            raise ArchitectureError(
                f"{self.name} returned a {type(network).__name__}, not a torch.nn.Module",
                "Name a function or class that returns the network.",
            )
        return network.eval()

    def outline(self, arguments: Mapping[str, object], limits: BuildingLimits | None = None) -> nn.Module:
        """Build the network for its names and shapes only: without memory where the factory permits it.

        Args:
            arguments: What the factory is called with.
            limits: How much may be built; None for any amount.

        Raises:
            ArchitectureError: As in `build`, or if the network is beyond the limits.
        """
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


def find_factory(spec: str) -> Factory:
    """The factory that `spec` names.

    Args:
        spec: `timm:NAME`, `torchvision:NAME`, a bare NAME (timm's first, else torchvision's), `package.module:factory`
            (from the working folder or an installed package), or `path/to/file.py:factory`.

    Raises:
        ArchitectureError: If there is no such architecture, module, file or function, or importing it fails.
    """
    library, colon, name = spec.partition(":")
    if not colon:
        return _find_timm(spec) or _find_torchvision(spec) or _unknown(spec)
    if library == "timm":
        return _find_timm(name) or _unknown(spec)
    if library == "torchvision":
        return _find_torchvision(name) or _unknown(spec)
    place, _, name = spec.rpartition(":")
    return _find_own(spec, place, name)


def runs_own_code(spec: str) -> bool:
    """Whether `spec` names code outside of timm and torchvision, which only the user may ask for."""
    library, colon, _ = spec.partition(":")
    return bool(colon) and library not in {"timm", "torchvision"}


def in_one_line(error: BaseException) -> str:
    """An exception's kind and text, as one line of a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _find_timm(name: str) -> Factory | None:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        return None
    return Factory(f"timm:{name}", functools.partial(timm.create_model, name))


def _find_torchvision(name: str) -> Factory | None:
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


def _find_own(spec: str, place: str, name: str) -> Factory:
    file = Path(place) if place.endswith(".py") else None
    folder = file.resolve().parent if file else Path.cwd()
    try:
        with _importable(folder), _default_device_put_back():
            module = _import_file(file) if file else importlib.import_module(place)
    except ArchitectureError:
        raise
    except (Exception, SystemExit) as error:
        raise ArchitectureError(
            f"{place} of --arch {spec} cannot be imported: {in_one_line(error)}",
            "Correct the module, or give the file itself: --arch path/to/file.py:factory.",
        ) from error
    function: object = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        offered = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__ and not key.startswith("_")
        ]
        raise ArchitectureError(
            f"{place} has no function or class named {name!r}",
            f"It offers {', '.join(offered)}." if offered else "Define a function there that returns the network.",
        )
    return Factory(spec, function, folder)


def _import_file(file: Path) -> ModuleType:
    """Import a file under a name that no other module has, once."""
    path = file.resolve()
    if not path.is_file():
        raise ArchitectureError(
            f"there is no file {file}", "Give the path to the Python file that defines the network."
        )
    name = f"_sap_factory_{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None  # a .py file always has a loader
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickle look classes up there
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Make a folder's modules importable, and keep what the user's code prints off stdout, which carries results."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _default_device_put_back() -> Iterator[None]:
    """Undo a script's `torch.set_default_device`: what is on which device is the user's choice, not its file's."""
    before = torch.get_default_device()
    try:
        yield
    finally:
        if torch.get_default_device() != before:
            # A default of its own, even the CPU, would cost something with every call.
            torch.set_default_device(None if before.type == "cpu" else before)


class _ZeroInsteadOfRandom(TorchFunctionMode):
    """Zeros instead of random initial values, which the checkpoint replaces anyway and which cost most of a build."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM_FILLS:
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).zero_()
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
