"""Tests of the user's own code: loaded once and again after an edit, hashed as it was executed, its errors told."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from support.own_networks import process_as_before
from torch import nn

from sapcli.errors import ArchitectureError
from sapcli.networks.factories import find_factory

NET = """
import torch
from torch import nn
import blocks_of_net
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 2)
    def forward(self, x):
        return blocks_of_net.act(self.f(x))
"""


def write(folder: Path, act: str, net: str = NET) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "blocks_of_net.py").write_text(f"def act(x):\n    return x.{act}()\n")
    (folder / "net.py").write_text(net)
    return folder / "net.py"


def output(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        network.f.weight.fill_(0.25)
        network.f.bias.fill_(0.5)
        result: torch.Tensor = network(torch.ones(1, 4))
        return result


def test_an_edited_neighbour_is_loaded_again_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, "sin")
    first = find_factory(f"{file}:Net")
    digest = first.code_digest
    assert find_factory(f"{file}:Net").function is first.function
    assert output(first.build({})) == pytest.approx(torch.full((1, 2), 1.5).sin().numpy())
    # As long as before and within the same second: Python's own compiled file would be taken for the new text.
    write(tmp_path, "cos")
    second = find_factory(f"{file}:Net")
    assert output(second.build({})) == pytest.approx(torch.full((1, 2), 1.5).cos().numpy())
    assert output(first.build({})) == pytest.approx(torch.full((1, 2), 1.5).sin().numpy())
    assert second.code_digest != digest
    assert first.code_digest == digest


@pytest.mark.parametrize(
    "late",
    [
        "class Net(nn.Linear):\n    def forward(self, x):\n        import blocks_of_net\n        return x",
        "def Net():\n    from blocks_of_net import act\n    return nn.Linear(4, 2)",
        "import importlib\nact = importlib.import_module('blocks_' + 'of_net').act\nNet = nn.Linear",
        "import package_of_net.inner as inner\nNet = nn.Linear",
    ],
)
def test_the_digest_is_of_every_module_that_the_code_leads_to(tmp_path: Path, late: str) -> None:
    (tmp_path / "package_of_net").mkdir()
    (tmp_path / "package_of_net" / "__init__.py").touch()
    (tmp_path / "package_of_net" / "inner.py").write_text("from . import innermost\n")
    (tmp_path / "package_of_net" / "innermost.py").write_text("import blocks_of_net\n")
    file = write(tmp_path, "sin", f"from torch import nn\n{late}\n")
    digests = [find_factory(f"{file}:Net").code_digest for _ in range(2)]
    write(tmp_path, "cos", file.read_text())
    digests.append(find_factory(f"{file}:Net").code_digest)
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    digests.append(find_factory(f"{file}:Net").code_digest)
    assert digests[0] == digests[1] != digests[2] == digests[3]


def test_the_digest_is_that_of_the_code_and_not_of_its_place(tmp_path: Path) -> None:
    one, two = (find_factory(f"{write(tmp_path / name, 'sin')}:Net") for name in ("one", "two"))
    assert one.code_digest == two.code_digest


def test_the_digest_is_of_the_text_that_was_executed(tmp_path: Path) -> None:
    file = write(tmp_path, "sin")
    factory = find_factory(f"{file}:Net")
    write(tmp_path, "cos")
    assert factory.code_digest == find_factory(f"{write(tmp_path / 'again', 'sin')}:Net").code_digest


def test_neighbours_of_the_same_name_do_not_get_into_each_others_way(tmp_path: Path) -> None:
    one, two = (find_factory(f"{write(tmp_path / act, act)}:Net") for act in ("sin", "cos"))
    assert output(two.build({})) == pytest.approx(torch.full((1, 2), 1.5).cos().numpy())
    assert output(one.build({})) == pytest.approx(torch.full((1, 2), 1.5).sin().numpy())


def test_the_code_finds_no_options_of_this_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sap", "eval", "--format", "json"])
    script = "import argparse\np = argparse.ArgumentParser()\np.add_argument('--width', type=int, default=5)\n"
    file = write(
        tmp_path, "sin", f"{script}from torch import nn\na = p.parse_args()\nNet = lambda: nn.Linear(4, a.width)\n"
    )
    assert find_factory(f"{file}:Net").build({}).out_features == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise SystemExit('no GPU here')", "SystemExit: no GPU here"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("class E(Exception):\n    def __str__(self):\n        raise ValueError\nraise E", "E"),
        ("raise ValueError('first\\nsecond')", "ValueError: first second"),
    ],
)
def test_what_an_import_raises_is_told(tmp_path: Path, text: str, says: str) -> None:
    file = write(tmp_path, "sin", text)
    with pytest.raises(ArchitectureError) as raised:
        find_factory(f"{file}:Net")
    assert raised.value.message.endswith(f"cannot be imported: {says}") or says in raised.value.message
    assert "\n" not in raised.value.message
    assert "--debug" in raised.value.hint


@pytest.mark.parametrize(
    ("place", "text", "working", "says"),
    [
        ("pkg", "from . import b", ".", "--arch pkg.net:Net"),
        ("pkg/inner", "from .. import b", ".", "--arch pkg.inner.net:Net"),
        ("pkg", "from . import b", "pkg", "--arch pkg.net:Net in "),
    ],
)
def test_a_relative_import_is_told_how_to_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, text: str, working: str, says: str
) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "b.py").touch()
    (tmp_path / place / "net.py").write_text(f"{text}\nfrom torch import nn\nclass Net(nn.Linear): pass\n")
    monkeypatch.chdir(tmp_path / working)
    file = os.path.relpath(tmp_path / place / "net.py")
    with pytest.raises(ArchitectureError, match="attempted relative import") as raised:
        find_factory(f"{file}:Net")
    assert says in raised.value.hint
    monkeypatch.chdir(tmp_path)
    dotted = raised.value.hint.partition("--arch ")[2].split()[0].rstrip(";")
    assert isinstance(find_factory(dotted).build({"in_features": 2, "out_features": 2}), nn.Linear)


def test_a_module_that_somebody_has_imported_before_is_loaded_again_after_an_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "sin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("net", "blocks_of_net"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with process_as_before():
        import net  # type: ignore[import-not-found]

    try:
        first = find_factory("net:Net")
        assert first.function is net.Net
        digest = first.code_digest
        write(tmp_path, "cos")
        second = find_factory("net:Net")
        assert output(second.build({})) == pytest.approx(torch.full((1, 2), 1.5).cos().numpy())
        assert second.code_digest != digest
    finally:
        for name in ("net", "blocks_of_net"):
            sys.modules.pop(name, None)
