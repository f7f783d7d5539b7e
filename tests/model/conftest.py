import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

# VmHWM, since a child's ru_maxrss on Linux begins at its parent's.
_PEAK = """
import pathlib, re, resource, torch
torch.set_num_threads(1)
def peak_bytes():
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def run_alone() -> Callable[..., list[int]]:
    """Runs a script that may call peak_bytes() in a process of its own, and gives the numbers it prints."""

    def run(script: str, *arguments: str) -> list[int]:
        command = [sys.executable, "-c", _PEAK + script, *arguments]
        return [int(word) for word in subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()]

    return run
