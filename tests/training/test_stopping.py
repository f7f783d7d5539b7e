"""Told to stop, a run saves at the next boundary of steps and goes on to the same bit: real signals."""

import fcntl
import json
import os
import select
import signal
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from scratchlm.training.checkpoints import newest_whole, step_checkpoints
from scratchlm.training.events import read_events
from scratchlm.training.run_log import read_metrics
from scratchlm.training.stopping import Stopped

EXACT = ("train/loss", "train/gradient_norm", "val/loss")


def curve(folder: Path) -> list[dict[str, Any]]:
    return [{name: line[name] for name in ("step", *EXACT) if name in line} for line in read_metrics(folder)]


def stopped(tiny: Any, folder: Path, *arguments: str) -> Stopped:
    with pytest.raises(Stopped) as stop:
        tiny.main([str(folder), *arguments])
    return stop.value


@pytest.fixture(scope="module")
def undisturbed(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny.main([str(folder)])
    return folder


@pytest.mark.parametrize(
    ("where", "saved"),
    [
        ("batch:12", 7),  # the first of the two micro-batches of step 7
        ("batch:13", 7),  # the second
        ("validation:10", 10),  # amid it: at the step before it
        ("save:8", 9),  # amid the saving of step 8
        ("batch:1", 1),  # the first step of all
        ("batch:26", 14),  # in the last step, behind which there is no boundary
        ("validation:14", 14),  # the last
    ],
)
@pytest.mark.parametrize("by", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_at_the_next_boundary_and_the_run_goes_on_to_the_bit(
    undisturbed: Path, tiny: Any, tmp_path: Path, where: str, saved: int, by: str
) -> None:
    if saved == 14:  # nothing is left to stop: the run ends as it would have
        tiny.main([str(tmp_path), "--kill", where, "--by", by])
    else:
        stop = stopped(tiny, tmp_path, "--kill", where, "--by", by)
        assert stop.code == {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138}[by]
        assert max(step_checkpoints(tmp_path / "checkpoints")) == saved
        event = read_events(tmp_path)[-1]
        assert (event["kind"], event["step"], event["signal"]) == ("stop", saved, by)
        tiny.main([str(tmp_path), "--resume", "last"])
    assert curve(tmp_path) == curve(undisturbed)
    weights = [
        torch.load(run / "checkpoints" / "step-00000014.ckpt", weights_only=True)["state_dict"]
        for run in (undisturbed, tmp_path)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "signals are given back"


def test_a_validation_that_was_broken_off_is_made_once_and_whole(undisturbed: Path, tiny: Any, tmp_path: Path) -> None:
    stopped(tiny, tmp_path, "--kill", "validation:10", "--by", "SIGTERM")
    assert all(line["step"] != 10 or "val/loss" not in line for line in read_metrics(tmp_path))
    tiny.main([str(tmp_path), "--resume", "last"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/loss" in line] == [5, 10, 14]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 15)), "no step is made twice"


class EventsSeen(Callback):
    """What is noted of the run as each checkpoint is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: list[list[str]] = []

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.kinds.append([event["kind"] for event in read_events(self.folder)])


def test_the_end_of_a_run_is_noted_once_and_not_before_its_last_checkpoint_is_there(tiny: Any, tmp_path: Path) -> None:
    seen = EventsSeen(tmp_path)
    tiny.tiny_trainer(tmp_path, callbacks=[seen]).fit(tiny.tiny_task(), tiny.TinyData())
    assert seen.kinds
    assert not any("end" in kinds for kinds in seen.kinds)
    tiny.main([str(tmp_path), "--resume", "last"])  # which has nothing left to do
    assert [(event["kind"], event["step"]) for event in read_events(tmp_path)] == [("end", 14)]


class Late(Callback):
    """A signal before the first batch."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")


def test_before_the_first_step_there_is_nothing_to_wait_for(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer(tmp_path, callbacks=[Late()])
    with pytest.raises(Stopped) as stop:
        trainer.fit(tiny.tiny_task(), tiny.TinyData())
    assert (stop.value.code, stop.value.saved) == (143, False)
    assert newest_whole(tmp_path / "checkpoints") is None


def test_a_second_ctrl_c_stops_at_once(tiny: Any, tmp_path: Path) -> None:
    command = [sys.executable, tiny.__file__, str(tmp_path), "--step-seconds", "60", "--every-steps", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("memory"):  # the last line before the first step
                break
        time.sleep(1)  # which takes a minute
        process.send_signal(signal.SIGINT)
        for line in process.stderr:
            if "Ctrl-C again stops at once" in line:
                break
        assert process.poll() is None
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130
        assert time.monotonic() - start < 5
    assert "stopped at once; --ckpt_path last goes on from the last checkpoint" in rest
    assert "Traceback" not in rest


def test_a_terminal_that_is_closed_stops_and_saves(tiny: Any, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, tiny.__file__, str(tmp_path), "--step-seconds", "0.6"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    while not read_metrics(tmp_path):
        assert select.select([ours], [], [], 60)[0]
        os.read(ours, 10_000)
    os.close(ours)
    assert process.wait(timeout=30) == 128 + signal.SIGHUP
    checkpoint = newest_whole(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert torch.load(checkpoint, weights_only=True)["global_step"] == read_metrics(tmp_path)[-1]["step"] < 14


def test_slurms_signal_has_the_job_queued_again(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, scontrol = tmp_path / "asked", tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "4711", "NTASKS_PER_NODE": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert stopped(tiny, tmp_path / "run", "--kill", "batch:6", "--by", "SIGUSR1").code == 138
    assert asked.read_text() == "requeue 4711\n"
    assert max(step_checkpoints(tmp_path / "run" / "checkpoints")) == 4
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "99")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    scontrol.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    stopped(tiny, tmp_path / "array", "--kill", "batch:6", "--by", "SIGUSR1")
    assert "scontrol requeue 99_3: No such file or directory. Queue the job again yourself." in capsys.readouterr().err
