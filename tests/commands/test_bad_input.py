"""Bad input, as one table: each case ends with its status and two lines that say what is wrong and what to do."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.command_line import run_process
from support.small_project import CLASSES, Outcome, Project, make_project, run_here, without_privileges

from sapcli.machine.files import remove_unfinished

ERROR, USAGE = 1, 2

Header = dict[str, dict[str, object]]


def header_and_data(project: Project) -> tuple[Header, bytes]:
    content = project.checkpoint.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def write_raw(project: Project, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    size = len(header) if length is None else length
    project.checkpoint.write_bytes(size.to_bytes(8, "little") + header + data)


def truncated(length: int) -> Callable[[Project], None]:
    """Cut the checkpoint off: after so many bytes, or before so many at the end."""

    def prepare(project: Project) -> None:
        project.checkpoint.write_bytes(project.checkpoint.read_bytes()[:length])

    return prepare


def header_with(change: Callable[[Header], object]) -> Callable[[Project], None]:
    """Change the header's object, the data staying as it is."""

    def prepare(project: Project) -> None:
        header, data = header_and_data(project)
        change(header)
        write_raw(project, json.dumps(header).encode(), data)

    return prepare


def raw_header(header: bytes, length: int | None = None) -> Callable[[Project], None]:
    return lambda project: write_raw(project, header, length=length)


def weights_with(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Project], None]:
    """Change the weights in a file that is right in itself."""

    def prepare(project: Project) -> None:
        tensors = load_file(project.checkpoint)
        change(tensors)
        save_file(tensors, project.checkpoint)

    return prepare


def file_with(name: str, content: bytes | str) -> Callable[[Project], None]:
    def prepare(project: Project) -> None:
        path = project.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def duplicate_key(project: Project) -> None:
    header, data = header_and_data(project)
    text = json.dumps(header).encode()
    write_raw(project, text[:-1] + b"," + text[1:], data)


def sharded(files: dict[str, list[str]], weight_map: dict[str, str]) -> Callable[[Project], None]:
    """Replace the checkpoint by shards with these tensors and an index."""

    def prepare(project: Project) -> None:
        tensors = load_file(project.checkpoint)
        for name, inside in files.items():
            save_file({key: tensors[key] for key in inside}, project.folder / name)
        (project.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        project.checkpoint.unlink()

    return prepare


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


def hostile_pickle(name: str) -> Callable[[Project], None]:
    return lambda project: file_with(name, pickle.dumps({"state_dict": Bomb()}))(project)


def zip_archive(project: Project) -> None:
    with zipfile.ZipFile(project.checkpoint, "w") as archive:
        archive.writestr("data.pkl", b"")


def label_names(first: str) -> Callable[[Project], None]:
    """Name the classes in the checkpoint's metadata, the first one like this."""

    def prepare(project: Project) -> None:
        names = json.dumps([first, "green", "red"])
        save_file(load_file(project.checkpoint), project.checkpoint, {"label_names": names})

    return prepare


def fifo(name: str) -> Callable[[Project], None]:
    def prepare(project: Project) -> None:
        path = project.folder / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    return prepare


def forbidden(name: str) -> Callable[[Project], None]:
    return lambda project: (project.folder / name).chmod(0)


def png(width: int, height: int) -> bytes:
    """A PNG file of this size whose data is missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    about = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


IMAGE = "data/train/red/00.png"


def truncated_image(project: Project) -> None:
    image = project.folder / IMAGE
    image.write_bytes(image.read_bytes()[:-40])


def only_unreadable(project: Project) -> None:
    for image in project.data.rglob("*.png"):
        image.write_bytes(b"no image")


def image_named(name: bytes) -> Callable[[Project], None]:
    def prepare(project: Project) -> None:
        Path(os.fsdecode(os.fsencode(project.data / "train" / "red") + b"/" + name)).write_bytes(b"no image")

    return prepare


def without_images(project: Project) -> None:
    shutil.rmtree(project.data)
    for name in CLASSES:
        (project.data / "train" / name).mkdir(parents=True)


def one_class(project: Project) -> None:
    for split in ("train", "val"):
        for name in CLASSES[1:]:
            shutil.rmtree(project.data / split / name)


def loops(project: Project) -> None:
    without_images(project)
    for name in CLASSES:
        (project.data / "train" / name / "again").symlink_to(project.data / "train", target_is_directory=True)


def self_link(project: Project) -> None:
    shutil.rmtree(project.data)
    project.data.symlink_to(project.data)


def archive_with(member: str, kind: bytes = tarfile.REGTYPE) -> Callable[[Project], None]:
    def prepare(project: Project) -> None:
        with tarfile.open(project.folder / "data.tar", "w") as archive:
            info = tarfile.TarInfo(member)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)

    return prepare


def bases(
    change: Callable[[dict[str, torch.Tensor], dict[str, str]], object] | None = None,
) -> Callable[[Project], None]:
    """Make `bases.safetensors`, and change its tensors and metadata."""

    def prepare(project: Project) -> None:
        path = project.folder / "bases.safetensors"
        made = run_here("activations", "model.safetensors", "data", *COMMON, "-n", "30", "-o", path)
        assert made.status == 0, made.stderr
        if change is not None:
            with safe_open(path, framework="pt") as file:
                tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
            change(tensors, metadata)
            save_file(tensors, path, metadata)

    return prepare


def other_checkpoint(project: Project) -> None:
    bases()(project)
    weights_with(lambda tensors: tensors["0.weight"].mul_(2))(project)


def geometry(old: str, new: str) -> Callable[[dict[str, torch.Tensor], dict[str, str]], object]:
    def change(_tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        assert old in metadata["sap.weights"]
        metadata["sap.weights"] = metadata["sap.weights"].replace(old, new)

    return change


def gains(entries: dict[str, str]) -> Callable[[dict[str, torch.Tensor], dict[str, str]], object]:
    return lambda _tensors, metadata: metadata.update({"sap.gains": json.dumps(entries)})


def no_validation(project: Project) -> None:
    shutil.rmtree(project.data / "val")


def nothing(_project: Project) -> None:
    """The input is right; the options are not."""


COMMON = ("--arch", "network.py:tiny", "--workers", "0", "--quiet", "--cache-dir", "cache")
PROJECT = ("project", "model.safetensors", "data", *COMMON, "-n", "30")


def case(name: str, prepare: Callable[[Project], None], *more: str, says: str, status: int = ERROR) -> object:
    """A row of the table: `sap project` on the project as `prepare` left it, with more options."""
    return pytest.param(prepare, (*PROJECT, *more), status, says, id=name)


def command(name: str, prepare: Callable[[Project], None], *arguments: str, says: str, status: int = ERROR) -> object:
    """A row of the table with another command."""
    return pytest.param(prepare, arguments, status, says, id=name)


def set_span(name: str, start: int, stop: int) -> Callable[[Header], object]:
    return lambda header: header[name].update(data_offsets=[start, stop])


CHECKPOINTS = [
    case("missing", lambda project: project.checkpoint.unlink(), says="No such file"),
    case("empty", truncated(0), says="is empty"),
    case("only four bytes", truncated(4), says="4 bytes"),
    case("only the header's length", truncated(8), says="cut off"),
    case("half a header", truncated(200), says="cut off"),
    case("half the data", truncated(4000), says="cut off"),
    case("all but the last byte", truncated(-1), says="cut off"),
    case("bytes after the end", lambda project: project.checkpoint.open("ab").write(b"more"), says="4 bytes after"),
    case(
        "header too long for any file", raw_header(b"{}", 2**63), says="is not a safetensors file, nor one of PyTorch's"
    ),
    case("header longer than the file", raw_header(b"{}", 1000), says="cut off"),
    case("header is no JSON", raw_header(b'{"a": nothing}'), says="not valid JSON"),
    case("header is not UTF-8", raw_header(b'{"\xff": 1}'), says="not valid JSON"),
    case("header is a list", raw_header(b"[1, 2]"), says="not a JSON object"),
    case("header is nested without end", raw_header(b'{"a":' * 100_000), says="not valid JSON"),
    case("duplicate keys", duplicate_key, says="there twice"),
    case("metadata is no text", header_with(lambda h: h.update(__metadata__={"a": 1})), says="__metadata__"),  # type: ignore[dict-item]
    case("tensor without a place", header_with(lambda h: h["0.bias"].pop("data_offsets")), says="0.bias"),
    case("unknown dtype", header_with(lambda h: h["0.bias"].update(dtype="F31")), says="F31"),
    case("dtype of another size", header_with(lambda h: h["0.bias"].update(dtype="F64")), says="0.bias"),
    case("negative shape", header_with(lambda h: h["0.bias"].update(shape=[-8])), says="0.bias"),
    case("huge shape", header_with(lambda h: h["0.bias"].update(shape=[2**40, 2**40])), says="0.bias"),
    case("overlapping offsets", header_with(set_span("0.weight", 0, 864)), says="overlaps"),
    case("offsets out of range", header_with(set_span("0.weight", 10**6, 10**6 + 864)), says="gap"),
    case("offsets backwards", header_with(set_span("0.weight", 864, 0)), says="0.weight"),
    case("no tensors", raw_header(b"{}"), says="holds no tensors"),
    case("NaN weights", weights_with(lambda t: t["0.weight"].fill_(float("nan"))), says="0.weight"),
    case("infinite weights", weights_with(lambda t: t["4.weight"][0, 0].fill_(float("inf"))), says="4.weight"),
    case("NaN statistics", weights_with(lambda t: t["1.running_var"].fill_(float("nan"))), says="NaN"),
    case(
        "zero-size tensors",
        weights_with(lambda t: t.update({k: v[:0] for k, v in t.items() if v.dim()})),
        says="0.weight",
    ),
    case("missing key", weights_with(lambda t: t.pop("0.bias")), says="missing: 0.bias"),
    case("unexpected key", weights_with(lambda t: t.update(other=torch.ones(2))), says="unexpected: other"),
    case("misshapen key", weights_with(lambda t: t.update({"0.bias": torch.ones(9)})), says="misshapen: 0.bias"),
    case(
        "quantised weights",
        weights_with(lambda t: t.update({k: v.to(torch.int8) for k, v in t.items()})),
        says="quantised",
    ),
    case(
        "another number of classes",
        weights_with(lambda t: t.update({"4.weight": torch.ones(5, 512), "4.bias": torch.ones(5)})),
        says="5",
    ),
    case("escape sequence in a key", weights_with(lambda t: t.update({"\x1b[2Jevil\n": torch.ones(2)})), says="evil"),
    command(
        "missing shard",
        sharded({"a.safetensors": ["0.bias"]}, {"0.bias": "a.safetensors", "0.weight": "b.safetensors"}),
        "eval",
        ".",
        "data",
        *COMMON,
        says="b.safetensors",
    ),
    command(
        "shard outside the folder",
        sharded({}, {"0.bias": "../a.safetensors"}),
        "eval",
        ".",
        "data",
        *COMMON,
        says="../a.safetensors",
    ),
    command(
        "tensor in no shard",
        sharded({"a.safetensors": ["0.bias"]}, {"0.bias": "a.safetensors", "x": "a.safetensors"}),
        "eval",
        ".",
        "data",
        *COMMON,
        says="does not fit its shards",
    ),
    case("pickle with a safe name", hostile_pickle("model.safetensors"), says="pickle"),
    case("zip archive with a safe name", zip_archive, says="zip archive"),
    command("pickle that runs code", hostile_pickle("model.pt"), "eval", "model.pt", "data", *COMMON, says="model.pt"),
    case(
        "Git LFS pointer",
        file_with("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        says="Git LFS",
    ),
    case("HTML page", file_with("model.safetensors", "<!DOCTYPE html><html></html>"), says="is a web page"),
    command("folder without a checkpoint", nothing, "eval", "data", "data", *COMMON, says="without a .safetensors"),
    command(
        "folder with two checkpoints",
        lambda project: [
            shutil.copy(project.checkpoint, project.data / name) for name in ("a.safetensors", "b.safetensors")
        ],
        "eval",
        "data",
        "data",
        *COMMON,
        says="2 checkpoints",
    ),
    case("pipe that nobody writes to", fifo("model.safetensors"), says="nobody writes"),
    command("device", nothing, "eval", "/dev/zero", "data", *COMMON, says="device"),
    case("no permission", forbidden("model.safetensors"), says="Permission denied"),
    command("empty stdin", nothing, "eval", "-", "data", *COMMON, says="is empty"),
    command("a name that no file can have", nothing, "eval", "a\0b", "data", *COMMON, says="null"),
    case("config.json is no JSON", file_with("config.json", "{"), says="config.json"),
    case("half of a character in label_names", label_names("\ud800"), says="label_names"),
    case("null character in label_names", label_names("a\0b"), says="label_names"),
    case("line break in label_names", label_names("a\nb"), says="label_names"),
    case("escape sequence in label_names", label_names("a\x1b[31m"), says="label_names"),
    case(
        "null character in label_names of config.json",
        file_with("config.json", json.dumps({"label_names": ["a\0", "b", "c"]})),
        says="label_names",
    ),
]

ARCHITECTURES = [
    command("no architecture given", nothing, "eval", "model.safetensors", "data", says="model.safetensors"),
    case("unknown architecture", nothing, "--arch", "resnet_18_and_a_half", says="resnet_18_and_a_half"),
    case("file without the factory", nothing, "--arch", "network.py:huge", says="huge"),
    case("missing file", nothing, "--arch", "nowhere.py:tiny", says="nowhere.py"),
    case(
        "factory that raises",
        file_with("bad.py", "def make():\n    raise KeyError('x')"),
        "--arch",
        "bad.py:make",
        says="KeyError",
    ),
    case("factory with a syntax error", file_with("bad.py", "def make(:"), "--arch", "bad.py:make", says="bad.py"),
    case(
        "factory that exits",
        file_with("bad.py", "def make():\n    raise SystemExit(0)"),
        "--arch",
        "bad.py:make",
        says="bad.py",
    ),
    case("argument without a value", nothing, "--arch-arg", "width", says="width", status=USAGE),
    case("unknown argument", nothing, "--arch-arg", "width=3", says="width"),
    case(
        "config.json with code",
        file_with("config.json", json.dumps({"architecture": "network.py:tiny", "num_classes": "no"})),
        "--arch-arg",
        "depth=3",
        says="depth",
    ),
]

IMAGES = [
    case("image of zero bytes", file_with(IMAGE, b""), "--strict-images", says="empty file"),
    case("truncated image", truncated_image, "--strict-images", says="00.png"),
    case("text with an image's name", file_with(IMAGE, "hello"), "--strict-images", says="no image format"),
    case("decompression bomb", file_with(IMAGE, png(60_000, 60_000)), "--strict-images", says="00.png"),
    case("sliver", file_with(IMAGE, png(2_000_000, 1)), "--strict-images", says="too narrow"),
    case("image that cannot be read", forbidden(IMAGE), "--strict-images", says="Permission denied"),
    case(
        "link that leads nowhere",
        lambda project: (project.data / "train/red/x.png").symlink_to("gone"),
        "--strict-images",
        says="x.png",
    ),
    case("no image can be read", only_unreadable, says="none of"),
    case("image with a newline in its name", image_named(b"a\nerror: b.png"), "--strict-images", says="error: b.png"),
    case(
        "image with an escape sequence in its name",
        image_named(b"a\x1b]0;x\x07.png"),
        "--strict-images",
        says="x1b]0;x",
    ),
    case("image with an undecodable name", image_named(b"a\xff.png"), "--strict-images", says="udcff"),
    case(
        "image with spaces and markup in its name",
        image_named(b" [red]a b[bold] .png"),
        "--strict-images",
        says="[red]a b[bold]",
    ),
]

FOLDERS = [
    case("no data folder", lambda project: shutil.rmtree(project.data), says="data"),
    case("empty folder", lambda project: (shutil.rmtree(project.data), project.data.mkdir()), says="no images"),
    case("classes without images", without_images, says="no images"),
    case("one class", one_class, says="1"),
    case("loops of links", loops, says="no images"),
    case("link to itself", self_link, says="data"),
    case(
        "file as a data folder",
        lambda project: (shutil.rmtree(project.data), project.data.write_text("x")),
        says="data",
    ),
    case("folder that cannot be listed", forbidden("data/train"), says="Permission denied"),
    case(
        "fifo as the only image",
        lambda project: (without_images(project), os.mkfifo(project.data / "train/red/a.png")),
        says="no images",
    ),
    case("unknown split", nothing, "--split", "summer", says="summer", status=USAGE),
    case("missing validation folder", nothing, "--val", "nowhere", says="nowhere"),
    command(
        "archive that leads outside",
        archive_with("../outside.png"),
        "eval",
        "model.safetensors",
        "data.tar",
        *COMMON,
        says="refused to unpack",
    ),
    command(
        "archive with a link",
        archive_with("red", tarfile.SYMTYPE),
        "eval",
        "model.safetensors",
        "data.tar",
        *COMMON,
        says="link",
    ),
    command(
        "damaged archive",
        file_with("data.tar.gz", b"\x1f\x8b\x08 broken"),
        "eval",
        "model.safetensors",
        "data.tar.gz",
        *COMMON,
        says="data.tar.gz",
    ),
]


def labels(name: str, content: bytes | str, says: str) -> object:
    return case(f"labels: {name}", file_with("labels.csv", content), "--labels", "labels.csv", says=says)


def class_map(name: str, content: str, says: str) -> object:
    return case(f"class map: {name}", file_with("map.json", content), "--class-map", "map.json", says=says)


LABELS = [
    case("labels: no file", nothing, "--labels", "labels.csv", says="labels.csv"),
    labels("empty", "", "names no image"),
    labels("only a header", "path,label\n", "names no image"),
    labels("unknown path", "path,label\ntrain/red/99.png,red\n", "99.png"),
    labels("path that leads outside", "path,label\n../../etc/passwd,red\n", "passwd"),
    labels("unknown class", f"path,label\n{IMAGE.removeprefix('data/')},purple\n", "purple"),
    labels("class out of range", f"path,label\n{IMAGE.removeprefix('data/')},7\n", "7"),
    labels(
        "doubled path",
        f"path,label\n{IMAGE.removeprefix('data/')},red\n{IMAGE.removeprefix('data/')},blue\n",
        "already",
    ),
    labels("wrong header", "note,class\na.png,red\n", "header"),
    labels("not UTF-8", b"path,label\na\xff.png,red\n", "UTF-8"),
    labels("blank line", "path,label\n\ntrain/red/00.png,red\n", "blank"),
    labels("open quote", 'path,label\n"train/red/00.png,red\n', "CSV"),
    labels("broken JSON", '{"path": "a"\n', "JSON"),
    labels("number without end", '{"path": "train/red/00.png", "label": ' + "9" * 5000 + "}\n", "JSON"),
    case("labels: a pipe", fifo("labels.csv"), "--labels", "labels.csv", says="nobody writes"),
    case("labels: a device", nothing, "--labels", "/dev/zero", says="device"),
    case("class map: a pipe", fifo("map.json"), "--class-map", "map.json", says="nobody writes"),
    labels("null character", "path,label\ntrain/\0.png,red\n", "train/"),
    class_map("no JSON", "{", "JSON"),
    class_map("folder twice", '["red", "red", "blue"]', "twice"),
    class_map("number out of range", '{"red": 9, "green": 1, "blue": 0}', "9"),
    class_map("folder left out", '{"red": 0}', "green"),
]


def trusted(name: str, content: bytes | str, says: str) -> object:
    return case(f"list: {name}", file_with("trusted.txt", content), "--trusted", "trusted.txt", says=says)


LISTS = [
    case("list: no file", nothing, "--trusted", "trusted.txt", says="trusted.txt"),
    trusted("empty", "\n\n", "names no sample"),
    trusted("index out of range", "0\n120\n", "120"),
    trusted("negative index", '{"index": -1}\n', "-1"),
    case("list: a pipe", fifo("trusted.txt"), "--trusted", "trusted.txt", says="nobody writes"),
    case("list: a device", nothing, "--forget", "/dev/zero", says="device"),
    trusted("index that is no whole number", '{"index": 1.5}\n', "1.5"),
    trusted("index without end", "9" * 5000 + "\n", "999"),
    trusted("doubled", "3\n3\n", "twice"),
    trusted("path of another dataset", "train/dog/1.png\n", "train/dog/1.png"),
    trusted("validation image", "val/red/00.png\n", "val/red/00.png"),
    trusted("neither index nor path", '{"loss": 1}\n', "neither"),
    trusted("broken JSON", '{"index": 3\n', "JSON"),
    trusted("nested without end", '{"index":' * 100_000 + "\n", "JSON"),
    trusted("number without end", '{"index": ' + "9" * 5000 + "}\n", "JSON"),
    trusted("binary", bytes(range(256)), "trusted.txt"),
    case(
        "list: a file that cannot be read",
        lambda p: (file_with("trusted.txt", "1")(p), forbidden("trusted.txt")(p)),
        "--trusted",
        "trusted.txt",
        says="Permission denied",
    ),
    case("forget list: out of range", file_with("forget.txt", "999\n"), "--forget", "forget.txt", says="999"),
]


def given_bases(name: str, prepare: Callable[[Project], None], says: str) -> object:
    return case(f"bases: {name}", prepare, "--bases", "bases.safetensors", says=says)


BASES = [
    given_bases("no file", nothing, "bases.safetensors"),
    given_bases("another checkpoint's", other_checkpoint, "other weights"),
    given_bases(
        "truncated", lambda p: (bases()(p), os.truncate(p.folder / "bases.safetensors", 3000)), "bases.safetensors"
    ),
    given_bases("a checkpoint", lambda p: shutil.copy(p.checkpoint, p.folder / "bases.safetensors"), "holds no bases"),
    given_bases("of other layers", bases(geometry('"0.weight"', '"9.weight"')), "9.weight"),
    given_bases("beyond the layer", bases(geometry('"offset": 0', '"offset": 1000000')), "0.weight"),
    given_bases("of huge layers", bases(geometry('"size": [1,', '"size": [1000000000,')), "bases.safetensors"),
    given_bases("without numbers", bases(lambda t, _m: t["4.weight.vectors"].fill_(float("nan"))), "4.weight"),
    given_bases("without a tensor", bases(lambda t, _m: t.pop("4.weight.values")), "bases.safetensors"),
    given_bases("without its metadata", bases(lambda _t, m: m.pop("sap.skipped")), "bases.safetensors"),
    given_bases("a gain that follows itself", bases(gains({"4.weight": "4.weight"})), "size is given"),
    given_bases("a gain of no weight", bases(gains({"1.weight": "9.weight"})), "size is given"),
    given_bases(
        "gains that follow each other", bases(gains({"1.weight": "1.bias", "1.bias": "1.weight"})), "size is given"
    ),
    given_bases("nested without end", bases(lambda _t, m: m.update({"sap.weights": "[" * 100_000})), "recursion"),
    given_bases("facts without end", bases(lambda _t, m: m.update({"sap.facts": '{"a":' * 100_000})), "recursion"),
    given_bases("a pipe", lambda p: os.mkfifo(p.folder / "bases.safetensors"), "nobody writes"),
    command("bases: a device", nothing, *PROJECT, "--bases", "/dev/zero", says="device"),
    given_bases("rows that are no number", bases(geometry('"rows": ', '"rows": 1e999, "x": ')), "bases.safetensors"),
]


def option(name: str, *more: str, says: str, status: int = USAGE) -> object:
    return case(f"option: {name}", nothing, *more, says=says, status=status)


OPTIONS = [
    option("alpha is no number", "--alpha", "many", says="many"),
    option("alpha is negative", "--alpha", "-1", says="-1"),
    option("alpha is nan", "--alpha", "nan", says="nan"),
    option("alpha is infinite", "--alpha", "inf", says="inf"),
    option("alpha beyond all numbers", "--alpha", "1e999", says="1e999"),
    option("seed beyond all numbers", "--seed", "9" * 23, says="--seed"),
    option("batches beyond all numbers", "--batch-size", "1" + "0" * 30, says="--batch-size"),
    option("workers beyond all numbers", "--workers", "9" * 20, says="--workers"),
    option("samples beyond all numbers", "-n", "9" * 30, says="-n"),
    option("a descriptor beyond all numbers", "--progress-json", "9" * 20, says="--progress-json"),
    option("input beyond all numbers", "--input-size", "9" * 25, says="--input-size"),
    option("input of more values than memory", "--input-size", "60000,60000", says="values"),
    option("mean is infinite", "--mean", "1e999,0,0", says="--mean"),
    option("crop is nan", "--crop-pct", "nan", says="--crop-pct"),
    option("gain is nan", "--require-gain", "nan", says="--require-gain"),
    option("gain is infinite", "--require-gain", "-inf", says="--require-gain"),
    command(
        "option: accuracy is nan",
        nothing,
        *("eval", "model.safetensors", "data", *COMMON, "--min-accuracy", "nan"),
        says="--min-accuracy",
        status=USAGE,
    ),
    command(
        "option: score is infinite",
        nothing,
        *("suspects", "model.safetensors", "data", *COMMON, "--min-score", "inf"),
        says="--min-score",
        status=USAGE,
    ),
    command(
        "option: score is nan",
        nothing,
        *("suspects", "model.safetensors", "data", *COMMON, "--min-score", "nan"),
        says="--min-score",
        status=USAGE,
    ),
    option("alpha is no fraction", "--importance", "gpm", "--alpha", "2", says="up to 1"),
    option("unknown importance", "--importance", "large", says="large"),
    option("empty batches", "--batch-size", "0", says="--batch-size"),
    option("negative workers", "--workers", "-1", says="--workers"),
    option("no trusted samples", "-n", "0", says="-n"),
    option("unknown device", "--device", "abacus", says="abacus"),
    option("device that is not there", "--device", "cuda:4321", says="cuda:4321", status=ERROR),
    option("input of no size", "--input-size", "0", says="--input-size"),
    option("input of nine channels", "--input-size", "9,8,8", says="9", status=ERROR),
    option("mean is no number", "--mean", "a,b,c", says="--mean"),
    option("mean of two channels", "--mean", "0.5,0.5", says="mean"),
    option("standard deviation is zero", "--std", "0,0,0", says="std"),
    option("mean is nan", "--mean", "nan,0,0", says="mean"),
    option("unknown interpolation", "--interpolation", "magic", says="magic"),
    option("crop beyond the image", "--crop-pct", "1.5", says="--crop-pct"),
    option("pattern that matches nothing", "--layers", "encoder.*", says="encoder.*"),
    option("every layer skipped", "--skip-layers", "*", says="no weight is left"),
    option("unknown", "--no-such-option", says="--no-such-option"),
    option("output folder does not exist", "-o", "nowhere/out.safetensors", says="nowhere", status=ERROR),
    option("output is the input", "-o", "model.safetensors", "--force", says="itself", status=ERROR),
    option("two from stdin", "--trusted", "-", "--forget", "-", says="stdin"),
    case(
        "option: a gain without validation images",
        no_validation,
        "--require-gain",
        "1",
        says="--require-gain",
        status=USAGE,
    ),
    case("option: output exists", file_with("model.sap.safetensors", "mine"), says="exists already"),
    command(
        "option: output is a folder",
        nothing,
        *("activations", "model.safetensors", "data", *COMMON, "-o", "data", "--force"),
        says="is a folder",
        status=USAGE,
    ),
    case(
        "option: output folder cannot be written",
        lambda p: ((p.folder / "out").mkdir(), (p.folder / "out").chmod(0o500)),
        "-o",
        "out/a.safetensors",
        says="Permission denied",
    ),
    command("option: no command", nothing, "--quiet", says="--quiet", status=USAGE),
    command("option: unknown command", nothing, "repair", says="repair", status=USAGE),
    command("option: missing argument", nothing, "project", says="CHECKPOINT", status=USAGE),
    command("option: nothing to verify", nothing, "verify", "model.safetensors", says="sap.projected"),
    command(
        "option: bases without the original",
        nothing,
        "verify",
        "model.safetensors",
        "--bases",
        "b",
        says="--bases",
        status=USAGE,
    ),
]

TABLE = [*CHECKPOINTS, *ARCHITECTURES, *IMAGES, *FOLDERS, *LABELS, *LISTS, *BASES, *OPTIONS]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("original"))


@pytest.fixture
def project(original: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy to spoil, as the working folder, with a folder for temporary files of its own."""
    shutil.copytree(original.folder, tmp_path / "project")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")


def snapshot(folder: Path) -> dict[str, object]:
    """All that lies in a folder but for the cache: links as they are, files with their bytes."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.partition("/")[0] in ("cache", "__pycache__"):
            continue
        status = path.lstat()
        readable = stat.S_ISREG(status.st_mode)
        found[name] = (status.st_mode, status.st_mtime_ns, path.read_bytes() if readable else None)
    return found


def check(outcome: Outcome, status: int, says: str) -> None:
    """The two lines of an error, and nothing on stdout."""
    lines = outcome.stderr.split("\n")
    assert len(lines) == 3, outcome.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint:  ")
    assert lines[2] == ""
    assert says in lines[0]
    assert outcome.stderr.replace("\n", "").isprintable()
    assert outcome.stdout == b""
    assert outcome.status == status, outcome.stderr


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 60


@pytest.mark.parametrize(("prepare", "arguments", "status", "says"), TABLE)
def test_bad_input(
    project: Project, prepare: Callable[[Project], None], arguments: tuple[str, ...], status: int, says: str
) -> None:
    prepare(project)
    before = snapshot(project.folder)
    with without_privileges():
        outcome = run_here(*arguments)
    check(outcome, status, says)
    assert snapshot(project.folder) == before
    remove_unfinished()  # what the end of the process does
    assert list(Path(tempfile.gettempdir()).iterdir()) == []
    assert not list(project.folder.rglob("*.tmp"))
    assert not (project.folder / "executed").exists()


@pytest.mark.parametrize(
    ("prepare", "status", "says"),
    [
        pytest.param(truncated(4000), ERROR, "cut off", id="truncated"),
        pytest.param(without_images, ERROR, "no images", id="without images"),
        pytest.param(hostile_pickle("model.safetensors"), ERROR, "pickle", id="pickle"),
    ],
)
def test_bad_input_of_a_process(project: Project, prepare: Callable[[Project], None], status: int, says: str) -> None:
    prepare(project)
    process = run_process([sys.executable, "-m", "sapcli", *PROJECT], capture_output=True)
    check(Outcome(process.returncode, process.stdout, process.stderr.decode()), status, says)
