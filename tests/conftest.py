"""What the tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
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
