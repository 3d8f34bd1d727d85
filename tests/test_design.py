"""What docs/design.md and CONTRIBUTING.md say of the code: paths and names that exist, and a line for every module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sapcli"
DESIGN, CONTRIBUTING = ROOT / "docs" / "design.md", ROOT / "CONTRIBUTING.md"
WINGS = [PACKAGE, *sorted(init.parent for init in PACKAGE.rglob("*/__init__.py"))]

_MOST_LINES, _MOST_MODULES, _MOST_IN_PACKAGE = 400, 16, 15
_PATH_ENDINGS = (".py", ".md", ".j2", ".css", ".xz", "/")
_PATH_NAMES = ("Makefile", "pyproject.toml", ".ci/run")


def modules_of(wing: Path) -> set[str]:
    """The modules that lie in a wing itself, without its docstring's file."""
    return {path.name for path in wing.glob("*.py")} - {"__init__.py"}


def name_of(wing: Path) -> str:
    """A wing as the documents call it."""
    return f"{wing.relative_to(ROOT)}/"


def sections(text: str) -> Iterator[tuple[Path | None, str]]:
    """The sections of a document without code blocks, each with the wing that its heading names."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for section in re.split(r"^(?=##+ )", plain, flags=re.MULTILINE):
        heading = re.match(r"### `(.*)/`\n", section)
        yield (ROOT / heading[1] if heading else None), section


def listed(wing: Path) -> set[str]:
    """The modules that docs/design.md has a line for, under the wing's heading."""
    for named, section in sections(DESIGN.read_text()):
        if named == wing:
            return set(re.findall(r"^\| `([^`]+)` \| \S", section, re.MULTILINE))
    return set()


def located(path: str, wing: Path | None) -> Path | None:
    """The file or folder that a path means: from the root, from the package, or from the section's wing."""
    places = [ROOT / path, PACKAGE / path, *([wing / path] if wing else [])]
    return next((place for place in places if place.exists()), None)


def mentions(document: Path) -> Iterator[tuple[str, Path | None]]:
    """What stands in backticks, with the wing of the section."""
    for wing, section in sections(document.read_text()):
        assert all(line.count("`") % 2 == 0 for line in section.splitlines()), "what is in backticks stays in one line"
        for text in re.findall(r"`([^`\n]+)`", section):
            yield text, wing


def defines(file: Path, name: str) -> bool:
    """Whether a Python file has a function, class or constant of that name."""
    return bool(re.search(rf"^ *(?:(?:def|class) {name}\b|{name}\b(?:: [^=\n]+)? =)", file.read_text(), re.MULTILINE))


@pytest.mark.parametrize("wing", WINGS, ids=name_of)
def test_every_module_has_its_line(wing: Path) -> None:
    missing, gone = modules_of(wing) - listed(wing), listed(wing) - modules_of(wing)
    assert not missing, f"docs/design.md, under `{name_of(wing)}`: add a line for {', '.join(sorted(missing))}"
    assert not gone, f"docs/design.md, under `{name_of(wing)}`: remove {', '.join(sorted(gone))}"


@pytest.mark.parametrize("document", [DESIGN, CONTRIBUTING], ids=lambda path: path.name)
def test_what_is_named_exists(document: Path) -> None:
    wrong = []
    checked = 0
    for text, wing in mentions(document):
        path, colons, name = text.partition("::")
        if not colons and not (path.endswith(_PATH_ENDINGS) or path in _PATH_NAMES):
            continue
        checked += 1
        found = located(path, wing)
        if found is None or (colons and not defines(found, name)):
            wrong.append(text)
    assert checked > 5
    assert not wrong, f"{document.name} names what is not there (any more): {', '.join(wrong)}"


@pytest.mark.parametrize("document", [DESIGN, CONTRIBUTING, ROOT / "README.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    gone = [target for target in targets if not (document.parent / target).exists()]
    assert targets
    assert not gone, f"{document.name} links to {', '.join(gone)}"


def test_versions_are_those_of_the_code() -> None:
    named = set(re.findall(r"`(sap\.\w+/\d+)`", DESIGN.read_text()))
    used = set(re.findall(r"\"(sap\.\w+/\d+)\"", "".join(path.read_text() for path in PACKAGE.rglob("*.py"))))
    assert named == used, "docs/design.md, under The forms of the artifacts: name the versions that the code has"


def test_every_key_of_a_corrected_checkpoint_is_named() -> None:
    source = (PACKAGE / "repairs" / "metadata.py").read_text()
    missing = [key for key in re.findall(r'"(sap\.\w+)"', source) if f"`{key}`" not in DESIGN.read_text()]
    assert not missing, f"docs/design.md, under The forms of the artifacts: name {', '.join(missing)}"


@pytest.mark.parametrize("wing", WINGS, ids=name_of)
def test_a_room_can_be_overlooked(wing: Path) -> None:
    lines = {name: len((wing / name).read_text().splitlines()) for name in modules_of(wing)}
    long = [f"{name} ({count} lines)" for name, count in lines.items() if count > _MOST_LINES]
    assert not long, f"a module is about one thing, in at most {_MOST_LINES} lines: {', '.join(long)}"
    assert len(lines) <= _MOST_MODULES, f"{name_of(wing)} has {len(lines)} modules: it may want to be two"


def test_the_package_can_be_overlooked() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= _MOST_IN_PACKAGE, sorted(entries)


def test_every_wing_is_mirrored_by_the_tests() -> None:
    """A test file is called after a module of its wing, or names a promise (docs/design.md, under Tests)."""
    for wing in WINGS[1:]:
        mirrored = ROOT / "tests" / wing.relative_to(PACKAGE)
        named = {path.name.removeprefix("test_") for path in mirrored.glob("test_*.py")}
        assert named & modules_of(wing), f"{mirrored.relative_to(ROOT)} has no test of a module of {name_of(wing)}"


def test_no_test_runs_the_command_line_unwatched() -> None:
    """`support.command_line` holds the inputs of a run still, and sees what code it runs."""
    own = re.compile(r"^from sapcli\.commands(\.entry import run| import entry)", re.MULTILINE)
    unwatched = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if own.search(path.read_text())]
    assert not unwatched, "import run from support.command_line"
