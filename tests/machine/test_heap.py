"""Tests of what becomes of the memory that is freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# 64 MiB in pieces, the last of which stays: nothing at the end of the heap can be given back by itself.
PROGRAM = """
from sapcli.machine.heap import give_back_freed_memory, keep_freed_memory

def resident():
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * 4096

keep_freed_memory()
pieces = [bytearray(b"1" * (1 << 20)) for _ in range(64)]
last = bytearray(1 << 16)
full = resident()
pieces.clear()
kept = resident()
give_back_freed_memory()
print((full - kept) >> 20, (kept - resident()) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's alone")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    at_once, when_asked = map(int, ended.stdout.split())
    assert at_once < 8
    assert when_asked > 48
