"""What the tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support import no_code, untouched
from support.digits import Trained, train

# More examples of what takes long (pytest --hypothesis-profile thorough).
settings.register_profile("thorough", max_examples=2000)


@pytest.fixture(scope="session")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A network on images of which 30% of the training and validation labels are wrong; not to be changed."""
    return train(tmp_path_factory.mktemp("noisy"), noise=0.3)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A network that never saw a wrong label; not to be changed."""
    return train(tmp_path_factory.mktemp("clean"), noise=0.0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' artifacts out of the user's cache, those of the processes that tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def _violations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the runs of the command line report what should not run; those of other processes too."""
    report = tmp_path_factory.mktemp("violations") / "report"
    report.touch()
    start = str(Path(__file__).parent / "support" / "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(no_code.REPORT, str(report))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (start, os.environ.get("PYTHONPATH")))))
        no_code.install()
        yield report


@pytest.fixture(autouse=True)
def _no_code_runs(_violations: Path) -> Iterator[None]:
    """Fail a test in which a command line runs anything but itself and what it was told to, or changes its inputs."""
    _violations.write_text("")
    yield
    untouched.check_held()
    assert _violations.read_text() == "", "code was run that no command line named"
