"""What is written: the form, every bit, and nothing after a failure."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from sapcli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sapcli.checkpoints.saving import default_output, output_files, write_checkpoint, write_safetensors
from sapcli.errors import CheckpointError, NumericsError, SapError, UsageError

WEIGHTS = {
    "conv.weight": torch.arange(36.0).reshape(4, 1, 3, 3),
    "fc.bias": torch.tensor([float("nan"), -0.0], dtype=torch.float64),
    "fc.weight": torch.arange(8).reshape(2, 4).to(torch.bfloat16),
    "norm": torch.ones(3, dtype=torch.float16),
    "steps": torch.tensor(7),
    "none": torch.zeros(0, 3),
}
SHARDS = {
    "model-1-of-2.safetensors": ["fc.bias", "norm"],
    "model-2-of-2.safetensors": ["conv.weight", "fc.weight", "steps", "none"],
}
INDEX = "model.safetensors.index.json"


def bits(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def single(tmp_path: Path) -> Checkpoint:
    (tmp_path / "in").mkdir()
    save_file(WEIGHTS, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    return open_checkpoint(tmp_path / "in" / "model.safetensors")


@pytest.fixture
def sharded(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "in"
    folder.mkdir()
    for shard, names in SHARDS.items():
        save_file({name: WEIGHTS[name] for name in names}, folder / shard, {"format": "pt"})
    weight_map = {name: shard for shard, names in SHARDS.items() for name in names}
    index = {
        "metadata": {"total_size": 1, "total_parameters": 55, "note": "old"},
        "weight_map": weight_map,
        "more": [1],
    }
    (folder / INDEX).write_text(json.dumps(index))
    return open_checkpoint(folder)


@pytest.fixture
def pickled(tmp_path: Path) -> Checkpoint:
    torch.save({"state_dict": WEIGHTS, "model_ema": {"norm": torch.zeros(3)}}, tmp_path / "model.pth")
    return open_checkpoint(tmp_path / "model.pth")


def plain_names_in(folder: Path) -> list[str]:
    """The names in a folder, without the hashes in those of shards."""
    return sorted(re.sub(r"\.[0-9a-f]{12}\.safetensors$", ".safetensors", name) for name in names_in(folder))


def test_without_replacements_every_byte_is_as_before(single: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(single, tmp_path / "out", {}, single.metadata)
    assert single.path is not None
    assert (tmp_path / "out").read_bytes() == single.path.read_bytes()


@pytest.mark.parametrize("form", ["single", "sharded", "pickled"])
def test_only_replacements_and_metadata_change(form: str, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(form)
    replacement = torch.linspace(0, 1, 8, dtype=torch.float32).reshape(4, 2).T
    output = output_files(checkpoint, default_output(checkpoint))[-1]
    write_checkpoint(checkpoint, output, {"fc.weight": replacement}, {"sap.b": "2", "sap.a": "1"})
    written = open_checkpoint(output)
    assert list(written.entries.items()) == list(checkpoint.entries.items())
    assert written.metadata == {"sap.a": "1", "sap.b": "2"}
    for name in checkpoint.entries:
        expected = replacement.to(torch.bfloat16) if name == "fc.weight" else checkpoint.read(name)
        assert bits(written.read(name)) == bits(expected.contiguous())


def test_header_order_and_data_layout_stay(tmp_path: Path) -> None:
    header = {
        "z": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
        "__metadata__": {"b": "1", "a": "2"},
        "a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "in").write_bytes(len(text).to_bytes(8, "little") + text + b"\0\x3c\0\0\x80\x3f")
    checkpoint = open_checkpoint(tmp_path / "in")
    write_checkpoint(checkpoint, tmp_path / "out", {"z": torch.tensor([2.0])}, checkpoint.metadata)
    content = (tmp_path / "out").read_bytes()
    assert content.endswith(b"\0\x3c\0\0\0\x40")
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    written = json.loads(content[8 : 8 + length])
    assert list(written) == ["__metadata__", "z", "a"]
    assert list(written["__metadata__"]) == ["a", "b"]
    assert written["a"] == header["a"]


def test_shards_beside_the_input_under_a_new_name(sharded: Checkpoint, tmp_path: Path) -> None:
    output = default_output(sharded)
    write_checkpoint(sharded, output, {}, {"sap.alpha": "1"})
    new = [name.replace("model", "model.sap") for name in (*SHARDS, INDEX)]
    assert plain_names_in(tmp_path / "in") == sorted([*SHARDS, INDEX, *new])
    index = json.loads(output.read_text())
    assert index["metadata"] == {
        "total_size": sum(tensor.nbytes for tensor in WEIGHTS.values()),
        "total_parameters": 55,
        "sap.alpha": "1",
    }
    assert index["more"] == [1]
    assert list(index["weight_map"]) == [name for names in SHARDS.values() for name in names]
    for shard, names in SHARDS.items():
        stem = shard.replace("model", "model.sap").removesuffix(".safetensors")
        (written,) = (tmp_path / "in").glob(f"{stem}.*.safetensors")
        assert set(load_file(written)) == set(names)
        assert written.name == f"{stem}.{hashlib.sha256(written.read_bytes()).hexdigest()[:12]}.safetensors"


def test_shards_into_another_folder_keep_their_names(sharded: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_checkpoint(sharded, tmp_path / "out", {}, sharded.metadata)
    assert plain_names_in(tmp_path / "out") == sorted([*SHARDS, INDEX])
    assert open_checkpoint(tmp_path / "out").digest == sharded.digest


@pytest.mark.parametrize("form", ["single", "sharded", "pickled"])
def test_a_stream_gets_one_file(form: str, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(form)
    stream = io.BytesIO()
    write_checkpoint(checkpoint, stream, {}, {"a": "b"})
    loaded = load(stream.getvalue())
    assert set(loaded) == set(checkpoint.entries)
    assert all(bits(loaded[name]) == bits(checkpoint.read(name)) for name in loaded)


def test_a_stream_and_a_file_get_the_same_bytes(single: Checkpoint, tmp_path: Path) -> None:
    stream = io.BytesIO()
    for destination in (stream, tmp_path / "out"):
        write_checkpoint(single, destination, {"norm": torch.zeros(3)}, {"b": "1", "a": "2"})
    assert (tmp_path / "out").read_bytes() == stream.getvalue()


def test_shards_as_one_file_when_its_name_says_so(sharded: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(sharded, tmp_path / "one.safetensors", {}, {})
    assert open_checkpoint(tmp_path / "one.safetensors").digest == sharded.digest


def test_shards_under_a_name_that_says_nothing(sharded: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="consists of shards"):
        write_checkpoint(sharded, tmp_path / "somewhere", {}, {})


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("single", "model.sap.safetensors"),
        ("sharded", "model.sap.safetensors.index.json"),
        ("pickled", "model.sap.safetensors"),
    ],
)
def test_default_outputs(form: str, name: str, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(form)
    assert checkpoint.path is not None
    assert default_output(checkpoint) == checkpoint.path.with_name(name)


def test_standard_input_has_no_default_output(single: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    assert single.path is not None
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(single.path.read_bytes())))
    with pytest.raises(UsageError, match="standard input"):
        default_output(open_checkpoint("-"))


@pytest.mark.parametrize("how", ["same path", "folder", "symbolic link", "hard link"])
def test_the_input_is_never_written_to(single: Checkpoint, tmp_path: Path, how: str) -> None:
    assert single.path is not None
    before = single.path.read_bytes()
    link = tmp_path / "link"
    destination = {"same path": single.path, "folder": single.path.parent}.get(how, link)
    if how == "symbolic link":
        link.symlink_to(single.path)
    elif how == "hard link":
        os.link(single.path, link)
    with pytest.raises(CheckpointError, match="that is being read"):
        write_checkpoint(single, destination, {}, {})
    assert single.path.read_bytes() == before


def test_no_shard_of_the_input_is_written_to(sharded: Checkpoint, tmp_path: Path) -> None:
    for destination in (tmp_path / "in", tmp_path / "in" / "model-1-of-2.safetensors"):
        with pytest.raises(CheckpointError, match="that is being read"):
            write_checkpoint(sharded, destination, {}, {})
    assert names_in(tmp_path / "in") == sorted([*SHARDS, INDEX])


@pytest.mark.parametrize("form", ["single", "sharded"])
def test_a_full_disk_leaves_nothing(form: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(form)
    before = names_in(tmp_path / "in")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            write_checkpoint(checkpoint, default_output(checkpoint), {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path / "in") == before


def test_a_full_disk_behind_a_stream(single: Checkpoint) -> None:
    full: IO[bytes]
    with pytest.raises(CheckpointError, match="No space left"), Path("/dev/full").open("wb", buffering=0) as full:
        write_checkpoint(single, full, {}, {})  # type: ignore[arg-type]


def test_a_closed_pipe_stays_a_broken_pipe(single: Checkpoint) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError), os.fdopen(writing, "wb", buffering=0) as pipe:
        write_checkpoint(single, pipe, {}, {})  # type: ignore[arg-type]


def test_an_input_that_changes_meanwhile_leaves_no_output(single: Checkpoint, tmp_path: Path) -> None:
    assert single.path is not None
    os.truncate(single.path, 400)
    with pytest.raises(CheckpointError, match="was changed"):
        write_checkpoint(single, tmp_path / "out", {}, {})
    assert names_in(tmp_path) == ["in"]


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_values_that_the_stored_dtype_cannot_hold(single: Checkpoint, tmp_path: Path, value: float) -> None:
    with pytest.raises(NumericsError, match="'norm' has NaN or infinite values as F16"):
        write_checkpoint(single, tmp_path / "out", {"norm": torch.full((3,), value)}, {})
    assert names_in(tmp_path) == ["in"]


@pytest.mark.parametrize(
    "replacements", [{"other": torch.ones(3)}, {"norm": torch.ones(4)}, {"norm": torch.ones(1, 3)}]
)
def test_replacements_without_their_entry(single: Checkpoint, tmp_path: Path, replacements: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="no entry"):
        write_checkpoint(single, tmp_path / "out", replacements, {})


def test_write_safetensors(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(2, 3).T, "a": torch.arange(3)}
    stream = io.BytesIO()
    for destination in (stream, tmp_path / "out"):
        write_safetensors(destination, tensors, {"rows": "5"})
    assert (tmp_path / "out").read_bytes() == stream.getvalue()
    loaded = load_file(tmp_path / "out")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert open_checkpoint(tmp_path / "out").metadata == {"rows": "5"}
    with pytest.raises(SapError, match="No such file"):
        write_safetensors(tmp_path / "missing" / "out", tensors)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    tensors = {f"weight.{number}": torch.full((1 << 20,), float(number)) for number in range(40)}
    size = sum(tensor.nbytes for tensor in tensors.values())
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "model.pt")
    code = """
import re, sys
from pathlib import Path
import torch
from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.checkpoints.saving import write_checkpoint

def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

before = memory("VmRSS")
for name in ("model.safetensors", "model.pt"):
    checkpoint = open_checkpoint(Path(sys.argv[1], name))
    for entry in checkpoint.entries:
        checkpoint.read(entry)
    checkpoint.digest
    write_checkpoint(checkpoint, Path(sys.argv[1], "out"), {"weight.3": torch.zeros(1 << 20)}, {})
    print(memory("VmRSS") - before, memory("VmHWM") - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (held, peak), (held_after_pickle, peak_of_pickle) = (map(int, line.split()) for line in lines)
    assert max(held, peak, held_after_pickle) < size / 2
    # The pages of a PyTorch file that is mapped while it is converted count as memory, but only then.
    assert peak_of_pickle < size * 3 / 2


def test_a_place_that_cannot_be(single: Checkpoint, tmp_path: Path) -> None:
    for name in ("n" * 256, "n" * 256 + "/out", "missing/out"):
        with pytest.raises(CheckpointError, match="Cannot write"):
            write_checkpoint(single, tmp_path / name, {}, {})


def rewritten(checkpoint: Checkpoint, destination: Path, value: float) -> str:
    """Write the checkpoint with another tensor, and return the digest that it has then."""
    write_checkpoint(checkpoint, destination, {"norm": torch.full((3,), value)}, {"value": str(value)})
    return open_checkpoint(destination).digest


def test_the_shards_of_a_replaced_output_are_removed(sharded: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    foreign = ("model-1-of-2.txt", "model-1-of-2.0123456789ab.safetensors", "other-1-of-2.0123456789ab.safetensors")
    for name in foreign:
        (out / name).write_bytes(b"x")
    first = rewritten(sharded, out, 1.5)
    assert rewritten(sharded, out, 2.5) != first
    assert rewritten(sharded, out, 1.5) == first
    assert len(names_in(out)) == 3 + len(foreign)
    # What a killed run left is old one day, and then nobody's.
    os.utime(out / foreign[1], (1, 1))
    rewritten(sharded, out, 1.5)
    assert set(foreign) - set(names_in(out)) == {foreign[1]}


def test_shards_of_the_usual_names_are_replaced_too(sharded: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "in", out)
    rewritten(sharded, out, 1.5)
    assert not set(SHARDS) & set(names_in(out))
    assert len(names_in(out)) == 3
    assert set(names_in(tmp_path / "in")) == {*SHARDS, INDEX}


def test_a_repaired_checkpoints_shards_get_one_hash(sharded: Checkpoint, tmp_path: Path) -> None:
    checkpoint = sharded
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        rewritten(checkpoint, tmp_path / name, float(ord(name)))
        checkpoint = open_checkpoint(tmp_path / name)
    assert plain_names_in(tmp_path / "c") == sorted([*SHARDS, INDEX])


class Killed(BaseException):
    """What ends a run here in the place of SIGKILL."""


@pytest.mark.parametrize("step", range(1, 4))
def test_whatever_a_killed_run_has_renamed_the_old_checkpoint_is_whole(
    sharded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    old = rewritten(sharded, out, 1.5)
    before = {name: (out / name).read_bytes() for name in names_in(out)}
    renamed = 0
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        nonlocal renamed
        renamed += 1
        if renamed == step:
            raise Killed
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Killed):
        rewritten(sharded, out, 2.5)
    monkeypatch.undo()
    assert {name: (out / name).read_bytes() for name in before} == before
    assert open_checkpoint(out).digest == old
    new = rewritten(sharded, out, 2.5)
    assert new != old
    assert len(names_in(out)) == 3


def test_no_index_that_has_appeared_is_replaced(sharded: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / INDEX).write_text("theirs")
    with pytest.raises(CheckpointError, match="has appeared"):
        write_checkpoint(sharded, out, {}, {}, replace=False)
    assert names_in(out) == [INDEX]
    assert (out / INDEX).read_text() == "theirs"


@pytest.mark.parametrize("text", ["a\udcffb", "\ud800"])
def test_metadata_that_is_no_utf8_is_written_all_the_same(single: Checkpoint, tmp_path: Path, text: str) -> None:
    write_checkpoint(single, tmp_path / "out", {}, {"name": text, text: "value"})
    metadata = open_checkpoint(tmp_path / "out").metadata
    assert metadata["name"] == text.encode("utf-8", "backslashreplace").decode()
    assert len(metadata) == 2
