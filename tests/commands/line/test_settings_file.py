"""Where settings come from, and which goes before which."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import typer

from sapcli.commands.app import app
from sapcli.commands.entry import run
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
