"""Tests know no network: the dataset hub is one on this machine, for this process and for those it starts."""

import atexit
import os
import shutil
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
