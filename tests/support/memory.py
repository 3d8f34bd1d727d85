"""How much memory some code takes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

# Linux tells the peak of a process since it was last asked to forget it (proc(5), clear_refs).
_MEASURED = """
def _kilobytes(key):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(key)).split()[1])

def start():
    global _before
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    _before = _kilobytes("VmRSS")

exec({code!r})
print((_kilobytes("VmHWM") - _before) / 1000)
"""


def peak_of(code: str) -> float:
    """The most megabytes that Python code takes beyond what its process had when it called `start()`."""
    ended = subprocess.run(
        [sys.executable, "-c", _MEASURED.format(code=code)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return float(ended.stdout.splitlines()[-1])
