"""Compiling changes no law of training, is decided by what it costs and saves, and is decided once for a run."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from tests.training.tiny_run import TinyData, tiny_task, tiny_trainer

from scratchlm.errors import BadValue, BrokenState
from scratchlm.training import compilation
from scratchlm.training.compilation import Compilation
from scratchlm.training.run_log import read_metrics
from scratchlm.training.task import NextTokenTask


def fit(folder: Path, compile: Any, choices: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Trains with `model.compile`; gives the choices as they were written down."""
    choices = {} if choices is None else choices
    written: list[str] = []
    callback = Compilation(choices, lambda: written.append(json.dumps(choices)))
    task = tiny_task(compile=compile, **settings.pop("task", {}))
    tiny_trainer(folder, callbacks=[callback], **settings).fit(task, TinyData())
    last = json.loads(written[-1]) if written else {}
    assert bool(last) == ("compile_reason" in last)
    last.pop("compile_reason", None)
    return last


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that costs nothing, so that even seconds of training pay for it."""
    monkeypatch.setattr(compilation, "_COST_SECONDS", {"cpu": 0.0})


@pytest.mark.parametrize("task", [{}, {"dropout": 0.1}])
def test_a_compiled_run_learns_what_one_that_is_not_learns(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], task: dict[str, Any]
) -> None:
    fit(tmp_path / "plain", False, task=task, max_steps=6)
    fit(tmp_path / "compiled", True, task=task, max_steps=6)
    assert "compiled in " in capfd.readouterr().err
    plain, compiled = (
        [line["train/loss"] for line in read_metrics(tmp_path / name) if "train/loss" in line]
        for name in ("plain", "compiled")
    )
    assert len(plain) == 6
    if not task:  # compiled kernels draw other random numbers
        assert compiled == pytest.approx(plain, rel=1e-5)


def test_auto_leaves_a_short_run_as_it_is_and_says_by_what_it_judged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, "auto", max_steps=2) == {"compile": False}
    assert "not compiled: about 20 s where torch's cache does not have it, to save about 0 of" in capfd.readouterr().err


def test_auto_judges_by_a_micro_batch_that_is_not_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    loss, seen = NextTokenTask.loss, []

    def slow_at_first(self: NextTokenTask, batch: Any) -> torch.Tensor:
        time.sleep(0 if seen else 2)
        seen.append(batch)
        return loss(self, batch)

    monkeypatch.setattr(NextTokenTask, "loss", slow_at_first)
    fit(tmp_path, "auto", max_steps=2)
    assert "to save about 0 of 0 s" in capfd.readouterr().err


@pytest.mark.usefixtures("cheap")
def test_auto_compiles_where_that_pays_and_writes_it_down_before_the_first_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, "auto", max_steps=2) == {"compile": True}
    said = capfd.readouterr().err
    assert said.index("compiling: about 0 s") < said.index("compiled in ") < said.index("step 1")


@pytest.mark.usefixtures("cheap")
def test_a_run_that_goes_on_keeps_what_was_chosen_when_it_began(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, "auto", {"compile": False}, max_steps=2) == {}
    assert "compil" not in capfd.readouterr().err


@pytest.mark.usefixtures("cheap")
def test_without_a_compiler_auto_goes_on_and_an_explicit_wish_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert fit(tmp_path / "auto", "auto", max_steps=2) == {"compile": False}
        assert "no C++ compiler is installed: install g++ or clang++" in capfd.readouterr().err
        with pytest.raises(BadValue, match=r"^model\.compile=True: no C\+\+ compiler is installed: install g\+\+ or "):
            fit(tmp_path / "asked", True, max_steps=2)


@pytest.mark.usefixtures("cheap")
def test_where_compiling_fails_auto_goes_on_and_an_explicit_wish_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> Any:
            raise torch._dynamo.exc.TorchDynamoException("the back end fell over\nwith many lines")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    assert fit(tmp_path / "auto", "auto", max_steps=2) == {"compile": False}
    assert "compiling failed (the back end fell over); going on without" in capfd.readouterr().err
    with pytest.raises(BrokenState, match=r"^model\.compile=True: compiling failed \(the back end fell over\)\. Say"):
        fit(tmp_path / "asked", True, max_steps=2)


def test_validation_and_samples_compile_nothing(tmp_path: Path) -> None:
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters
    counted.clear()
    fit(tmp_path, True, max_steps=4, val_every_steps=2)
    assert counted["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("cheap")
def test_a_signal_amid_compiling_ends_the_run_at_once_and_chooses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiling(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

        return run

    monkeypatch.setattr(torch, "compile", compiling)
    choices: dict[str, Any] = {"compile": True}
    start = time.monotonic()
    with pytest.raises(SystemExit, match="143"):
        fit(tmp_path, "auto", choices, max_steps=2)
    assert time.monotonic() - start < 30
    assert choices == {"compile": True}
