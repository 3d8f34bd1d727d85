"""Passes over images that are found again, or gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.small_project import Project, make_project
from torch import Tensor

from sapcli import open_session
from sapcli.activations import scoring
from sapcli.activations.scoring import Classifier, Outcomes
from sapcli.repairs.session import Session


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("passes") / "project")


def opened(project: Project, cache: Path) -> Session:
    network = f"{project.folder / 'network.py'}:tiny"
    return open_session(project.checkpoint, project.data, arch=network, cache_dir=cache, batch_size=8)


def assert_same(found: Outcomes, wanted: Outcomes) -> None:
    for name, column in vars(wanted).items():
        assert torch.equal(getattr(found, name), column), name


def test_a_judgement_that_was_ended_goes_on(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_SECONDS_BETWEEN_PARTS", (0.0, 0.0))
    session = opened(project, tmp_path / "other")
    wanted = session.judge(session.images(session.training), "judging")
    usual, seen = Classifier.logits, [0]

    def counted(self: Classifier, images: Tensor, *, exact: bool = True) -> Tensor:
        seen[0] += len(images)
        if seen[0] > len(wanted) // 2:
            raise KeyboardInterrupt
        return usual(self, images, exact=exact)

    session = opened(project, tmp_path / "cache")
    session.check_forward(session.training, stop=False)
    with monkeypatch.context() as ended:
        ended.setattr(Classifier, "logits", counted)
        with pytest.raises(KeyboardInterrupt):
            session.judge(session.images(session.training), "judging")
    before, seen[0] = seen[0], -len(wanted)
    session = opened(project, tmp_path / "cache")
    monkeypatch.setattr(Classifier, "logits", counted)
    assert_same(session.judge(session.images(session.training), "judging"), wanted)
    # Two batches at most are seen by both: the one that ended it, and the one before, which was not kept yet.
    assert 0 < len(wanted) + seen[0] <= len(wanted) - before + 16
    assert not list((tmp_path / "cache").glob("parts-*"))


def test_views_are_made_once(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(project, tmp_path)
    made = session.views(session.training_images, "looking")
    assert_same(made.outcomes, session.score(session.training_images, "scoring", exact=False))
    session = opened(project, tmp_path)
    monkeypatch.setattr(Classifier, "logits", None)
    found = session.views(session.training_images, "looking")
    assert_same(found.outcomes, made.outcomes)
    for name in ("logits", "features", "pixels"):
        assert torch.equal(getattr(found, name), getattr(made, name))
