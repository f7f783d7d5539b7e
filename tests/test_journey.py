"""The whole road by the command alone: raw text to tokenizer to bins to steps, killed, gone on with, and talking."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from scratchlm.training.run_log import read_metrics

OPENINGS = ["Once", "One day", "Long ago", "In the spring", "That night"]
NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn"]
DEEDS = ["found a boat", "lost a shoe", "planted a pear tree", "sang to the moon", "painted the door blue"]
ENDS = ["and told no one.", "and laughed all day.", "so the whole village came.", "but the rain took it away."]


def write_stories(path: Path, n_stories: int) -> None:
    draw = random.Random(1)
    choose = draw.choice
    lines = [
        " ".join(
            f"{choose(OPENINGS)} {choose(NAMES)} and {choose(NAMES)} {choose(DEEDS)} {choose(ENDS)}" for _ in range(4)
        )
        + f" It was day {number}."
        for number in range(n_stories)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def command(folder: Path, *words: str) -> list[str]:
    sizes = [
        "--data.sources={stories: {uri: stories.txt, documents: line}}",
        "--data.folder=bins",
        "--data.vocab_size=400",
        "--data.val_fraction=0.05",
        "--data.context_length=32",
        "--data.micro_batch_size=4",
        "--data.global_batch_size=8",
        "--model.gpt.d_model=32",
        "--model.gpt.n_layers=2",
        "--model.gpt.n_heads=2",
        "--model.gpt.d_ff=64",
        "--model.gpt.dropout=0.1",
        "--model.warmup_steps=5",
        "--model.learning_rate=0.01",
        "--trainer.max_steps=60",
        "--trainer.val_check_interval=20",
        "--trainer.log_every_n_steps=1",
        "--trainer.limit_val_batches=4",
        "--checkpoint.every_steps=7",
    ]
    return [sys.executable, "-m", "scratchlm", "fit", *sizes, f"--trainer.default_root_dir={folder}", *words]


def start(folder: Path, cwd: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"WANDB_MODE": "disabled"}
    arguments = command(folder, *words)
    return subprocess.Popen(arguments, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def stop_after_step(process: subprocess.Popen[bytes], run: Path, step: int, by: signal.Signals) -> int:
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_metrics(run)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if by == signal.SIGKILL:
        process.kill()
    else:  # to all its processes, as a terminal's Ctrl-C and a scheduler's SIGTERM come
        os.killpg(process.pid, by)
    return process.wait()


def curve(run: Path) -> list[tuple[int, str, float]]:
    names = ("train/loss", "train/gradient_norm", "val/loss")
    return [(line["step"], name, line[name]) for line in read_metrics(run) for name in names if name in line]


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run left alone, one killed twice and one politely stopped twice, all from the same bins."""
    folder = tmp_path_factory.mktemp("journey")
    write_stories(folder / "stories.txt", 1500)
    assert start(folder / "whole", folder).wait() == 0
    ends = {"killed": (signal.SIGKILL, signal.SIGKILL), "stopped": (signal.SIGTERM, signal.SIGINT)}
    statuses = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
    for name, (first, second) in ends.items():
        run = folder / name
        assert stop_after_step(start(run, folder, "--data.num_workers=2"), run, 12, first) == statuses[first]
        assert stop_after_step(start(run, folder, "--ckpt_path=last"), run, 33, second) == statuses[second]
        assert start(run, folder, "--ckpt_path=last").wait() == 0
    assert start(folder / "killed", folder, "--ckpt_path=last").wait() == 0  # there is nothing left to do
    return folder


@pytest.mark.parametrize("name", ["killed", "stopped"])
def test_a_run_goes_on_to_the_same_bit_however_it_was_stopped(journey: Path, name: str) -> None:
    assert len(curve(journey / "whole")) == 60 * 2 + 3
    assert curve(journey / name) == curve(journey / "whole")
    assert {line["attempt"] for line in read_metrics(journey / name)} == {1, 2, 3}


def test_a_run_told_to_stop_makes_no_step_twice(journey: Path) -> None:
    lines = [json.loads(line) for line in (journey / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 61))


def test_the_model_learns(journey: Path) -> None:
    losses = [value for _, name, value in curve(journey / "whole") if name == "val/loss"]
    assert losses[0] > losses[1] > losses[2]
    first = next(value for _, name, value in curve(journey / "whole") if name == "train/loss")
    assert losses[-1] < first - 2  # it began near log(400) = 6.0


def test_samples_are_kept_for_each_validation(journey: Path) -> None:
    rows = [json.loads(line) for line in (journey / "whole" / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {20, 40, 60}
    assert all(set(row) == {"step", "tokens", "prompt", "completion"} for row in rows)


def test_the_report_tells_of_each_attempt(journey: Path) -> None:
    words = ["report", "--run=killed", "--output=page.html"]
    assert subprocess.check_output([sys.executable, "-m", "scratchlm", *words], cwd=journey, text=True) == "page.html\n"
    page = (journey / "page.html").read_text(encoding="utf-8")
    drawn = json.loads(page.split('id="run">')[1].split("</script>")[0])
    assert [mark["attempt"] for mark in drawn["resumes"]] == [2, 3]
    assert [len(series["steps"]) for series in drawn["charts"][0]["series"]] == [60, 3]
    assert "<td>stories.txt</td>" in page
    assert "finished" in page.split("<h2>")[0]


def test_every_checkpoint_loads_with_weights_only_however_the_run_was_stopped(journey: Path) -> None:
    found = list(journey.glob("*/checkpoints/*.ckpt"))
    assert {path.parents[1].name for path in found} == {"whole", "killed", "stopped"}
    for path in found:
        assert torch.load(path, weights_only=True)["scratchlm"]["step"] > 0


def test_the_last_checkpoint_alone_tells_a_story(journey: Path, tmp_path: Path) -> None:
    shutil.copy(journey / "killed" / "checkpoints" / "step-00000060.ckpt", tmp_path / "model.ckpt")
    words = ["generate", "--checkpoint=model.ckpt", "--prompt=One day Ada", "--max_new_tokens=60"]
    said = subprocess.check_output([sys.executable, "-m", "scratchlm", *words], cwd=tmp_path, text=True)
    assert said.startswith("One day Ada")
    assert any(name in said.removeprefix("One day Ada") for name in NAMES)
