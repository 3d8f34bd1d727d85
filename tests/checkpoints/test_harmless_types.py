"""Plain data beside the weights is read; nothing that would only take memory, or run."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
import torch

from sapcli.checkpoints.checkpoint import open_checkpoint
from sapcli.errors import CheckpointError

WEIGHTS = {"fc.weight": torch.ones(2, 3)}


class Calls:
    """Calls a function with arguments where its pickle is loaded."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        Calls(np.ndarray, (1 << 40,)),
        Calls(np.empty(0).__reduce__()[0], np.ndarray, (1 << 40,), b"b"),
        Calls(list, "a"),
        Calls(str, 3),
        Calls(int, "9"),
        Calls(dict),
        Calls(Path.cwd),
        Calls(eval, "1"),
    ],
    ids=["array", "empty array", "list", "text", "number", "dictionary", "path", "eval"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_would_only_take_memory_or_run_is_refused(tmp_path: Path, call: Calls, zipped: bool) -> None:
    torch.save({"state_dict": WEIGHTS, "x": call}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="without running code"):
        open_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_data_is_read(tmp_path: Path, zipped: bool) -> None:
    beside = {
        "acc": np.float64(1.5), "order": np.arange(100_000), "names": np.array(["a", "b"]), "where": tmp_path,
        "recent": collections.deque([1], 3), "by": collections.defaultdict(list, a=[1]),
        "version": torch.__version__, "kinds": frozenset({"a", "b"}),
    }  # fmt: skip
    torch.save({"state_dict": WEIGHTS, **beside}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert list(open_checkpoint(tmp_path / "a.pt").entries) == ["fc.weight"]
