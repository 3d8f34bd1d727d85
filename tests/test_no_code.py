"""The watch over what runs of the command line run sees what it should, and does not see what it should not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import command_line, no_code, untouched
from support.command_line import run
from support.small_project import make_project


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where violations are reported within these tests."""
    monkeypatch.setenv(no_code.REPORT, str(tmp_path / "report"))
    (tmp_path / "report").touch()
    return tmp_path / "report"


ATTEMPTS = {
    "exec": "exec('a = 1')",
    "a text compiled": "compile('a = 1', 'x', 'exec')",
    "eval": "eval('1 + 1')",
    "an import": "import trap",
    "a program": "import subprocess; subprocess.run(['true'])",
    "a shell": "import os; os.system('true')",
    "a spawned program": "import os; os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
    "a connection": "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 9))",
    "a name looked up": "import socket; socket.getaddrinfo('localhost', 9)",
    "a pickle": "import pickle; pickle.loads(b'cos\\nsystem\\n.')",
    "marshalled code": "import marshal; marshal.loads(marshal.dumps(compile('1', 'x', 'eval')))",
    "a library": "import ctypes; ctypes.CDLL('./other.so')",
    "the tree of a text, executed": "import ast; exec(compile(ast.parse('a = 1'), 'x', 'exec'))",
}


def put(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Have `sap` do something: in code that lies neither in the environment nor among the tests."""
    (folder / "does.py").write_text(f"def does(*_given):\n    {code}\n    return 0\n")
    names: dict[str, Callable[..., int]] = {}
    exec(compile((folder / "does.py").read_text(), str(folder / "does.py"), "exec"), names)
    monkeypatch.setattr(command_line.entry, "run", names["does"])


@pytest.mark.parametrize("code", ATTEMPTS.values(), ids=ATTEMPTS.keys())
def test_what_should_not_run_is_seen(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (tmp_path / "trap.py").write_text("a = 1\n")
    (tmp_path / "other.so").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    put(monkeypatch, tmp_path, f"try: {code}\n    except OSError: pass")
    run(["config"])
    sys.modules.pop("trap", None)
    assert report.read_text() != ""


def test_what_the_tool_does_itself_is_not(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.folder)
    (project.folder / "network.py").write_text(
        "import os, collections\nfrom blocks import *\nos.system('true')\nexec('b = 2')\n"
        "Pair = collections.namedtuple('Pair', 'a b')\n" + (project.folder / "network.py").read_text()
    )
    (project.folder / "blocks.py").write_text("a = 1\n")
    arguments = ["eval", "model.safetensors", "data", "--arch", "network.py:tiny", "--workers", "2"]
    assert run([*arguments, "-q"]) == 0
    assert report.read_text() == ""
    assert run([*arguments[:3], "--workers", "0", "--arch", "trap.py:make"]) == 1
    assert report.read_text() == ""


@pytest.mark.parametrize("flags", [("-m", "sapcli"), ("-P", "-m", "sapcli")])
def test_a_process_is_watched_too(report: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """A module that the process takes for the tool's own does what it should not."""
    (tmp_path / "path" / "sapcli").mkdir(parents=True)
    (tmp_path / "path" / "sapcli" / "__init__.py").touch()
    (tmp_path / "path" / "sapcli" / "__main__.py").write_text("import os\nos.system('true')\n")
    paths = os.pathsep.join([str(tmp_path / "path"), os.environ["PYTHONPATH"]])
    with command_line.inputs_untouched(tmp_path, []):
        environment = os.environ | {"PYTHONPATH": paths}
        subprocess.run([sys.executable, *flags, "config"], cwd=tmp_path, env=environment, check=True)
    told = report.read_text().splitlines()
    assert any(line.startswith("os.system") for line in told)
    assert any(line.startswith("exec") and "sapcli/__main__.py" in line for line in told)


def test_the_inputs_of_a_command_that_a_test_starts_are_held(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    shell = f"cd {tmp_path} && {sys.executable} -P -m sapcli --version {tmp_path}/model.safetensors"
    for command in ([sys.executable, "-P", "-m", "sapcli", "--version", "model.safetensors"], ["bash", "-c", shell]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        untouched.check_held()
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        (tmp_path / "model.safetensors").write_bytes(str(command).encode())
        with pytest.raises(AssertionError, match="another content"):
            untouched.check_held()
    command_line.run_process(command, capture_output=True)
    assert not untouched._held


def test_a_changed_input_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    put(monkeypatch, tmp_path, "open('model.safetensors', 'wb').write(b'2')")
    with pytest.raises(AssertionError, match="another content"):
        run(["inspect", "model.safetensors"])
    (tmp_path / "large").write_bytes(bytes(20 << 20))
    put(monkeypatch, tmp_path, "open('large', 'r+b').write(b'2')")
    with pytest.raises(AssertionError, match="another content"):
        run(["inspect", "large"])
