"""No output is an input or another output, whatever its name, and with `--force` too."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.small_project import Project, make_project, run_here

MODEL = ("model.safetensors", "data", "--arch", "network.py:tiny", "--quiet", "--workers", "0")
COMMANDS: dict[str, tuple[str, ...]] = {
    "eval -o": ("eval", *MODEL, "-o"),
    "eval --summary": ("eval", *MODEL, "--summary"),
    "select -o": ("select", *MODEL, "-n", "30", "-o"),
    "activations -o": ("activations", *MODEL, "-n", "30", "-o"),
    "project -o": ("project", *MODEL, "-n", "30", "-o"),
    "project --summary": ("project", *MODEL, "-n", "30", "-o", "new.safetensors", "--summary"),
    "suspects -o": ("suspects", *MODEL, "-o"),
    "suspects --html": ("suspects", *MODEL, "--html"),
    "suspects --apply-to": ("suspects", *MODEL, "--apply", "csv", "--apply-to"),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project, with files beside it that options name."""
    project = make_project(tmp_path_factory.mktemp("original") / "project")
    (project.folder / "config.json").write_text(json.dumps({"label_names": ["blue", "green", "red"]}))
    (project.folder / "labels.csv").write_text("path,label\ntrain/red/00.png,red\n")
    (project.folder / "map.csv").write_text("folder,class\nblue,0\ngreen,1\nred,2\n")
    (project.folder / "sap.toml").write_text('labels = "labels.csv"\nclass-map = "map.csv"\n')
    return project


@pytest.fixture
def project(original: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy, as the working folder."""
    shutil.copytree(original.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def refused(project: Project, *arguments: str, status: int = 1) -> str:
    """The message of a command that is refused, and changes nothing."""
    before = contents(project.folder)
    outcome = run_here(*arguments)
    assert outcome.status == status, outcome.stderr
    assert outcome.stdout == b""
    assert len(outcome.stderr.splitlines()) == 2, outcome.stderr
    assert contents(project.folder) == before
    return outcome.stderr


INPUTS = (
    "model.safetensors",
    "config.json",
    "network.py",
    "labels.csv",
    "map.csv",
    "sap.toml",
    "data/train/red/00.png",
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", INPUTS)
def test_no_input_is_written_over(project: Project, command: str, name: str) -> None:
    force = () if "--summary" in command else ("--force",)
    message = refused(project, *COMMANDS[command], name, *force)
    if not ("--summary" in command and name.endswith((".safetensors", ".png"))):
        assert "never overwritten" in message


@pytest.mark.parametrize("how", ["symbolic link", "hard link", "link to the folder", "dotted"])
@pytest.mark.parametrize("name", ["model.safetensors", "data/val/blue/03.png", "labels.csv"])
def test_links_are_seen_through(project: Project, name: str, how: str) -> None:
    link = project.folder / "link"
    output = "link"
    if how == "symbolic link":
        link.symlink_to(name)
    elif how == "hard link":
        os.link(name, link)
    elif how == "link to the folder":
        link.symlink_to(Path(name).parent, target_is_directory=True)
        output = f"link/{Path(name).name}"
    else:
        output = f"data/../{name}"
    assert "never overwritten" in refused(project, "eval", *MODEL, "-o", output, "--force")


def test_an_image_that_the_data_folder_only_links_to(project: Project) -> None:
    (project.folder / "elsewhere").mkdir()
    image = project.folder / "data" / "train" / "red" / "01.png"
    image.rename(project.folder / "elsewhere" / "blob")
    image.symlink_to(project.folder / "elsewhere" / "blob")
    assert "an image of data" in refused(project, "eval", *MODEL, "-o", "elsewhere/blob", "--force")


def test_a_result_of_an_earlier_run_in_the_data_folder_is_no_input(project: Project) -> None:
    for _ in range(2):
        outcome = run_here("eval", *MODEL, "-o", "data/metrics.json", "--force")
        assert outcome.status == 0, outcome.stderr


@pytest.mark.parametrize("name", ["more.parquet", "shard-0.tar", "train/metadata.csv", "data_batch_1"])
@pytest.mark.parametrize("how", ["name", "hard link"])
def test_what_a_data_folder_is_read_from_is_an_input(project: Project, name: str, how: str) -> None:
    file = project.data / name
    file.write_text("file_name,label\nred/00.png,red\n")
    output = f"data/{name}"
    if how == "hard link":
        os.link(file, project.folder / "link")
        output = "link"
    assert "never overwritten" in refused(project, "select", *MODEL, "-n", "30", "-o", output, "--force")


NOISE = ("noise", "data", "--kind", "symmetric", "--rate", "0.3", "--force")


@pytest.mark.parametrize("name", ["data/train/red/00.png", "labels.csv", "sap.toml"])
@pytest.mark.parametrize("option", ["-o", "--truth"])
def test_noise_leaves_what_it_reads(project: Project, name: str, option: str) -> None:
    os.link(project.folder / name, "link")
    labels = ("--labels", "labels.csv", "-o", "noisy.csv") if option == "--truth" else ("--labels", "labels.csv")
    assert "never overwritten" in refused(project, *NOISE, *labels, option, "link")


def test_a_report_leaves_the_settings_file(project: Project) -> None:
    os.link("sap.toml", "link.md")
    assert "never overwritten" in refused(project, "report", "report.json", "-o", "link.md", "--force")


def test_shards_replace_a_file_that_is_no_index(project: Project) -> None:
    weights = load_file("model.safetensors")
    save_file(weights, "shard.safetensors")
    (project.folder / "sharded.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(weights, "shard.safetensors")})
    )
    for text in ('{"label_names": []}', '{"weight_map": [1]}', "[" * 100_000):
        Path("out.json").write_text(text)
        arguments = ("project", "sharded.index.json", *MODEL[1:], "-n", "30", "-o", "out.json", "--force")
        outcome = run_here(*arguments)
        assert outcome.status == 0, outcome.stderr
        index = json.loads(Path("out.json").read_text())
        assert set(index["weight_map"]) == set(weights)


def test_images_of_a_list_are_inputs(project: Project) -> None:
    (project.folder / "val.csv").write_text("path,label\ndata/val/red/00.png,red\ndata/val/blue/00.png,blue\n")
    arguments = ("eval", MODEL[0], "val.csv", *MODEL[2:], "--force", "-o")
    (project.folder / "sap.toml").unlink()
    assert "an image of val.csv" in refused(project, *arguments, "data/val/red/00.png")
    assert "is the data" in refused(project, *arguments, "val.csv")


@pytest.mark.parametrize("option", ["--baseline", "--trusted", "--bases", "--forget", "--val", "--truth", "--arch"])
def test_what_other_options_name_is_an_input(project: Project, option: str) -> None:
    folder = project.folder
    shutil.copy("model.safetensors", "other.safetensors")
    (folder / "list.txt").write_text("train/red/01.png\ntrain/blue/01.png\n")
    (folder / "truth.csv").write_text("path,true\ntrain/red/01.png,red\n")
    (folder / "val.csv").write_text("path,label\ndata/val/red/00.png,red\n")
    (folder / "package").mkdir()
    shutil.copy("network.py", folder / "package" / "net.py")
    made = run_here("activations", *MODEL, "-n", "30", "-o", "bases.safetensors")
    assert made.status == 0, made.stderr
    command, value, output = {
        "--baseline": ("eval", "other.safetensors", "other.safetensors"),
        "--trusted": ("project", "list.txt", "list.txt"),
        "--bases": ("project", "bases.safetensors", "bases.safetensors"),
        "--forget": ("project", "list.txt", "list.txt"),
        "--val": ("project", "val.csv", "val.csv"),
        "--truth": ("suspects", "truth.csv", "truth.csv"),
        "--arch": ("eval", "package.net:tiny", "package/net.py"),
    }[option]
    more = ("-n", "30") if command == "project" else ()
    assert "never overwritten" in refused(project, command, *MODEL, *more, option, value, "-o", output, "--force")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("project", *MODEL, "-n", "30", "-o", "x.json", "--report", "x.json"), "-o and --report"),
        (("project", *MODEL, "-n", "30", "-o", "x", "--report", "r.md", "--report", "./r.md"), "--report"),
        (("project", *MODEL, "-n", "30", "-o", "x", "--report", "r.md", "--summary", "r.md"), "--summary and --report"),
        (("eval", *MODEL, "-o", "x", "--summary", "data/../x"), "-o and --summary"),
        (("suspects", *MODEL, "-o", "x", "--html", "x"), "-o and --html"),
        (("suspects", *MODEL, "--html", "x", "--apply", "csv", "--apply-to", "x"), "--html and --apply-to"),
        (("suspects", *MODEL, "-o", "corrected.csv", "--apply", "csv"), "-o and --apply-to"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_no_two_outputs_are_one_file(project: Project, arguments: tuple[str, ...], named: str, force: bool) -> None:
    assert f"{named} would write" in refused(project, *arguments, *(["--force"] if force else []), status=2)


def test_a_device_may_take_several_outputs(project: Project) -> None:
    outcome = run_here("eval", *MODEL, "-o", "/dev/null", "--summary", "/dev/null")
    assert outcome.status == 0, outcome.stderr


def test_shards_and_their_index_are_inputs(project: Project) -> None:
    tensors = load_file("model.safetensors")
    names = {"a.safetensors": [name for name in tensors if name[0] in "01"], "b.safetensors": ["4.weight", "4.bias"]}
    for shard, inside in names.items():
        save_file({name: tensors[name] for name in inside}, shard)
    weight_map = {name: shard for shard, inside in names.items() for name in inside}
    Path("model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    Path("model.safetensors").unlink()
    for output in ("a.safetensors", "b.safetensors", "model.safetensors.index.json"):
        message = refused(project, "eval", ".", *MODEL[1:], "-o", output, "--force")
        assert "the input" in message


def test_a_report_is_not_rendered_over_itself(project: Project) -> None:
    made = run_here("project", *MODEL, "-n", "30", "-o", "new.safetensors", "--report", "r.json")
    assert made.status == 0, made.stderr
    os.link("r.json", "again.json")
    for output in ("r.json", "again.json"):
        assert "never overwritten" in refused(project, "report", "r.json", "-o", output, "--force")


def test_of_several_checkpoints_none_is_written_over(project: Project) -> None:
    shutil.copy("model.safetensors", "model.sap.safetensors")
    shutil.copy("model.safetensors", "model.pt")
    several = ("project", "model.safetensors", "model.sap.safetensors", *MODEL[1:], "-n", "30", "--force")
    assert "never overwritten" in refused(project, *several)
    alike = ("project", "model.safetensors", "model.pt", *MODEL[1:], "-n", "30", "--force")
    assert "same file name" in refused(project, *alike, status=2)


def test_links_are_not_made_inside_the_data_folder(project: Project) -> None:
    arguments = ("suspects", *MODEL, "--apply", "links", "--apply-to", "data/train/corrected")
    assert "lies in the data folder" in refused(project, *arguments, status=2)


@pytest.mark.parametrize(
    ("command", "name"),
    [("eval -o", "x"), ("activations -o", "x"), ("project -o", "x.safetensors"), ("suspects --html", "x.html")],
)
def test_what_has_appeared_during_the_run_is_not_replaced(
    project: Project, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    from sapcli.datasets.images import Images

    batches = Images.batches

    def appear(self: Images, *arguments: object) -> object:
        Path(name).write_bytes(b"theirs")
        return batches(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Images, "batches", appear)
    monkeypatch.setenv("SAP_CACHE", str(project.folder / "cache"))
    outcome = run_here(*COMMANDS[command], name)
    assert outcome.status == 1, outcome.stderr
    assert "has appeared since the run began" in outcome.stderr
    assert Path(name).read_bytes() == b"theirs"
    assert not list(project.folder.glob(".sap-*"))
