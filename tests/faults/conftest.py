"""What the fault tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from processes import repaired
from small_project import Project, make_project


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project; not to be changed."""
    return make_project(tmp_path_factory.mktemp("original") / "project")


@pytest.fixture(scope="session")
def expected(original: Project, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an undisturbed repair of the small project writes."""
    folder = tmp_path_factory.mktemp("expected") / "project"
    shutil.copytree(original.folder, folder)
    return repaired(Project(folder))


@pytest.fixture
def project(original: Project, tmp_path: Path) -> Project:
    """A copy of the small project, without a cache."""
    # The times of change are part of what a cached artifact is found by, so they are kept.
    shutil.copytree(original.folder, tmp_path / "project")
    return Project(tmp_path / "project")
