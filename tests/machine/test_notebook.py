"""Progress in a notebook."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from sapcli.machine.notebook import NotebookProgress, usual_progress
from sapcli.machine.progress import SilentProgress


def test_bars_are_for_notebooks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert isinstance(usual_progress(), SilentProgress)
    terminal = type("TerminalInteractiveShell", (), {})()
    notebook = type("ZMQInteractiveShell", (), {"kernel": object()})()
    for shell, expected in ((None, SilentProgress), (terminal, SilentProgress), (notebook, NotebookProgress)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert type(usual_progress()) is expected


def test_a_stage_is_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    progress = NotebookProgress()
    with progress.stage("scoring", 3) as advance:
        advance(2)
        with progress.stage("inside", 1, "alphas") as inner:
            inner(1)
        advance(1)
    progress.note("a fact")
    progress.warn("a doubt")
    shown = capsys.readouterr()
    assert "scoring: 100%" in shown.err
    assert "3/3" in shown.err
    assert shown.out.splitlines()[-2:] == ["a fact", "warning: a doubt"]
