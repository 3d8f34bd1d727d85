"""Tests that a network of the user's own computes what its owner's plain code computes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.own_networks import NETWORKS, Owned, own_network, plain_logits
from support.samples import folder_of

from sapcli import repair
from sapcli.activations.plain_comparison import choose_way
from sapcli.activations.scoring import Classifier
from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.errors import UsageError
from sapcli.machine.progress import SilentProgress
from sapcli.networks.architecture import load_model, resolve_architecture
from sapcli.settings import PreprocessingOverrides

CPU = torch.device("cpu")
OVERRIDES = PreprocessingOverrides(input_size=(3, 8, 8), mean=(0.5,), std=(0.5,))


def classifier_of_own(owned: Owned) -> Classifier:
    """The network as a command has it."""
    checkpoint = open_checkpoint(owned.checkpoint)
    architecture = resolve_architecture(checkpoint, owned.spec, overrides=OVERRIDES)
    classifier = Classifier(load_model(checkpoint, architecture, CPU), architecture, CPU)
    choose_way(classifier, SilentProgress())
    return classifier


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_logits_are_those_of_the_plain_code(tmp_path: Path, kind: str) -> None:
    owned = own_network(kind, tmp_path / "code")
    before = Path.cwd(), list(sys.path), dict(os.environ), torch.get_rng_state()
    settings = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    classifier = classifier_of_own(owned)
    found = classifier.logits(owned.images)
    assert (found - owned.logits).abs().max() <= 1e-5 * owned.logits.abs().max()
    assert torch.equal(classifier.logits(owned.images), found)
    assert classifier.as_built == (kind == "the layout of its images")
    assert (Path.cwd(), list(sys.path), dict(os.environ)) == before[:3]
    assert torch.equal(torch.get_rng_state(), before[3])
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()) == settings
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_corrected_file_holds_what_was_measured(tmp_path: Path, kind: str) -> None:
    """The repaired network in memory, and its file loaded by the plain code, give the same logits."""
    owned = own_network(kind, tmp_path / "code")
    data = folder_of(tmp_path / "data", {"a": 8, "b": 8, "c": 8}, side=8)
    if kind in _NOTHING_TO_PROJECT:
        with pytest.raises(UsageError, match="no weight of the network can be projected"):
            repair(owned.checkpoint, data, arch=owned.spec, preprocessing=OVERRIDES, trusted_count=9, alpha=50)
        return
    repaired = repair(owned.checkpoint, data, arch=owned.spec, preprocessing=OVERRIDES, trusted_count=9, alpha=50)
    written = repaired.save(tmp_path / "repaired.safetensors")
    measured = repaired.session.classifier.logits(owned.images)
    plain = plain_logits(kind, owned.file, load_file(written), owned.images)
    assert (plain - owned.logits).abs().max() > 1e-3 * owned.logits.abs().max()
    assert (measured - plain).abs().max() <= 1e-5 * plain.abs().max()
    before, after = load_file(owned.checkpoint), load_file(written)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == set(repaired.correction.changed_entries())


_NOTHING_TO_PROJECT = ("saved under other names",)
