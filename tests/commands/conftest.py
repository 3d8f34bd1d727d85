"""Fixtures of the commands' tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.small_project import Project, make_project


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project; not to be changed."""
    return make_project(tmp_path_factory.mktemp("original") / "project")


@pytest.fixture
def project(original: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy, as the working folder."""
    shutil.copytree(original.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")
