"""Tests that random architectures of timm and torchvision compute what their libraries' plain code computes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.architectures import difference_to_plain_code, random_architectures


@pytest.mark.parametrize("part", range(8))
def test_logits_are_those_of_the_plain_code(tmp_path: Path, part: int) -> None:
    found = {name: difference_to_plain_code(name, tmp_path)[0] for name in random_architectures(5, 1, part, 8)}
    assert len(found) == 5
    assert {name: difference for name, difference in found.items() if not difference <= 1e-5} == {}
