"""Tests know no network: the dataset hub is one on this machine, for this process and for those it starts."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.hub_repositories import write_repositories
from tests.loopback_hub import Hub

# The hub's client reads these when it is first imported, which may be in any test: so they are set before all of them.
_HUB = Hub()
os.environ["HF_ENDPOINT"] = _HUB.address
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="scratchlm-hub-client-")
atexit.register(_HUB.server_close)
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

# Shells start what runs in the background with Ctrl-C ignored, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture
def run_alone() -> Callable[..., list[int]]:
    """Runs a script that may call peak_bytes() in a process of its own, and gives the numbers it prints.

    What a test measures of memory it measures here: the heap of a process that has run a thousand tests has room.
    """

    def run(script: str, *arguments: str) -> list[int]:
        command = [sys.executable, "-c", _PEAK + script, *arguments]
        return [int(word) for word in subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()]

    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Runs `scratchlm ...` in this process, in an empty folder, with W&B off."""
    from scratchlm.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["scratchlm", *words])
        main()

    return run


@pytest.fixture
def refusal(command: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused, and gives the one line it prints."""

    def run(*words: str) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            command(*words)
        assert stop.value.code == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("scratchlm: error: ")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `scratchlm fit` has made bins and trained four steps, by the command itself."""
    from tests.test_cli import TINY, write_text

    folder = tmp_path_factory.mktemp("trained")
    write_text(folder / "input.txt")
    subprocess.run(
        [sys.executable, "-m", "scratchlm", "fit", *TINY, "--trainer.max_steps=4"],
        cwd=folder,
        env=os.environ | {"WANDB_MODE": "disabled"},
        check=True,
    )
    return folder


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` that a test may change; the command fixture works in it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="session")
def _serving_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    _HUB.root = tmp_path_factory.mktemp("hub")
    write_repositories(_HUB.root)
    thread = threading.Thread(target=_HUB.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield _HUB
    _HUB.shutdown()
    thread.join()
    _HUB.server_close()


@pytest.fixture
def hub(_serving_hub: Hub) -> Iterator[Hub]:
    """A hub with the repositories of `hub_repositories`; `datasets` streams from it in this and in child processes."""
    _serving_hub.behave()
    yield _serving_hub
    _serving_hub.behave()
