"""What may still be taken is the least that the machine, the control groups and the process's own limits leave."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scratchlm.training.free_memory import free_bytes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which Linux has")

MB = 1_000_000
CPU = torch.device("cpu")


def plant(root: Path, files: dict[str, str], available_kb: int = 8_000_000) -> Path:
    """A machine's /proc and /sys/fs/cgroup under `root`."""
    meminfo = f"MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:   {available_kb} kB\n"
    for name, text in ({"proc/meminfo": meminfo} | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_without_control_groups_gives_what_its_kernel_calls_available(tmp_path: Path) -> None:
    assert free_bytes(CPU, root=plant(tmp_path, {})) == 8_000_000 * 1024


def test_a_group_of_version_2_leaves_its_limit_less_its_use_and_copies_of_files_count_as_left(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/jobs/mine"
    files = {
        "proc/self/cgroup": "0::/jobs/mine\n",
        f"{group}/memory.max": f"{500 * MB}\n",
        f"{group}/memory.current": f"{300 * MB}\n",
        f"{group}/memory.stat": f"anon 1\nfile 999\ninactive_file {50 * MB}\nactive_file {20 * MB}\ninactive_anon 7\n",
    }
    assert free_bytes(CPU, root=plant(tmp_path, files)) == 270 * MB


@pytest.mark.parametrize("limited", ["sys/fs/cgroup", "sys/fs/cgroup/jobs", "sys/fs/cgroup/jobs/mine"])
def test_the_tightest_of_the_groups_above_counts(tmp_path: Path, limited: str) -> None:
    files = {"proc/self/cgroup": "0::/jobs/mine\n"}
    for group in ("sys/fs/cgroup", "sys/fs/cgroup/jobs", "sys/fs/cgroup/jobs/mine"):
        files[f"{group}/memory.max"] = f"{(400 if group == limited else 900) * MB}\n"
        files[f"{group}/memory.current"] = f"{100 * MB}\n"
    assert free_bytes(CPU, root=plant(tmp_path, files)) == 300 * MB


def test_a_group_without_a_limit_and_one_that_cannot_be_read_take_nothing_away(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/jobs/mine"
    files = {
        "proc/self/cgroup": "0::/jobs/mine\n",
        f"{group}/memory.max": "max\n",
        f"{group}/memory.current": f"{300 * MB}\n",
    }
    assert free_bytes(CPU, root=plant(tmp_path, files)) == 8_000_000 * 1024


@pytest.mark.parametrize("place", ["memory/docker/abc", "memory"])
def test_a_group_of_version_1_counts_in_a_container_too_which_sees_its_own_group_at_the_top(
    tmp_path: Path, place: str
) -> None:
    group = f"sys/fs/cgroup/{place}"
    files = {
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/abc\n1:cpu:/\n0::/\n",
        f"{group}/memory.limit_in_bytes": f"{500 * MB}\n",
        f"{group}/memory.usage_in_bytes": f"{300 * MB}\n",
        f"{group}/memory.stat": (
            f"inactive_file 5\nactive_file 6\ntotal_inactive_file {40 * MB}\ntotal_active_file {10 * MB}\n"
        ),
    }
    assert free_bytes(CPU, root=plant(tmp_path, files)) == 250 * MB


def test_a_group_of_version_1_without_a_limit_takes_nothing_away(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{300 * MB}\n",
    }
    assert free_bytes(CPU, root=plant(tmp_path, files)) == 8_000_000 * 1024


def test_a_group_over_its_limit_leaves_nothing_and_not_less(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{100 * MB}\n",
        "sys/fs/cgroup/memory.current": f"{101 * MB}\n",
    }
    assert free_bytes(CPU, root=plant(tmp_path, files)) == 0


_SHARE = """
import sys, torch
from pathlib import Path
from scratchlm.training.free_memory import free_bytes, held_bytes
print(held_bytes(), free_bytes(torch.device("cpu"), 4, Path(sys.argv[1])))
"""


def test_processes_share_what_is_left_after_each_of_the_others_has_been_started(
    tmp_path: Path, run_alone: Callable[..., list[int]]
) -> None:
    held, share = run_alone(_SHARE, str(plant(tmp_path, {})))
    assert (8_000_000 * 1024 - 4 * share) / 3 == pytest.approx(held, rel=0.1)


_GROW = """
import sys, torch
from scratchlm.training.free_memory import free_bytes, limit_growth
limit_growth(int(sys.argv[1]))
print(free_bytes(torch.device("cpu")))
torch.ones(25_000_000)  # 100 MB
"""


def alone(script: str, n_bytes: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", script, str(n_bytes)], capture_output=True, text=True, check=False)


def test_a_process_is_refused_more_than_it_may_grow_by_and_counts_that_as_its_own_limit() -> None:
    ended = alone(_GROW, 50 * MB)
    assert int(ended.stdout) <= 50 * MB
    assert "can't allocate memory" in ended.stderr
    ended = alone(_GROW, 500 * MB)
    assert ended.returncode == 0, ended.stderr


_HOLD = """
import torch
from scratchlm.training.free_memory import held_bytes, most_held_bytes
torch.ones(1_000_000)
before = held_bytes()
block = torch.ones(50_000_000)
peak = most_held_bytes()
del block
print(before, peak, held_bytes(), most_held_bytes())
"""


def test_the_most_held_stays_when_memory_is_given_back(run_alone: Callable[..., list[int]]) -> None:
    before, peak, after, peak_after = run_alone(_HOLD)
    assert peak - before > 190 * MB
    assert peak_after >= peak - 5 * MB
    assert after < before + 100 * MB


def test_a_limit_of_the_process_itself_counts(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = (
        next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmSize")
        )
        * 1024
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + 300 * MB, hard))
    try:
        found = free_bytes(CPU, root=plant(tmp_path, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert found == pytest.approx(300 * MB, abs=20 * MB)
