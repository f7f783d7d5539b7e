"""The versions and the machine that a run is made with, for whoever reads it later; no names of hosts or users."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import lightning
import torch

from scratchlm import __version__


def environment() -> dict[str, str]:
    """Versions and machine of this process, by what they are.

    Returns:
        `scratchlm`, `python`, `torch`, `lightning`, `system`, `cpu`, `cores` (those that this process may use),
        `memory`; with a GPU that torch can use also `gpu` and `gpu_memory`, and with CUDA `cuda`.
    """
    found = {
        "scratchlm": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": _gigabytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
    }
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        found["gpu"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        found["gpu_memory"] = _gigabytes(torch.cuda.get_device_properties(0).total_memory)
        found["cuda"] = str(torch.version.cuda or torch.version.hip)
    elif torch.backends.mps.is_available():
        found["gpu"] = str(torch.backends.mps.get_name())
    return found


def _cpu_name() -> str:
    with suppress(OSError, subprocess.SubprocessError):
        if platform.system() == "Darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.check_output(command, text=True, timeout=10).strip()
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if named:
            return named[1]
    return platform.processor() or platform.machine()


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.0f} GB"
