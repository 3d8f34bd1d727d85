"""The table of checkpoints in `docs/inputs.md`: every row is tried, and every form has its row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from support.checkpoint_forms import FORMS, NETWORK, small
from support.client_files import CLASSES, Pictures, logits_of, metrics_of, numbers, write_pictures
from support.small_project import run_here
from torchvision import transforms

_PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"
_HEADING = "### Checkpoints, form by form"
_HALF = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])


def rows() -> dict[str, str]:
    """From each form in the page to the answer that stands there."""
    section = re.split(r"\n##", _PAGE.read_text().split(_HEADING)[1])[0]
    found = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)
    return {form: answer for form, answer in found if form not in ("form", "---")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Forty images of 32 pixels."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "data")


@pytest.fixture(scope="module")
def expected(pictures: Pictures) -> tuple[float, float]:
    """Top-1 and loss of the small network in plain PyTorch."""
    return numbers(logits_of(small(), pictures, _HALF), pictures.label_numbers(CLASSES))


def test_every_form_has_its_row() -> None:
    assert list(rows()) == list(FORMS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_a_row(
    tmp_path: Path,
    pictures: Pictures,
    expected: tuple[float, float],
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer, given = rows()[form], FORMS[form]
    (tmp_path / "given").mkdir()
    source = given.make(tmp_path / "given")
    (tmp_path / "network.py").write_text(NETWORK)
    arch = ("--arch", f"{tmp_path / 'network.py'}:small") if given.needs_arch else ()
    outcome = run_here("eval", source, pictures.folder, *arch, *given.options, "--format", "json", "--workers", "0")
    if answer == "yes":
        found = metrics_of(outcome)
        if given.needs_arch:
            tolerance = 1e-2 if form == "half precision" else 1e-4
            assert found[1] == pytest.approx(expected[1], abs=tolerance)
        return
    assert outcome.status != 0, outcome.stdout
    error, hint = outcome.stderr.strip().splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint:")
    assert _plain(answer) in _plain(hint), outcome.stderr
    for word in ("damaged", "cut off", "Unsupported", "PytorchStreamReader", "Traceback"):
        assert word not in error


def _plain(text: str) -> str:
    """A text without the marks of Markdown, the names of what was given and the case of its beginning."""
    text = text.replace("nobody-at-all/nothing", "OWNER/NAME")
    text = text.removeprefix("hint:").strip().rstrip(".").replace("`", "").replace("\\|", "|")
    return text[:1].lower() + text[1:]


def test_the_small_network_is_what_it_was() -> None:
    """Two calls give the same weights, so that the rows compare with the same numbers."""
    assert all(torch.equal(one, other) for one, other in zip(small().parameters(), small().parameters(), strict=True))
