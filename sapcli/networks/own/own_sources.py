"""The modules that are the user's own: executed from the very text that is hashed, and found through each other.

Python may execute an older compiled form of a file that was edited within the same second, and a file may be edited
after it was imported. What a network computes follows from the text that was executed, so that is what is kept here.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeGuard


@dataclass(frozen=True)
class Source:
    """The text of a module.

    Attributes:
        file: The file that it was read from.
        text: Its bytes.
    """

    file: str
    text: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def has_changed(self) -> bool:
        """Whether the file holds another text now; one that is gone cannot be loaded again, and so has not."""
        now = read_source(self.file)
        return now is not None and now.text != self.text


def read_source(file: str) -> Source | None:
    """The text of a file as it is now; None where it cannot be read."""
    try:
        return Source(file, Path(file).read_bytes())
    except OSError:
        return None


class OwnSources(MetaPathFinder):
    """Finds the user's own modules for Python's import, and keeps the text that is executed of each.

    Args:
        package: The installed package that counts as the user's own, too; empty without one.

    Attributes:
        executed: By module, what was executed.
    """

    def __init__(self, package: str = "") -> None:
        self._package = package
        self.executed: dict[str, Source] = {}

    def loader(self, name: str, file: str) -> SourceFileLoader:
        """What executes a file as the module of that name."""
        return _Loader(name, file, self.executed)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a module that is the user's own; None for all others, which Python finds itself."""
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or type(spec.loader) is not SourceFileLoader or not _is_own_file(spec.origin):
            return None
        spec.loader = self.loader(fullname, spec.origin)
        return spec

    def install(self) -> None:
        """Be asked before Python's own search for files, but after what is built into it."""
        finders = sys.meta_path
        finders.insert(finders.index(PathFinder) if PathFinder in finders else len(finders), self)

    def uninstall(self) -> None:
        """Be asked no longer."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def reached_from(self, module: ModuleType, search_path: Sequence[str]) -> dict[str, Source]:
        """All modules of the user's own that a module leads to: those that were executed, and those that it may yet.

        Args:
            module: The module to begin at.
            search_path: Where modules are looked for.

        Returns:
            By name, what was executed, and of a module that has not been yet, the text of its file.
        """
        for name, other in self._modules_behind(module):
            # Somebody else has loaded it already: its file is all that is known.
            source = None if name in self.executed else read_source(str(other.__file__))
            if source is not None:
                self.executed[name] = source
        found = dict(self.executed)
        waiting = [(name, source) for name, source in found.items() if not _is_installed(source.file)]
        while waiting:
            name, source = waiting.pop()
            for imported in _imports(source.text, _package_of(name, source.file)):
                file = None if imported in found else _file_of(imported, tuple(search_path))
                imported_source = read_source(file) if _is_own_file(file) else None
                if imported_source is not None:
                    found[imported] = imported_source
                    waiting.append((imported, imported_source))
        return found

    def _modules_behind(self, module: ModuleType) -> Iterator[tuple[str, ModuleType]]:
        """A module, and what its names lead to: modules, and those of its functions and classes; the own ones alone."""
        seen: set[str] = set()
        waiting: list[Any] = [module]
        while waiting:
            now = waiting.pop()
            file = getattr(now, "__file__", None)
            is_own = _is_own_file(file) or (isinstance(file, str) and self._package == now.__name__.partition(".")[0])
            if now.__name__ in seen or not is_own:
                continue
            seen.add(now.__name__)
            yield now.__name__, now
            for value in list(vars(now).values()):
                behind = value if isinstance(value, ModuleType) else sys.modules.get(str(_module_name(value)))
                if isinstance(behind, ModuleType):
                    waiting.append(behind)


class _Loader(SourceFileLoader):
    """Executes what the file holds, never a compiled form of what it held."""

    def __init__(self, name: str, file: str, executed: dict[str, Source]) -> None:
        super().__init__(name, file)
        self._executed = executed

    def get_code(self, fullname: str) -> CodeType:
        text = self.get_data(self.path)
        self._executed[fullname] = Source(str(self.path), text)
        code: CodeType = self.source_to_code(text, self.path)
        return code


def _module_name(value: object) -> object:
    # What an object's own code raises when it is asked is no reason to give up.
    try:
        return getattr(value, "__module__", None)
    except Exception:
        return None


def _package_of(name: str, file: str) -> str:
    return name if Path(file).name == "__init__.py" else name.rpartition(".")[0]


@functools.lru_cache(maxsize=1024)
def _imports(text: bytes, package: str) -> tuple[str, ...]:
    """The names of all modules that a source may import, wherever in it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return ()
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {base: None} | {f"{base}.{alias.name}": None for alias in node.names}
    whole = {".".join(name.split(".")[:length]) for name in found for length in range(1, name.count(".") + 2)}
    return tuple(sorted(name for name in whole if name))


def _file_of(name: str, search_path: tuple[str, ...]) -> str | None:
    """The file that a module would be imported from, found without importing anything; None for an installed one."""
    path: Sequence[str] | None = search_path
    parts = name.split(".")
    if parts[0] in sys.stdlib_module_names:
        return None
    spec = None
    for length in range(1, len(parts) + 1):
        try:
            spec = PathFinder.find_spec(".".join(parts[:length]), path)
        except Exception:  # odd entries of the path
            return None
        path = None if spec is None else spec.submodule_search_locations
        if spec is None or (path is None and length < len(parts)):
            return None
    return None if spec is None else spec.origin


@functools.cache
def _library_folders() -> tuple[str, ...]:
    """Where installed packages and Python's own modules lie, and this program."""
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    folders.append(str(Path(__file__).parents[1]))
    return tuple({os.path.realpath(folder) + os.sep for folder in folders})


@functools.lru_cache(maxsize=4096)
def _is_installed(file: str) -> bool:
    place = os.path.realpath(file)
    return place.startswith(_library_folders()) or not {"site-packages", "dist-packages"}.isdisjoint(Path(place).parts)


def _is_own_file(file: str | None) -> TypeGuard[str]:
    return file is not None and file.endswith(".py") and not _is_installed(file)


def digest_of_sources(sources: Mapping[str, Source]) -> str:
    """One digest of the texts of all these modules and of their names."""
    lines = (f"{name} {source.digest}" for name, source in sorted(sources.items()))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
