"""What the fault tests share."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from support.processes import project_arguments, repaired, start
from support.small_project import Project, make_project

# The longest begins first: at the end, one process would wait for it alone.
_LONGEST = "test_whole_commands.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != _LONGEST)


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


@pytest.fixture(scope="session")
def seconds(original: Project, expected: bytes, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long an undisturbed run takes here and now, once the server of `processes` runs: the quickest of three."""
    taken = []
    for _ in range(3):
        folder = tmp_path_factory.mktemp("timed") / "project"
        shutil.copytree(original.folder, folder)
        began = time.monotonic()
        assert start(folder, project_arguments()).wait() == 0
        taken.append(time.monotonic() - began)
    return min(taken)


@pytest.fixture
def project(original: Project, tmp_path: Path) -> Project:
    """A copy of the small project, without a cache."""
    # The times of change are part of what a cached artifact is found by, so they are kept.
    shutil.copytree(original.folder, tmp_path / "project")
    return Project(tmp_path / "project")
