"""Checkpoints in every form and place, and the table of the bad ones."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from sapcli.checkpoints.checkpoint import Checkpoint, Form, open_checkpoint, refuse_quantised
from sapcli.checkpoints.entry_names import candidate_prefixes
from sapcli.errors import CheckpointError, SapError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = {
    "conv.weight": torch.arange(36.0).reshape(4, 1, 3, 3),
    "fc.bias": torch.tensor([1.0, -2.0], dtype=torch.float64),
    "fc.weight": torch.arange(8).reshape(2, 4).to(torch.float16),
    "steps": torch.tensor(7),
}
INDEX = "model.safetensors.index.json"


def assert_holds(checkpoint: Checkpoint, weights: dict[str, Tensor]) -> None:
    assert set(checkpoint.entries) == set(weights)
    for name, expected in weights.items():
        found = checkpoint.read(name)
        entry = checkpoint.entries[name]
        assert (entry.name, entry.dtype, entry.shape) == (name, expected.dtype, tuple(expected.shape))
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def assert_readable(checkpoint: Checkpoint) -> None:
    for name, entry in checkpoint.entries.items():
        tensor = checkpoint.read(name)
        assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, entry.shape)


def save_shards(folder: Path, weights: dict[str, Tensor]) -> Path:
    names = list(weights)
    shards = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for shard, members in shards.items():
        save_file({name: weights[name] for name in members}, folder / shard, {"format": "pt"})
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    index = {"metadata": {"total_size": 1, "origin": "test"}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return folder / INDEX


def feed_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "any name"
    save_file(WEIGHTS, path, {"format": "pt", "note": "é"})
    checkpoint = open_checkpoint(str(path))
    assert_holds(checkpoint, WEIGHTS)
    assert (checkpoint.source, checkpoint.path, checkpoint.form) == (str(path), path, Form.SINGLE)
    assert checkpoint.metadata == {"format": "pt", "note": "é"}
    assert checkpoint.config is None


def test_entries_come_in_the_headers_order(tmp_path: Path) -> None:
    header = {
        "z": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + b"\1\2\3")
    checkpoint = open_checkpoint(tmp_path / "file")
    assert list(checkpoint.entries) == ["z", "a"]
    assert checkpoint.read("z").tolist() == [2, 3]


def test_shards_by_index_and_by_folder(tmp_path: Path) -> None:
    index = save_shards(tmp_path, WEIGHTS)
    for source in (index, tmp_path):
        checkpoint = open_checkpoint(source)
        assert_holds(checkpoint, WEIGHTS)
        assert (checkpoint.source, checkpoint.path, checkpoint.form) == (str(source), index, Form.SHARDED)
        assert checkpoint.metadata == {"format": "pt", "origin": "test"}


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "checkpoint.pth.tar", "pytorch_model.bin"])
def test_a_pytorch_file(tmp_path: Path, name: str) -> None:
    torch.save({"state_dict": WEIGHTS, "optimizer": {"state": {0: {"m": torch.ones(1)}}}}, tmp_path / name)
    checkpoint = open_checkpoint(tmp_path / name)
    assert_holds(checkpoint, WEIGHTS)
    with_extra = open_checkpoint(tmp_path / name, keep_extra=True)
    assert_holds(with_extra, {**WEIGHTS, "optimizer.state.0.m": torch.ones(1)})
    assert (checkpoint.path, checkpoint.form) == (tmp_path / name, Form.PICKLE)


@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors", "pytorch_model.bin"])
def test_a_folder_with_its_config(tmp_path: Path, name: str) -> None:
    (torch.save if name.endswith("bin") else save_file)(WEIGHTS, tmp_path / name)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    checkpoint = open_checkpoint(tmp_path)
    assert_holds(checkpoint, WEIGHTS)
    assert checkpoint.path == tmp_path / name
    assert checkpoint.config == {"architecture": "resnet18"}


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    feed_stdin(monkeypatch, save(WEIGHTS))
    checkpoint = open_checkpoint("-")
    assert_holds(checkpoint, WEIGHTS)
    assert (checkpoint.source, checkpoint.path, checkpoint.config) == ("standard input", None, None)


def test_a_pytorch_file_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    torch.save(WEIGHTS, stream)
    feed_stdin(monkeypatch, stream.getvalue())
    assert_holds(open_checkpoint("-"), WEIGHTS)


def test_a_named_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "model.safetensors"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(save(WEIGHTS),))
    writer.start()
    checkpoint = open_checkpoint(pipe)
    writer.join()
    assert_holds(checkpoint, WEIGHTS)
    assert checkpoint.path is None


def test_the_digest_is_that_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors", {"some": "text"})
    save_file(dict(reversed(WEIGHTS.items())), tmp_path / "b.safetensors")
    torch.save({"model": WEIGHTS}, tmp_path / "c.pt")
    (tmp_path / "shards").mkdir()
    save_shards(tmp_path / "shards", WEIGHTS)
    feed_stdin(monkeypatch, save(WEIGHTS))
    digests = {
        open_checkpoint(source).digest
        for source in (
            tmp_path / "a.safetensors",
            tmp_path / "b.safetensors",
            tmp_path / "c.pt",
            tmp_path / "shards",
            "-",
        )
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"fc.bias": torch.tensor([1.0, -2.0])},
        {"fc.bias": torch.tensor([[1.0, -2.0]], dtype=torch.float64)},
        {"fc.bias": torch.tensor([1.0, -2.5], dtype=torch.float64)},
        {"fc.other": torch.ones(1)},
    ],
    ids=["dtype", "shape", "value", "name"],
)
def test_other_weights_have_another_digest(tmp_path: Path, changes: dict[str, Tensor]) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    save_file({**WEIGHTS, **changes}, tmp_path / "b.safetensors")
    assert open_checkpoint(tmp_path / "a.safetensors").digest != open_checkpoint(tmp_path / "b.safetensors").digest


def bad_index(folder: Path, change: object) -> Path:
    index = save_shards(folder, WEIGHTS)
    index.write_text(change if isinstance(change, str) else json.dumps(change))
    return index


def with_shard(name: object) -> dict[str, object]:
    return {"weight_map": dict.fromkeys(WEIGHTS, name)}


def pickled_as_safetensors(folder: Path) -> Path:
    torch.save(WEIGHTS, folder / "model.safetensors")
    return folder / "model.safetensors"


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def missing_shard(folder: Path) -> Path:
    index = save_shards(folder, WEIGHTS)
    (folder / "model-00002-of-00002.safetensors").unlink()
    return index


def cut_shard(folder: Path) -> Path:
    index = save_shards(folder, WEIGHTS)
    os.truncate(folder / "model-00002-of-00002.safetensors", 100)
    return index


def pickled_shard(folder: Path) -> Path:
    index = save_shards(folder, WEIGHTS)
    torch.save(WEIGHTS, folder / "model-00002-of-00002.safetensors")
    return index


def moved_tensor(folder: Path) -> Path:
    index = save_shards(folder, WEIGHTS)
    save_file({"steps": WEIGHTS["steps"]}, folder / "model-00002-of-00002.safetensors")
    return index


def pipe_without_writer(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def two_files(folder: Path) -> Path:
    for name in "ab":
        save_file(WEIGHTS, folder / f"{name}.safetensors")
    return folder


def link_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


BAD = {
    "missing": (lambda folder: folder / "none.safetensors", "No such file"),
    "path through a file": (lambda folder: written(folder, "file", b"") / "model.safetensors", "Not a directory"),
    "link loop": (link_loop, "Too many levels of symbolic links"),
    "name too long": (lambda folder: folder / ("n" * 256), "File name too long"),
    "null character": (lambda folder: folder / "a\0b", "null"),
    "device": (lambda _: Path("/dev/null"), "device"),
    "pipe without a writer": (pipe_without_writer, "nobody writes"),
    "folder without checkpoint": (lambda folder: folder, "without a .safetensors file"),
    "folder with two": (two_files, "2 checkpoints: 'a.safetensors', 'b.safetensors'"),
    "empty": (lambda folder: written(folder, "model.safetensors", b""), "is empty"),
    "text": (lambda folder: written(folder, "model.safetensors", b"not a checkpoint"), "not a safetensors file"),
    "Git LFS pointer": (
        lambda folder: written(folder, "model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS",
    ),
    "no tensors": (lambda folder: written(folder, "model.safetensors", save({})), "no tensors"),
    "zip named .safetensors": (pickled_as_safetensors, "is a pickle or a zip archive"),
    "pickle named .safetensors": (
        lambda folder: written(folder, "model.safetensors", pickle.dumps({"a": 1, "b": list(range(100))})),
        "is a pickle or a zip archive",
    ),
    "empty .pt": (lambda folder: written(folder, "model.pt", b""), "is empty"),
    "text named .pt": (lambda folder: written(folder, "model.pt", b"not a checkpoint"), "not a safetensors file"),
    "pickle without tensors": (
        lambda folder: written(folder, "a.pt", pickle.dumps({"a" * 20: 1}, 2)),
        "without running code",
    ),
    "index without weight_map": (lambda folder: bad_index(folder, {"metadata": {}}), "no weight_map"),
    "index with an empty weight_map": (lambda folder: bad_index(folder, {"weight_map": {}}), "no weight_map"),
    "index is an array": (lambda folder: bad_index(folder, []), "not a JSON object"),
    "index is no JSON": (lambda folder: bad_index(folder, "{"), "not valid JSON"),
    "index with a doubled key": (lambda folder: bad_index(folder, '{"a": 1, "a": 1}'), "'a' is there twice"),
    "index with a number as shard": (lambda folder: bad_index(folder, with_shard(1)), "names the shard 1"),
    "index leads to another folder": (
        lambda folder: bad_index(folder, with_shard("../a.safetensors")),
        "names the shard",
    ),
    "index leads to the root": (lambda folder: bad_index(folder, with_shard("/a.safetensors")), "names the shard"),
    "index leads to another kind": (lambda folder: bad_index(folder, with_shard("passwd")), "names the shard 'passwd'"),
    "missing shard": (missing_shard, "1 are missing: ['model-00002-of-00002.safetensors']"),
    "cut shard": (cut_shard, "is cut off"),
    "pickled shard": (pickled_shard, "is a pickle or a zip archive"),
    "tensor not in its shard": (moved_tensor, "'fc.weight' is not in the shard 'model-00002-of-00002.safetensors'"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_named(make, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("sapcli.machine.files._SECONDS_FOR_A_WRITER", 0.01)
    with pytest.raises(SapError) as caught:
        open_checkpoint(make(tmp_path))
    assert message in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match="Permission denied"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_a_terminal_or_nothing_as_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = os.openpty()
    with os.fdopen(terminal, "r") as stdin:
        for stream in (None, stdin):
            monkeypatch.setattr("sys.stdin", stream)
            with pytest.raises(CheckpointError, match="terminal"):
                open_checkpoint("-")
    os.close(controller)


def test_a_broken_config_matters_only_to_those_who_ask(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        _ = checkpoint.config


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {"fc.weight": torch.ones(8, 8).to(dtype), "fc.scale": torch.ones(8), "head.weight": torch.ones(2, 8)}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"quantised: weight 'fc\.weight'"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_integer_buffers_and_training_state_are_no_quantised_weights(tmp_path: Path) -> None:
    weights = {
        "fc.weight": torch.ones(2, 2),
        "relative_position_index": torch.ones(9, 9, dtype=torch.int64),
        "optimizer.state": torch.ones(9, 9, dtype=torch.uint8),
        "few": torch.ones(1, 2, dtype=torch.int8),
    }
    save_file(weights, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    refuse_quantised(checkpoint, ["fc.weight"])
    with pytest.raises(CheckpointError, match="'few' is stored as I8"):
        refuse_quantised(checkpoint, ["fc.weight", "few"])


@pytest.mark.parametrize(
    ("names", "prefixes"),
    [
        (["conv1.weight", "fc.weight"], [""]),
        (["weight", "bias"], [""]),
        (["module.conv1.weight", "module.fc.weight"], ["", "module."]),
        (["model.conv1.weight", "model.fc.bias", "optimizer.state.0.m", "model_ema.conv1.weight"], ["", "model."]),
        (["_orig_mod.module.fc.weight", "_orig_mod.module.bn.bias"], ["", "_orig_mod.", "_orig_mod.module."]),
        (["state_dict.model.a.b", "state_dict.model.c.d", "state_dict.e"], ["", "state_dict.", "state_dict.model."]),
        (["module.a.weight", "module.b.weight", "model.a.weight", "model.b.weight"], ["", "model.", "module."]),
        (["classifier_net.a.weight", "classifier_net.b.weight"], ["", "classifier_net."]),
        ([], [""]),
    ],
)
def test_candidate_prefixes(names: list[str], prefixes: list[str]) -> None:
    assert candidate_prefixes(names) == prefixes


@given(
    content=st.binary(max_size=100),
    name=st.sampled_from(["a.safetensors", "a.pt", "a", "model.safetensors.index.json"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_are_a_checkpoint_or_an_error(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with contextlib.suppress(SapError):
        assert_readable(open_checkpoint(tmp_path / name))


@given(place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_a_checkpoint_or_an_error(tmp_path: Path, place: int, value: int, cut: int) -> None:
    content = bytearray(save(WEIGHTS, {"format": "pt"}))
    content[place % len(content)] = value
    (tmp_path / "model.safetensors").write_bytes(content[: 1 + cut])
    with contextlib.suppress(SapError):
        assert_readable(open_checkpoint(tmp_path))
