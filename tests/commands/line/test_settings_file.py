"""Where settings come from, and which goes before which."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import typer
from support.command_line import run

from sapcli.commands.app import app
from sapcli.commands.line.settings_file import default_map, find_settings
from sapcli.errors import UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> str:
    """What `sap config` prints."""
    assert run(["config", *arguments]) == 0
    return capfdbinary.readouterr().out.decode()


def test_a_setting_without_a_source_is_the_default(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    text = shown(capfdbinary)
    assert "\nseed = 0  # default\n" in text
    assert "\n# batch-size =\n" in text
    assert "\n# val =\n" in text


def test_the_environment_goes_before_the_file_and_the_file_before_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (folder / "sap.toml").write_text('batch_size = 64\nseed = 5\n[project]\nalpha = 3000\nlayers = "layer4"\n')
    monkeypatch.setenv("SAP_SEED", "7")
    text = shown(capfdbinary)
    assert "\nseed = 7  # SAP_SEED\n" in text
    assert "\nbatch-size = 64  # sap.toml\n" in text
    assert '\nalpha = "3000"  # sap.toml\n' in text
    assert '\nlayers = ["layer4"]  # sap.toml\n' in text
    assert "\nbatch-size = 64  # sap.toml\n" in shown(capfdbinary, "eval")


def test_the_table_of_a_command_goes_before_what_holds_for_all(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (folder / "sap.toml").write_text("batch-size = 64\n[eval]\nbatch-size = 32\n")
    assert "\nbatch-size = 32  # sap.toml\n" in shown(capfdbinary, "eval")
    assert "\nbatch-size = 64  # sap.toml\n" in shown(capfdbinary)


def test_pyproject_serves_where_there_is_no_file_of_its_own(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (folder / "pyproject.toml").write_text("[tool.sap]\nmean = [0.5, 0.4, 0.3]\n")
    assert '\nmean = "0.5,0.4,0.3"  # pyproject.toml [tool.sap]\n' in shown(capfdbinary)
    (folder / "sap.toml").write_text("")
    assert "# mean =" in shown(capfdbinary)
    (folder / "pyproject.toml").write_text("[tool.other]\n")
    (folder / "sap.toml").unlink()
    assert find_settings(folder) is None


def test_what_is_shown_can_be_used_as_a_settings_file(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    text = shown(capfdbinary)
    (folder / "sap.toml").write_text(text)
    assert tomllib.loads(text)["project"]["alpha"] == "auto"
    assert shown(capfdbinary).replace("sap.toml", "default") == text


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("alhpa = 3", "'alhpa' is no setting"),
        ("[select]\nalpha = 3", "`sap select` has no setting 'alpha'"),
        ("select = 3", "'select' is a command"),
        ("alpha = ", "cannot be read"),
    ],
)
def test_a_wrong_file_is_a_usage_error_that_names_what(folder: Path, content: str, named: str) -> None:
    (folder / "sap.toml").write_text(content)
    with pytest.raises(UsageError, match=named):
        default_map(find_settings(folder) or pytest.fail("no file"), typer.main.get_command(app))
    assert run(["config"]) == 2
    assert run(["project", "--help"]) == 0


def test_a_value_that_an_option_does_not_take_is_blamed_on_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sap.toml").write_text("batch-size = 0\n")
    assert run(["project", "model.safetensors", "data"]) == 2
    error = capsys.readouterr().err
    assert "--batch-size" in error
    assert "it is set in sap.toml" in error


def test_help_names_the_variable_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["project", "--help"]) == 0
    text = "".join(capsys.readouterr().out.split())
    for variable in ("SAP_ALPHA", "SAP_BATCH_SIZE", "SAP_CACHE", "SAP_TRUSTED_COUNT", "SAP_REPORT"):
        assert variable in text


HOSTILE = [
    "sap = 3",
    "[sap]\nseed = 1",
    "seed = {a = 1}",
    "seed = [[1]]",
    "seed = 1979-05-27T07:32:00Z",
    "seed = 07:32:00",
    "seed = " + "9" * 5000,
    "seed = 0x" + "f" * 5000,
    "seed = -1",
    "seed = 1e999",
    "seed = nan",
    "quiet = 3",
    'quiet = "yes"',
    "batch-size = true",
    "batch-size = 999999999999999999999999",
    'device = "a\\u0000b"',
    "layers = [{a = 1}]",
    "precision = 3",
    "[cache]\nclear = 3",
    "cache = 3",
    "[project]\nproject = 3",
    "[[project]]\nalpha = 3",
    "a = " + "[" * 100_000,
    "a = " + "{b=" * 10_000,
    "a" + ".a" * 100_000 + " = 1",
    "a = '" + "x" * (2 << 20) + "'",
    "\ufeffseed = 1",
]


@pytest.mark.parametrize("name", ["sap.toml", "pyproject.toml"])
@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_file_of_any_form_is_an_error_in_two_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    if name == "pyproject.toml":
        first, _, rest = content.partition("\n")
        table = "" if "[" in content[:2] else "[tool.sap]\n"
        content = table + content.replace("[[", "[[tool.sap.").replace("\n[", "\n[tool.sap.") if first or rest else ""
    (folder / name).write_text(content)
    status = run(["project", "model.safetensors", "data"])
    error = capsys.readouterr().err
    assert status in (1, 2)
    assert [line[:7] for line in error.splitlines()] == ["error: ", "hint:  "], error


@pytest.mark.parametrize("content", [b"\xff\xfe", b"seed = 1\0", b"\r", b"[tool]\nsap = 3\n", b"[tool]\nsap = []\n"])
def test_bytes_that_are_no_settings(folder: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (folder / "pyproject.toml").write_bytes(content)
    assert run(["cache", "info"]) == 2
    assert [line[:7] for line in capsys.readouterr().err.splitlines()] == ["error: ", "hint:  "]


@pytest.mark.parametrize("content", ["tool = 3", "[[tool]]\na = 1", "[tool]\nother = 3"])
def test_a_pyproject_of_another_program_is_let_alone(folder: Path, content: str) -> None:
    (folder / "pyproject.toml").write_text(content)
    assert find_settings(folder) is None


WRITING = {
    "output": '"victim"',
    "force": "true",
    "report": '["victim.html"]',
    "summary": '"victim"',
    "html": '"victim"',
    "apply": '"csv"',
    "apply-to": '"victim"',
    "cache-dir": '"victim"',
    "progress-json": "2",
}


@pytest.mark.parametrize("table", ["", "[project]\n", "[suspects]\n"])
@pytest.mark.parametrize("name", WRITING)
def test_a_folders_file_does_not_say_what_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], name: str, table: str
) -> None:
    monkeypatch.delenv("SAP_CACHE", raising=False)
    command = "suspects" if name in ("html", "apply", "apply-to") or table == "[suspects]\n" else "project"
    if (table and table != f"[{command}]\n") or (command == "suspects" and name in ("report", "summary")):
        pytest.skip("another command's")
    if name == "report" and not table:
        pytest.skip("there it is the table of a command")
    (folder / "sap.toml").write_text(f"{table}{name} = {WRITING[name]}\nbatch-size = 7\n")
    text = shown(capfdbinary, command)
    assert "\nbatch-size = 7  # sap.toml\n" in text
    assert not any(line.startswith(f"{name} = ") and "sap.toml" in line for line in text.splitlines())
    for option in (["--config", "sap.toml"], ["--config", str(folder / "sap.toml")]):
        assert run([*option, "config", command]) == 0
        named = capfdbinary.readouterr().out.decode()
        assert any(line.startswith(f"{name} = ") and "sap.toml" in line for line in named.splitlines())


@pytest.mark.parametrize("name", ["labels", "class-map", "val", "bases", "trusted", "forget"])
@pytest.mark.parametrize(
    ("value", "is_taken"),
    [("inside.csv", True), ("a/../inside.csv", True), ("../outside", False), ("/etc/passwd", False), ("link/x", False)],
)
def test_a_folders_file_names_files_of_that_folder_alone(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes], name: str, value: str, is_taken: bool
) -> None:
    (folder / "link").symlink_to("/etc", target_is_directory=True)
    (folder / "sap.toml").write_text(f'{name} = "{value}"\n')
    assert (f'\n{name} = "{value}"  # sap.toml\n' in shown(capfdbinary)) == is_taken
    assert run(["--config", "sap.toml", "config"]) == 0
    assert f'\n{name} = "{value}"  # sap.toml\n' in capfdbinary.readouterr().out.decode()


def test_the_environment_names_a_file_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (folder / "mine.toml").write_text('output = "here"\n')
    (folder / "pyproject.toml").write_text('[tool.sap]\noutput = "there"\n')
    monkeypatch.setenv("SAP_CONFIG", "mine.toml")
    assert '\noutput = "here"  # mine.toml\n' in shown(capfdbinary)
    monkeypatch.setenv("SAP_CONFIG", "pyproject.toml")
    assert '\noutput = "there"  # pyproject.toml [tool.sap]\n' in shown(capfdbinary)
    monkeypatch.setenv("SAP_CONFIG", "none.toml")
    assert run(["config"]) == 2
