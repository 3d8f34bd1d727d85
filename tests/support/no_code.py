"""What every run of the command line in these tests is held to: nothing runs but the tool and what the command names.

Python tells an audit hook of all that it compiles, executes, imports, starts and connects to, before it happens
(https://docs.python.org/3/library/audit_events.html). What may come is known from where it comes: files of Python, of
the installed packages and of the tool; the factory that `--arch` names, and what that code does itself; and the few
modules of libraries that make functions from texts of their own. Anything else is written to a file, which the fixture
of `tests/conftest.py` looks at after each test, whatever process it came from.

This module is imported by processes that are to start as `sap` does, so it imports nothing but Python's own.
"""

from __future__ import annotations

import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType, FrameType

from support import untouched

REPORT = "SAP_TEST_VIOLATIONS"
"""The environment variable with the file that violations are written to."""
MARK = "sap_trap"
"""A text by which hostile files are known wherever their content goes."""

_TESTS = Path(__file__).resolve().parent.parent
_PACKAGE = _TESTS.parent / "sapcli"

_FORBIDDEN = frozenset(
    {
        *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn"),
        *("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind", "socket.getaddrinfo"),
        *("webbrowser.open", "urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect"),
    }
)
_MAKING_CODE = frozenset({"marshal.loads", "code.__new__", "pickle.find_class", "function.__new__"})
_EVENTS = _FORBIDDEN | _MAKING_CODE | {"exec", "compile", "import", "ctypes.dlopen"}

# Parts of libraries that make functions, classes and trees from texts of their own, by event. A folder ends in "/".
_EVALUATED = ("ast.py", "collections/__init__.py", "dataclasses.py", "inspect.py", "typing.py")
_MAKERS: Mapping[str, tuple[str, ...]] = {
    "exec": _EVALUATED,
    "compile": _EVALUATED,
    "marshal.loads": (),
    "code.__new__": (),
    "pickle.find_class": (),
    "function.__new__": (),
}
# NVIDIA's package asks for the system's libraries when PyTorch imports it, whatever the inputs are.
_AT_IMPORT = ("/sbin/ldconfig", ["/sbin/ldconfig", "-p"])


def _folders() -> tuple[str, ...]:
    """Where Python, the installed packages and the tool lie, through links too."""
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
    found |= {*site.getsitepackages(), site.getusersitepackages(), str(_PACKAGE)}
    return tuple({f"{path}{os.sep}" for each in found for path in (each, os.path.realpath(each))})


_FOLDERS = _folders()
# The longest first: packages lie in a folder of the standard library.
_PLACES = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_LIBRARIES = tuple(sorted({f"{path}{os.sep}" for path in (*_PLACES, *site.getsitepackages())}, key=len, reverse=True))
# Where the stack of a run begins; what lies before is the test.
_BEGINNINGS = tuple(str(_TESTS / "support" / name) for name in ("command_line.py", "processes.py"))

_watch: _Watch | None = None
_installed = False


class _Watch:
    """A run of the command line.

    Args:
        arguments: The command line, which names the user's own code.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._files, self._endings = _own_code(arguments)

    def see(self, event: str, arguments: tuple[object, ...]) -> None:
        """Report what Python tells of, unless it may happen."""
        frame = sys._getframe(1).f_back
        if not self._may_happen(event, arguments, frame) and not self._is_of_own_code(frame):
            place = "Python itself" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
            _report(f"{event} {_shown(arguments)} from {place}")

    def _may_happen(self, event: str, arguments: tuple[object, ...], frame: FrameType | None) -> bool:
        # Without a frame it is Python itself, which imports the first modules.
        caller = "<frozen importlib>" if frame is None else frame.f_code.co_filename
        if event in ("exec", "compile"):
            code, file = arguments[0], ""
            if isinstance(code, CodeType):
                file, text = code.co_filename, repr((code.co_names, code.co_consts))
            else:
                file, text = os.fsdecode(arguments[1] or ""), str(code)  # type: ignore[arg-type]
            if self._is_own(file):
                return True
            if MARK in text and not caller.endswith("/ast.py"):
                return False
            return _is_installed(file) or (not Path(file).is_absolute() and _is_maker(event, caller, frame))
        if event == "import":
            return arguments[1] is None or _is_installed(os.path.realpath(str(arguments[1])))
        if event == "ctypes.dlopen":
            name = str(arguments[0] or "")
            return os.sep not in name or _is_installed(os.path.realpath(name))
        if event in _MAKING_CODE:
            return caller.startswith("<frozen ") or _is_maker(event, caller, frame)
        return event == "subprocess.Popen" and (arguments[:2] == _AT_IMPORT or _is_itself(arguments[1]))

    def _is_own(self, file: str) -> bool:
        return os.path.realpath(file) in self._files or file.endswith(self._endings)

    def _is_of_own_code(self, frame: FrameType | None) -> bool:
        """Whether the user's own code does it, or the test: a function that it has put in the place of one of ours."""
        while frame is not None and (file := frame.f_code.co_filename) not in _BEGINNINGS:
            if self._is_own(file) or file.startswith(f"{_TESTS}{os.sep}"):
                return True
            frame = frame.f_back
        return False


def _is_itself(words: object) -> bool:
    """Whether the tool starts itself, as `sap demo` does."""
    return isinstance(words, list) and words[:4] == [sys.executable, "-P", "-m", "sapcli"]


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event not in _EVENTS:
        return
    if _watch is not None:
        _watch.see(event, arguments)
    elif event == "subprocess.Popen" and not untouched.is_holding() and _starts_command_line(arguments[1]):
        untouched.hold(arguments[2], arguments[1])


def _starts_command_line(words: object) -> bool:
    text = " ".join(map(os.fsdecode, words)) if isinstance(words, list | tuple) else str(words)
    return re.search(r"-m ?sapcli|sapcli\.commands\.entry|sapcli\.__main__|/sap ", text) is not None


def _is_installed(file: str) -> bool:
    return file.startswith(("<frozen ", *_FOLDERS))


def _is_maker(event: str, caller: str, frame: FrameType | None) -> bool:
    """Whether code is made by a library that is being imported, or by one that makes it from texts of its own."""
    name = _in_library(caller)
    if name is None:
        return False
    if any(name.startswith(maker) if maker.endswith("/") else name == maker for maker in _MAKERS[event]):
        return True
    while frame is not None and frame.f_code.co_filename not in _BEGINNINGS:
        if frame.f_code.co_name == "<module>" and _in_library(frame.f_code.co_filename) is not None:
            return True
        frame = frame.f_back
    return False


def _in_library(file: str) -> str | None:
    """The path of a module inside of Python's library or of the installed packages; of others `None`."""
    library = next((folder for folder in _LIBRARIES if file.startswith(folder)), None)
    return None if library is None else file.removeprefix(library)


def _own_code(arguments: Sequence[str]) -> tuple[frozenset[str], tuple[str, ...]]:
    """The files that a command line names as the user's own code, and endings of the paths of modules that it names."""
    named = [os.environ.get("SAP_ARCH", "")]
    settings = [os.environ.get("SAP_CONFIG", "")]
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        value = value if equals else "".join(arguments[position + 1 : position + 2])
        if option in ("--arch", "--config"):
            (named if option == "--arch" else settings).append(value)
    for file in filter(os.path.isfile, filter(None, settings)):
        named += re.findall(r"""arch\s*=\s*["']([^"']+)""", Path(file).read_text(errors="replace"))
    files, endings = set(), []
    for place, colon, _ in (name.rpartition(":") for name in named):
        if colon and place.endswith(".py"):
            with suppress(OSError):  # the working folder is gone
                files.add(os.path.realpath(place))
        elif colon and place:
            parts = place.split(".")
            for count in range(1, len(parts) + 1):
                module = "".join(f"{os.sep}{part}" for part in parts[:count])
                endings += [f"{module}.py", f"{module}{os.sep}__init__.py"]
    return frozenset(files), tuple(endings)


def _shown(arguments: tuple[object, ...]) -> str:
    return " ".join(repr(argument)[:300] for argument in arguments[:2])


def _report(text: str) -> None:
    with open(os.environ[REPORT], "a", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123
        file.write(text.replace("\n", "\\n") + "\n")


def install() -> None:
    """Have Python tell of what it does; this cannot be taken back, and costs nothing that could be measured."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True


def begin(arguments: Sequence[str]) -> None:
    """Watch from now on what this process does, which is a run of the command line."""
    global _watch
    install()
    _watch = _Watch(arguments)


@contextmanager
def watched(arguments: Sequence[str]) -> Iterator[None]:
    """Watch what a run of the command line in this process does."""
    global _watch
    begin(arguments)
    try:
        yield
    finally:
        _watch = None
