"""What is written by `make docs` is that of the commands as they are now."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sapcli.commands.app import app
from scripts.build_docs import commands, man_page, pages, reference

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", sorted(pages()))
def test_what_is_generated_is_current(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == pages()[name], "run `make docs`"


def test_the_terminal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(pages())
    for name, value in {"COLUMNS": "40", "TERM": "dumb", "SAP_CACHE": "/elsewhere", "SAP_FORMAT": "json"}.items():
        monkeypatch.setenv(name, value)
    assert dict(pages()) == before


def test_every_option_of_every_command_is_named() -> None:
    named = {command.name: command for command in commands(app)}
    assert {"sap project", "sap eval", "sap cache info"} <= named.keys()
    usages = {option.usage for option in named["sap project"].options}
    assert {"-o, --output FILE|-", "--alpha auto|VALUE", "--format text|json|pth", "-q, --quiet"} <= usages
    assert named["sap project"].usage == "sap project CHECKPOINT... DATA [OPTIONS]"
    assert named["sap config"].usage == "sap config [COMMAND] [OPTIONS]"
    for command in named.values():
        for option in command.options:
            assert option.names[-1] in reference()
            assert option.names[-1].replace("-", r"\-") in man_page()


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_man_page_is_one() -> None:
    command = ["groff", "-man", "-Tutf8", "-ww", "-rLL=72n", str(DOCS / "sap.1")]
    shown = subprocess.run(command, capture_output=True, check=True)
    assert shown.stderr == b""
    # Bold letters are struck twice, or are escape sequences.
    assert "--trusted-count" in re.sub(r".\x08|\x1b\[\d*m", "", shown.stdout.decode())
