"""An exception that nothing was prepared for: two lines, and a file that tells all but what is private."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest
from support.small_project import Project, make_project, run_here

from sapcli.commands.line.crash import without_private
from sapcli.repairs.session import Session


def test_a_fault_of_ours_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project: Project = make_project(tmp_path / "secret project")
    monkeypatch.setenv("SAP_CACHE", str(tmp_path / "kept"))
    monkeypatch.chdir(project.folder)

    def fail(session: Session, *_arguments: object) -> None:
        raise KeyError(f"{session.source.folder}/train/patient 12/{getpass.getuser()}.png", "private.png")

    monkeypatch.setattr(Session, "select", fail)
    arguments = ("select", "model.safetensors", project.data, "--arch", "network.py:tiny", "-o", "private.png")
    ended = run_here(*arguments)
    assert ended.status == 1
    error, hint = ended.stderr.splitlines()[-2:]
    assert error.startswith("error: something went wrong that should not: KeyError:")
    (file,) = (tmp_path / "kept" / "crashes").iterdir()
    assert str(file) in hint
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    for private in (str(tmp_path), "secret", "patient", "private", "network.py", "model.safetensors", str(Path.home())):
        assert private not in text, text
    assert "$ sap select <path> <path> --arch <path> -o <path>" in text
    assert 'File "sapcli/commands/select.py", line ' in text
    assert "KeyError: (" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open '/home/me/my cats/1.png'", "cannot open <path>"),
        ("cannot open /data/1.png: gone", "cannot open <path> gone"),
        ("no entry fc.weight in model.pt", "no entry fc.weight in <path>"),
        ("tensor of 3 rows", "tensor of 3 rows"),
    ],
)
def test_messages_lose_their_paths(text: str, expected: str) -> None:
    assert without_private(text, ["inspect", "model.pt", "-n", "3", "-"]) == expected


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that fails as none should."""

    def fail(*_arguments: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr("sapcli.commands.around.cache.info", fail)


@pytest.mark.usefixtures("faulty")
def test_no_place_for_the_file_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAP_CACHE", str(tmp_path / "file"))
    ended = run_here("cache", "info")
    assert [line[:7] for line in ended.stderr.splitlines()] == ["error: ", "hint:  "]
    assert "--debug" in ended.stderr


@pytest.mark.usefixtures("faulty")
def test_old_files_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAP_CACHE", str(tmp_path))
    (tmp_path / "crashes").mkdir()
    for number in range(30):
        (tmp_path / "crashes" / f"crash-2020{number:04}-1.txt").write_text("")
    (tmp_path / "crashes" / "kept.txt").write_text("")
    run_here("cache", "info")
    names = sorted(path.name for path in (tmp_path / "crashes").iterdir())
    assert len(names) == 21
    assert names[-1] == "kept.txt"
    assert os.fspath(tmp_path) not in (tmp_path / "crashes" / names[-2]).read_text()
