"""What is kept of an exception that nothing was prepared for: a file to report, without anybody's paths in it."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from sapcli import __version__

_KEPT = 20
# A quoted text, or a word, that holds a separator of a path.
_QUOTED_PATH = re.compile(r"""(?P<quote>['"`])[^'"`\n]*[/\\][^'"`\n]*(?P=quote)""")
_PATH = re.compile(r"""[^\s'"`<>(]*[/\\][^\s'"`<>)]*""")
# `/site-packages/` and what it is called elsewhere; what follows is the path of a library's module.
_LIBRARY = re.compile(r".*[/\\](?:site-packages|dist-packages|python\d+(?:\.\d+)?|sapcli(?=[/\\]))[/\\]?")


def write_crash(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write down an exception, and return the file; `None` where there is no place for it.

    Args:
        error: The exception.
        arguments: The command line.
    """
    try:
        folder = Path(os.environ.get("SAP_CACHE") or platformdirs.user_cache_path("sap")) / "crashes"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(folder.glob("crash-*.txt"))[: -_KEPT + 1]:
            old.unlink()
        file = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as handle:
            handle.write(describe_crash(error, arguments))
    except Exception:  # what was to be told is told without it
        return None
    return file


def describe_crash(error: BaseException, arguments: Sequence[str]) -> str:
    """An exception with all that helps to find its cause, and no path, file name or user of this machine."""
    names = ("torch", "torchvision", "timm", "numpy", "PIL", "typer")
    versions = {name: str(getattr(sys.modules.get(name), "__version__", "")) for name in names}
    loaded = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    lines = [
        f"sap {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        loaded or "no library was loaded yet",
        "$ sap " + " ".join(_shown(argument) for argument in arguments),
        "",
        *_traceback(error, arguments),
    ]
    return "\n".join(lines) + "\n"


def without_private(text: str, arguments: Sequence[str] = ()) -> str:
    """A text without paths, the home folder, the user's name, and what was named on the command line."""
    text = _PATH.sub("<path>", _QUOTED_PATH.sub("<path>", text))
    values = [argument.partition("=")[2] if argument.startswith("--") else argument for argument in arguments]
    private = {name for value in values if _is_path(value) for name in (value, os.path.basename(value)) if name}  # noqa: PTH119
    for name in sorted(private - {"-"}, key=len, reverse=True):
        text = re.sub(rf"(?<![\w<.]){re.escape(name)}(?![\w>])", "<path>", text)
    return without_user(text)


def without_user(text: str) -> str:
    """A text without the home folder and the user's name."""
    home = str(Path("~").expanduser())
    text = text.replace(home, "~") if len(home) > 1 else text
    with contextlib.suppress(Exception):  # there may be no name
        user = getpass.getuser()
        text = re.sub(rf"(?<!\w){re.escape(user)}(?!\w)", "<user>", text) if len(user) > 1 else text
    return text


def _shown(argument: str) -> str:
    """An argument of the command line, a path as such."""
    name, equals, value = argument.partition("=")
    if argument.startswith("-") and argument != "-":
        return f"{name}={_shown(value)}" if equals else argument
    return "<path>" if _is_path(argument) else argument


def _is_path(text: str) -> bool:
    """Whether a word of the command line is, or may be, a path; a number is none."""
    if "/" in text or os.sep in text or ".py:" in text:
        return True
    try:
        return os.path.lexists(text) or Path(text).suffix[1:].isalpha()
    except (OSError, ValueError):
        return True


def _traceback(error: BaseException, arguments: Sequence[str]) -> list[str]:
    """The traceback, the files by their places in their packages, and messages without what is private."""
    lines = []
    is_own = False
    for part in "".join(traceback.format_exception(error)).splitlines():
        named = re.fullmatch(r'(\s+File )"(.*)"(, line .*)', part)
        if named is not None:
            place = _LIBRARY.sub("", named[2], count=1)
            is_ours = re.search(r"[/\\]sapcli[/\\]", named[2]) is not None
            is_own = not is_ours and place == named[2]
            # What a user's own code is called, and what stands in it, is the user's.
            shown = "<own code>" if is_own else f"sapcli/{place}" if is_ours else place
            lines.append(f'{named[1]}"{shown}"{named[3]}')
        elif not part.startswith("  "):
            lines.append(without_private(part, arguments))
        elif not is_own:
            lines.append(part)
    return lines
