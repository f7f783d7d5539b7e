import sys
from collections.abc import Callable
from pathlib import Path

import pytest


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
