"""What belongs to the process and yet is changed by code that is not ours: put back, or kept for that code alone.

A model's file may change the working folder, seed the random numbers or make float64 the default when it is imported,
and its functions may do so whenever they run. For that code the change is meant to last; for everything else it would
be a change of what the user asked for: relative paths would lead elsewhere, and numbers would be computed otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from sapcli.machine.signals import ENDING

# A value that cannot be read: PyTorch refuses to tell some settings that were made by its older and newer names alike.
_UNKNOWN = object()
_SEED = 0


class _Setting(NamedTuple):
    """A setting of the process."""

    read: Callable[[], Any]
    write: Callable[[Any], None]

    def value(self) -> Any:
        try:
            return self.read()
        except Exception:  # whatever is raised, such a setting cannot be put back
            return _UNKNOWN

    def put_back(self, before: Any) -> None:
        """Write what was there before, where it is not there any more: writing alone has effects of its own."""
        now = self.value()
        if before is _UNKNOWN or now is before or (now is not _UNKNOWN and now == before):
            return
        # What cannot be put back (the folder was removed, say) leaves the rest to be put back.
        with contextlib.suppress(Exception):
            self.write(before)


def _attribute(owner: object, name: str) -> _Setting:
    return _Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _set_default_device(device: torch.device) -> None:
    # A default of its own, even the CPU, would cost something with every call.
    torch.set_default_device(None if device.type == "cpu" else device)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _set_anomaly_detection(enabled: bool) -> None:
    torch.autograd.set_detect_anomaly(enabled)


def _set_warning_filters(filters: list[Any]) -> None:
    with warnings.catch_warnings():  # whose end has the registries of warnings that were given looked at anew
        pass
    warnings.filters[:] = filters  # type: ignore[index]


def _set_list(target: list[Any]) -> Callable[[list[Any]], None]:
    def write(values: list[Any]) -> None:
        target[:] = values

    return write


def _signals() -> tuple[Any, ...]:
    return tuple(signal.getsignal(number) for number in ENDING)


def _set_signals(handlers: tuple[Any, ...]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip(ENDING, handlers, strict=True):
            signal.signal(number, handler)


def _set_umask(mask: int) -> None:
    os.umask(mask)


def _umask() -> int:
    """Which permissions new files lack; only setting it tells."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_start_method(method: str | None) -> None:
    multiprocessing.set_start_method(method, force=True)


def _precision_settings() -> list[_Setting]:
    """TF32 and bfloat16 in place of float32; what holds for all operators before what holds for one."""
    backends: Any = torch.backends
    names = [(torch, "")]
    if not hasattr(backends.cuda.matmul, "fp32_precision"):  # PyTorch before 2.9
        names = [(backends.cuda.matmul, "allow_tf32"), (backends.cudnn, "allow_tf32")]
    else:
        owners = [backends, backends.cudnn, backends.mkldnn, backends.cuda.matmul, backends.mkldnn.matmul]
        owners += [backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv, backends.mkldnn.rnn]
        names = [(owner, "fp32_precision") for owner in owners]
    together = _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    return [together, *(_attribute(owner, name) for owner, name in names)]


def _torch_settings() -> list[_Setting]:
    backends: Any = torch.backends
    return [
        _Setting(torch.get_default_device, _set_default_device),
        _Setting(torch.is_grad_enabled, torch._C._set_grad_enabled),
        _Setting(torch.get_num_threads, torch.set_num_threads),
        _Setting(_deterministic, _set_deterministic),
        _Setting(torch.is_anomaly_enabled, _set_anomaly_detection),
        *(
            _Setting(
                lambda device=device: torch.is_autocast_enabled(device),  # type: ignore[misc]
                lambda value, device=device: torch.set_autocast_enabled(device, value),  # type: ignore[misc]
            )
            for device in ("cpu", "cuda")
        ),
        _Setting(backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled),
        *(_attribute(backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
        _attribute(backends.mkldnn, "enabled"),
        *_precision_settings(),
    ]


@functools.cache
def _lasting_settings() -> tuple[_Setting, ...]:
    return (
        *_torch_settings(),
        _Setting(lambda: list(warnings.filters), _set_warning_filters),
        _attribute(sys, "stdin"),
        _attribute(sys, "stdout"),
        _attribute(sys, "stderr"),
        _attribute(sys, "excepthook"),
        _Setting(sys.getrecursionlimit, sys.setrecursionlimit),
        _Setting(gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
        _Setting(_signals, _set_signals),
        _Setting(_umask, _set_umask),
        _attribute(tempfile, "tempdir"),
        _Setting(lambda: multiprocessing.get_start_method(allow_none=True), _set_start_method),
    )


def _settings() -> list[_Setting]:
    """All that is put back whenever the user's code has run."""
    found = list(_lasting_settings())
    # Which damaged and which large images count as readable; the modules are loaded once images are.
    for module, name in (("PIL.ImageFile", "LOAD_TRUNCATED_IMAGES"), ("PIL.Image", "MAX_IMAGE_PIXELS")):
        if module in sys.modules:
            found.append(_attribute(sys.modules[module], name))
    return found


_DTYPE = _Setting(torch.get_default_dtype, torch.set_default_dtype)


class _RandomStates(NamedTuple):
    """Where the random numbers of Python and PyTorch (on the CPU) are, and where they were looked at, NumPy's."""

    python: Any
    torch: bytes
    numpy: Any

    @classmethod
    def now(cls, *, numpy: bool = True) -> _RandomStates:
        numpy_state = np.random.get_state() if numpy else None
        return cls(random.getstate(), torch.get_rng_state().numpy().tobytes(), numpy_state)

    @classmethod
    def seeded(cls, seed: int) -> _RandomStates:
        """Those after all have been seeded, which they are."""
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        return cls.now()

    def put_back(self, *, numpy: bool = True) -> None:
        now = self.now(numpy=numpy)
        if now.python != self.python:
            random.setstate(self.python)
        if now.torch != self.torch:
            torch.set_rng_state(torch.frombuffer(bytearray(self.torch), dtype=torch.uint8))
        if numpy and not _same_numpy(now.numpy, self.numpy):
            np.random.set_state(self.numpy)

    def same_as(self, other: _RandomStates) -> bool:
        """Whether nobody has drawn a number in between, as far as both tell."""
        looked_at = self.numpy is not None and other.numpy is not None
        same = self.torch == other.torch and self.python == other.python
        return same and (not looked_at or _same_numpy(self.numpy, other.numpy))


def _same_numpy(one: Any, other: Any) -> bool:
    (kind, keys, *rest), (other_kind, other_keys, *other_rest) = one, other
    return (kind, rest) == (other_kind, other_rest) and bool((keys == other_keys).all())


@dataclass
class Surroundings:
    """What the user's code finds of the process when it runs: what it left there when it ran before.

    Attributes:
        search_path: Where modules are looked for.
        arguments: `sys.argv`: a script that reads options must not find those of this program.
        dtype: PyTorch's default, which holds while the code builds something.
        folder: The working folder that the code chose; None where it left the process' own.
        variables: The environment variables that it set, or removed (None).
        modules: The modules that belong to this code, by name; other code may have others of the same names.
        has_seeded: Whether the code has seeded or drawn random numbers since it was first run.
    """

    search_path: list[str] = field(default_factory=lambda: list(sys.path))
    arguments: list[str] = field(default_factory=lambda: [""])
    dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
    folder: str | None = None
    variables: dict[str, str | None] = field(default_factory=dict)
    modules: dict[str, ModuleType] = field(default_factory=dict)
    has_seeded: bool = False
    _random: _RandomStates | None = None

    def copy(self) -> Surroundings:
        """The same, to be changed by itself; the modules are shared."""
        return replace(
            self,
            search_path=list(self.search_path),
            arguments=list(self.arguments),
            variables=dict(self.variables),
        )

    def reseed(self, seed: int) -> None:
        """Begin with other random numbers than those that the code would get without a seed of its own."""
        outside = _RandomStates.now()
        self._random = _RandomStates.seeded(seed)
        outside.put_back()

    def own(self, name: str, module: ModuleType) -> None:
        """Make a module one of this code's."""
        self.modules[name] = module
        _modules_of_all.setdefault(name, weakref.WeakSet()).add(module)

    @contextlib.contextmanager
    def entered(self, *, building: bool = False, often: bool = False) -> Iterator[None]:
        """Run the user's code in its surroundings; the process is as before afterwards, and these keep what it left.

        What the code prints goes to stderr, since stdout carries results.

        Args:
            building: Whether it builds something, which its default dtype is for.
            often: Whether this happens thousands of times. The environment variables and NumPy's random numbers, which
                take the longest to look after, are then left to the code.
        """
        settings = _settings()
        before = [setting.value() for setting in settings]
        dtype, outside = torch.get_default_dtype(), _RandomStates.now(numpy=not often)
        folder, path, arguments = _working_folder(), list(sys.path), list(sys.argv)
        variables = None if often else dict(os.environ)
        hidden = self._enter(building, often)
        assert self._random is not None
        found = _Found(_working_folder(), None if often else dict(os.environ), self._random)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            self._keep(found, building)
            for name, module in hidden.items():
                sys.modules.setdefault(name, module)
            _change_folder(folder)
            sys.path[:], sys.argv[:] = path, arguments
            if variables is not None:
                _set_variables(variables)
            outside.put_back(numpy=not often)
            _DTYPE.put_back(dtype)
            for setting, value in zip(settings, before, strict=True):
                setting.put_back(value)

    def _enter(self, building: bool, often: bool) -> dict[str, ModuleType]:
        """Make the process what the code left, and return the modules of other code that are out of sight meanwhile."""
        hidden = {
            name: sys.modules.pop(name)
            for name, modules in _modules_of_all.items()
            if (module := sys.modules.get(name)) in modules and self.modules.get(name) is not module
        }
        sys.modules.update(self.modules)
        _change_folder(self.folder)
        sys.path[:], sys.argv[:] = self.search_path, self.arguments
        if self.variables and not often:
            wanted = {**os.environ, **self.variables}
            _set_variables({name: value for name, value in wanted.items() if value is not None})
        if self._random is None:
            # Without a seed of its own the code gets the same random numbers in every process.
            self._random = _RandomStates.seeded(_SEED)
        self._random.put_back(numpy=not often)
        if building:
            _DTYPE.put_back(self.dtype)
        return hidden

    def _keep(self, found: _Found, building: bool) -> None:
        folder, states = _working_folder(), _RandomStates.now(numpy=found.variables is not None)
        if folder != found.folder:
            self.folder = folder
        if found.variables is not None:
            variables = dict(os.environ)
            self.variables |= dict.fromkeys(found.variables.keys() - variables.keys())
            self.variables |= dict(variables.items() - found.variables.items())
        self.has_seeded = self.has_seeded or not states.same_as(found.random)
        self._random = states if states.numpy is not None else states._replace(numpy=found.random.numpy)
        self.search_path, self.arguments = list(sys.path), list(sys.argv)
        if building:
            self.dtype = torch.get_default_dtype()


class _Found(NamedTuple):
    """What the code found when it was entered."""

    folder: str | None
    variables: dict[str, str] | None
    random: _RandomStates


# The modules of each name that any user's code has loaded.
_modules_of_all: dict[str, weakref.WeakSet[ModuleType]] = {}


def _working_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - a plain text, thousands of times
    except FileNotFoundError:  # it was removed
        return None


def _change_folder(folder: str | None) -> None:
    if folder is not None and folder != _working_folder():
        with contextlib.suppress(OSError):
            os.chdir(folder)


def _set_variables(wanted: dict[str, str]) -> None:
    """Make the environment variables what is wanted, by changing those alone that differ."""
    now = dict(os.environ)
    for name in now.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(dict(wanted.items() - now.items()))
