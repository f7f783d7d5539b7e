"""`data.micro_batch_size: auto` through the command itself: found, written down before it is used, and used again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.test_cli import TINY, write_text

from scratchlm.model.checkpoint import read
from scratchlm.training.run_log import read_metrics

Command = Callable[..., None]

AUTO = [*TINY, "--data.micro_batch_size=auto", "--data.global_batch_size=2", "--trainer.accelerator=cpu"]


def choices(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "choices.json").read_text())
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the command has found the micro-batch and trained two steps; what it said is said.txt."""
    folder = tmp_path_factory.mktemp("found")
    write_text(folder / "input.txt")
    ended = subprocess.run(
        [sys.executable, "-m", "scratchlm", "fit", *AUTO, "--trainer.max_steps=2"],
        cwd=folder,
        env=os.environ | {"WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    (folder / "said.txt").write_text(ended.stderr)
    return folder


@pytest.fixture
def run_folder(found: Path, tmp_path: Path) -> Path:
    """A copy of `found` that a test may change; the command fixture works in it."""
    shutil.copytree(found, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_what_is_found_is_written_down_and_the_configuration_goes_on_saying_auto(found: Path) -> None:
    chosen = choices(found)["micro_batch_size"]
    assert chosen["sequences"] == 2  # all of the batch: the network is tiny
    assert 0 < chosen["peak_bytes"] < chosen["free_bytes"]
    assert chosen["found_for"]["vocab_size"] == 300
    assert yaml.safe_load((found / "run" / "config.yaml").read_text())["data"]["micro_batch_size"] == "auto"
    configuration = read(found / "run" / "checkpoints" / "step-00000002.ckpt").configuration
    assert configuration["data"]["micro_batch_size"] == "auto"
    said = (found / "said.txt").read_text()
    assert said.index("data.micro_batch_size=auto: trying") < said.index("2 is the largest of 1, 2 that fits")


def test_a_run_that_goes_on_takes_what_it_found(
    run_folder: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    before = choices(run_folder)["micro_batch_size"]
    (run_folder / "run" / "choices.json").write_text(
        json.dumps(choices(run_folder) | {"micro_batch_size": before | {"sequences": 1}})
    )
    command("fit", "--trainer.default_root_dir=run", "--trainer.max_steps=3", "--ckpt_path=last")
    said = capfd.readouterr().err
    assert "data.micro_batch_size=auto: 1, as when the run began" in said
    assert "trying" not in said
    assert choices(run_folder)["micro_batch_size"]["sequences"] == 1
    assert read_metrics(run_folder / "run")[-1]["step"] == 3


def test_what_is_found_is_written_down_before_the_first_step(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scratchlm.training.task import NextTokenTask

    class Stopped(Exception):
        pass

    def stop(*_: Any) -> None:
        assert choices(tmp_path)["micro_batch_size"]["sequences"] == 1
        raise Stopped

    write_text(tmp_path / "input.txt")
    monkeypatch.setattr(NextTokenTask, "on_train_start", stop, raising=False)
    with pytest.raises(Stopped):
        command("fit", *AUTO, "--trainer.max_steps=2", "--data.global_batch_size=1")


def test_the_checkpoint_of_such_a_run_can_be_scored_in_its_folder_and_elsewhere(
    run_folder: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    command("validate", "--ckpt_path=run/checkpoints/step-00000002.ckpt")
    here = capfd.readouterr().out
    assert "val/loss" in here
    (run_folder / "run").rename(run_folder / "moved")
    for more in ([], ["--data.global_batch_size=3"]):
        command("validate", "--ckpt_path=moved/checkpoints/step-00000002.ckpt", *more)
        assert "val/loss" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--data.micro_batch_size=4"],
            ["data.global_batch_size=2: not a multiple of data.micro_batch_size=4", "data.micro_batch_size=2"],
        ),
        (
            ["--data.micro_batch_size=2", "--data.global_batch_size=5"],
            ["data.global_batch_size=5: not a multiple of data.micro_batch_size=2", "data.micro_batch_size=1"],
        ),
        (
            ["--data.micro_batch_size=4", "--data.global_batch_size=4", "--trainer.devices=2"],
            ["data.global_batch_size=4: not a multiple of data.micro_batch_size=4 times 2 processes", "size=2"],
        ),
        (
            ["--data.global_batch_size=5", "--trainer.devices=2"],
            ["data.global_batch_size=5: cannot be shared by 2 processes. The nearest that works is 4."],
        ),
        (
            ["--data.global_batch_size=1", "--trainer.devices=2"],
            ["data.global_batch_size=1: cannot be shared by 2 processes. The nearest that works is 2."],
        ),
        (["--data.micro_batch_size=0"], ["data.micro_batch_size=0: too small. Give a whole number, 1 or more."]),
        (["--data.micro_batch_size=all"], ["data.micro_batch_size=all: is no "]),
    ],
)
def test_batch_sizes_that_contradict_each_other_are_one_line_before_anything_is_written(
    words: list[str], said: list[str], command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "input.txt")
    with pytest.raises(SystemExit) as stop:
        command("fit", *AUTO, "--trainer.max_steps=2", *words)
    assert stop.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("scratchlm: error: ")]
    assert len(lines) == 1
    for part in said:
        assert part in lines[0]
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "bins").exists()


def test_a_precision_that_attempts_are_not_made_for_is_refused_by_its_key(
    run_folder: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--trainer.default_root_dir=other", "--trainer.precision=64-true", "--trainer.max_steps=2"]
    with pytest.raises(SystemExit) as stop:
        command("fit", *AUTO, *words)
    assert stop.value.code == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "data.micro_batch_size=auto: " in line
    assert "trainer.precision=64-true" in line
    assert not (run_folder / "other").exists()
