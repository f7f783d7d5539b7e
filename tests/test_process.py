"""What a process asks of its C libraries is asked in time, and heard."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

_FAULTS = """
import resource, sys
from scratchlm.process import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import torch
torch.set_num_threads(1)
for _ in range(20):  # glibc grows its heap a few times before it takes again what was freed
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library frees memory in its own way")
def test_memory_that_was_freed_is_taken_again_without_a_page_fault() -> None:
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", _FAULTS, how], text=True)) for how in ("keep", "give back")
    )
    assert given_back > 1000  # the measure sees what it should
    assert kept < given_back / 100


@pytest.mark.parametrize(("given", "expected"), [(None, "20000"), ("7", "7")])
def test_the_command_has_threads_wait_briefly_unless_the_user_says_how_long(given: str | None, expected: str) -> None:
    code = "import os\nfrom scratchlm.process import wait_briefly\nwait_briefly()\nprint(os.environ['GOMP_SPINCOUNT'])"
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if given is not None:
        environment["GOMP_SPINCOUNT"] = given
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip() == expected


def test_the_command_asks_before_it_imports_torch() -> None:
    code = "import sys\nimport scratchlm.cli\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_for_torchs_compiler_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "cache")
    ended = subprocess.run(
        [sys.executable, "-m", "scratchlm", "fit", "--help"],
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"scratchlm: error: TORCHINDUCTOR_CACHE_DIR={folder}: this folder of torch's compiler cannot be made "
        "(Not a directory). Name another, or leave it out."
    ]
