"""The user's own code: imported once, run in surroundings of its own, and whatever it raises told in two lines."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

from torch import nn

from sapcli.errors import ArchitectureError, SapError
from sapcli.machine.out_of_memory import is_out_of_memory
from sapcli.machine.process_state import Surroundings
from sapcli.machine.signals import INTERRUPTIONS
from sapcli.machine.text import in_one_line
from sapcli.networks.own.own_sources import OwnSources, digest_of_sources

RUN_AGAIN = "Correct the code; --debug shows the traceback."
# The name of the module of a file, as far as digests are concerned: where the file lies does not matter.
_FILE = "(the file itself)"


class OwnCode:
    """A module of the user's own, loaded, with the surroundings that its code runs in.

    Args:
        spec: What the user typed.
        place: The file or the module in it.

    Raises:
        ArchitectureError: There is no such file or module, or importing it fails.
    """

    def __init__(self, spec: str, place: str) -> None:
        self._file = Path(place) if place.endswith(".py") else None
        folder = Path(os.path.realpath(self._file)).parent if self._file else Path.cwd()
        if self._file and not self._file.is_file():
            raise ArchitectureError(
                f"there is no file {self._file}", "Give the path to the Python file that defines the network."
            )
        self._sources = OwnSources(place.partition(".")[0] if self._file is None else "")
        self._place = place
        self._surroundings = Surroundings(
            search_path=[str(folder), *sys.path],
            arguments=[os.path.realpath(self._file) if self._file else place],
        )
        importlib.invalidate_caches()  # a file may have come since its folder was looked at
        with self.running(f"{place} of --arch {spec} cannot be imported", partial(self._hint, spec), building=True):
            self._module = self._import()
        self._begin = self._surroundings.copy()

    @property
    def draws_at_random(self) -> bool:
        """Whether the random numbers that the code draws when it builds something are others in every process."""
        return not self._begin.has_seeded

    @property
    def digest(self) -> str:
        """SHA-256 over all modules of the user's that the code leads to, as they were executed."""
        found = self._sources.reached_from(self._module, self._surroundings.search_path)
        if self._file is not None:
            found[_FILE] = found.pop(self._module.__name__)
        return digest_of_sources(found)

    @property
    def has_changed(self) -> bool:
        """Whether a file of it holds another text now than was executed."""
        return any(source.has_changed for source in self._sources.executed.values())

    def forget(self) -> None:
        """Take its modules out of what Python has loaded, so that they are loaded again when they are next imported."""
        for name in self._sources.executed:
            sys.modules.pop(name, None)

    def get(self, spec: str, name: str) -> Callable[..., object]:
        """The function or class called `name`, with dots for what lies in a class.

        Raises:
            ArchitectureError: There is none.
        """
        with self.running(f"{name} of --arch {spec} cannot be looked up", RUN_AGAIN):
            function: object = self._module
            for part in name.split("."):
                function = getattr(function, part, None)
            if isinstance(function, nn.Module):
                raise ArchitectureError(
                    f"{name} of {self._place} is a network, not what builds one",
                    f"Name its class, or a function that returns it: def build(): return {name}.",
                )
            if callable(function):
                return function
            offered = [
                key
                for key, value in vars(self._module).items()
                if callable(value)
                and getattr(value, "__module__", None) == self._module.__name__
                and not key.startswith("_")
            ]
        raise ArchitectureError(
            f"{self._place} has no function or class named {name!r}",
            f"It offers {', '.join(offered)}." if offered else "Define a function there that returns the network.",
        )

    @contextlib.contextmanager
    def building(self, doing: str, hint: str, seed: int | None = None) -> Iterator[None]:
        """Run the code as if it had just been imported: whatever was built before has left nothing behind.

        Args:
            doing: What is done, for the error, as in `net.py:Net() failed`.
            hint: What to do where it fails.
            seed: Another seed than always, where the code has none of its own.

        Raises:
            ArchitectureError: The code raises something.
        """
        self._surroundings = self._begin.copy()
        if seed is not None and self.draws_at_random:
            self._surroundings.reseed(seed)
        with self.running(doing, hint, building=True):
            yield

    @contextlib.contextmanager
    def running(
        self, doing: str, hint: str | Callable[[BaseException], str] = RUN_AGAIN, *, building: bool = False
    ) -> Iterator[None]:
        """Run the code in the surroundings that it has left.

        Args:
            doing: What is done, for the error.
            hint: What to do where it fails, or what tells it by what was raised.
            building: Whether it builds something.

        Raises:
            ArchitectureError: The code raises something.
        """
        try:
            with self.entered(building=building):
                yield
        except (SapError, *INTERRUPTIONS):
            raise
        except BaseException as error:  # nobody can foresee what it raises
            if is_out_of_memory(error):
                raise
            raise ArchitectureError(
                f"{doing}: {in_one_line(error)}", hint if isinstance(hint, str) else hint(error)
            ) from error

    @contextlib.contextmanager
    def entered(self, *, building: bool = False, often: bool = False) -> Iterator[None]:
        """Run the code in the surroundings that it has left; what it raises is raised.

        Args:
            building: Whether it builds something.
            often: Whether this happens thousands of times; see `Surroundings.entered`.
        """
        with self._surroundings.entered(building=building, often=often), self._searching():
            try:
                yield
            finally:
                for name in self._sources.executed:
                    module = sys.modules.get(name)
                    if module is not None and self._surroundings.modules.get(name) is not module:
                        self._surroundings.own(name, module)

    @contextlib.contextmanager
    def _searching(self) -> Iterator[None]:
        self._sources.install()
        try:
            yield
        finally:
            self._sources.uninstall()

    def _import(self) -> ModuleType:
        if self._file is None:
            return importlib.import_module(self._place)
        path = os.path.realpath(self._file)
        name = f"_sap_factory_{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:16]}"
        specification = importlib.util.spec_from_file_location(name, path, loader=self._sources.loader(name, path))
        assert specification is not None  # there is a loader
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module  # dataclasses and pickle look classes up there
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    def _hint(self, spec: str, error: BaseException) -> str:
        """What to do where the import fails."""
        if self._file is None:
            return "Correct the module, or give the file itself: --arch path/to/file.py:factory."
        if not isinstance(error, ImportError) or "relative import" not in str(error):
            return RUN_AGAIN
        path, level = Path(os.path.realpath(self._file)), _relative_level(self._file)
        # Of a package without __init__.py there is only the number of dots to tell where it begins.
        folders = list(path.parents)
        above = [folder for folder in folders[level:] if not (folder / "__init__.py").is_file()]
        root = above[0] if above else folders[-1]
        dotted = ".".join(path.relative_to(root).with_suffix("").parts)
        where = "" if root == Path.cwd() else f" in {root}"
        return f"It is part of a package: give --arch {dotted}:{spec.rpartition(':')[2]}{where}; a file stands alone."


def _relative_level(file: Path) -> int:
    """The largest number of dots that an import in the file begins with, at least 1."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return 1
    return max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=1) or 1


_loaded: dict[tuple[str, str], OwnCode] = {}


def load_own_code(spec: str, place: str) -> OwnCode:
    """The user's own module at a place, loaded once, and again when a file of it has been edited since.

    Args:
        spec: What the user typed, for messages.
        place: `path/to/file.py`, or `package.module` from the working folder or an installed package.

    Raises:
        ArchitectureError: There is no such file or module, or importing it fails.
    """
    key = (os.path.realpath(place), "") if place.endswith(".py") else (place, str(Path.cwd()))
    known = _loaded.get(key)
    if known is not None and known.has_changed:
        known.forget()
        del _loaded[key]
        known = None
    if known is None:
        known = _loaded[key] = OwnCode(spec, place)
    return known
