"""Memory that a training on this machine may still take, and the most that this process has held."""

import os
import re
import resource
import sys
from pathlib import Path

import torch

_ROOT = Path("/")  # a test puts another machine's files in its place


def free_bytes(device: torch.device, n_processes: int = 1, root: Path = _ROOT) -> int:
    """Memory that one of the processes about to train may take.

    Args:
        device: The device that trains.
        n_processes: Processes that will share this machine's processor; a GPU is shared by none.
        root: Where /proc and /sys lie.

    Returns:
        Of a GPU, what the driver says is free; on Metal, what the driver recommends to take at most. On a CPU under
        Linux the least of what the kernel says is available, what the memory limits of this process's control groups
        leave, and what its own limit leaves, less what the other processes take before they train, in equal parts.
        macOS does not say what is available: half of what is there.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    if not sys.platform.startswith("linux"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // n_processes
    available = _kilobytes(root / "proc" / "meminfo", "MemAvailable")
    held_by_each = held_bytes()
    shared = min([available, *_left_by_control_groups(root)]) - (n_processes - 1) * held_by_each
    return max(0, min([shared // n_processes, *_left_by_own_limits()]))


def held_bytes() -> int:
    """Memory that this process holds now, without the files it has mapped; on other systems than Linux, with them."""
    return _kilobytes(Path("/proc/self/status"), "RssAnon") if sys.platform.startswith("linux") else most_held_bytes()


def most_held_bytes() -> int:
    """The most of it that this process has ever held."""
    if not sys.platform.startswith("linux"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes
    status = Path("/proc/self/status")
    # Not ru_maxrss, which begins at what the parent held. Mapped files hardly come or go while a network trains.
    return sum(_kilobytes(status, name) * sign for name, sign in (("VmHWM", 1), ("RssFile", -1), ("RssShmem", -1)))


def limit_growth(n_bytes: int) -> None:
    """Has the kernel refuse this process more memory than that from here on; under Linux only.

    Without it the kernel gives more than there is, and then ends a process of its own choice.
    """
    if not sys.platform.startswith("linux"):
        return
    now = _kilobytes(Path("/proc/self/status"), "VmData")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = now + n_bytes if hard == resource.RLIM_INFINITY else min(hard, now + n_bytes)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    Path("/proc/self/oom_score_adj").write_text("1000")  # and if one is to be ended, then this one


def _left_by_control_groups(root: Path) -> list[int]:
    """What each memory limit that this process lives under leaves; what holds copies of files counts as left."""
    groups = root / "proc" / "self" / "cgroup"
    if not groups.exists():
        return []
    left = []
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit_name, usage_name, prefix = root / "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, prefix = root / "sys/fs/cgroup/memory", "total_"
            limit_name, usage_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inside = Path(path.strip("/"))
        for group in {top / inside, *(top / parent for parent in inside.parents), top}:
            limit, usage = _number(group / limit_name), _number(group / usage_name)
            if limit is None or usage is None:
                continue
            stat = (group / "memory.stat").read_text() if (group / "memory.stat").exists() else ""
            files = sum(int(n) for n in re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", stat, re.MULTILINE))
            left.append(limit - usage + files)
    return left


def _left_by_own_limits() -> list[int]:
    limits = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
    return [
        soft - _kilobytes(Path("/proc/self/status"), used)
        for limit, used in limits
        if (soft := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY
    ]


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:  # the group above ours may be another's
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def _kilobytes(path: Path, name: str) -> int:
    """A line of /proc that counts in kilobytes, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path} has no {name}"
    return 1024 * int(found[1])
