"""Going on with a run by the command: at once, with the right sequences, from a checkpoint that is whole."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.test_cli import TINY

from scratchlm.data.windows import window_starts
from scratchlm.errors import BrokenState
from scratchlm.run_folder import RunFolder
from scratchlm.training.run_log import read_metrics

Command = Callable[..., None]

GO_ON = ["fit", *TINY, "--ckpt_path=last"]
FAR = 1_000_000  # steps, of four sequences


def as_if_at_step(step: int, checkpoint: Path) -> None:
    """Writes a checkpoint beside another, as if so many steps of its run were done."""
    content = torch.load(checkpoint, weights_only=True)
    content["global_step"] = content["scratchlm"]["step"] = step
    content["scratchlm"]["sequences"] = 4 * step
    content["PretrainingData"] |= {"step": step, "sequences": 4 * step}
    counts = content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    counts["total"] = {"ready": step, "completed": step}
    torch.save(content, checkpoint.with_name(f"step-{step:08d}.ckpt"))


def test_a_run_goes_on_at_step_a_million_as_fast_as_at_step_four_and_with_the_right_sequences(
    run_folder: Path, command: Command
) -> None:
    tokens = np.fromfile(run_folder / "bins" / "train.bin", np.uint16)
    seconds = []
    for step in (4, FAR):
        if step == FAR:
            as_if_at_step(FAR, run_folder / "run" / "checkpoints" / "step-00000005.ckpt")
        witness = {"class_path": "tests.rank_witness.Witness", "init_args": {"folder": f"seen-{step}"}}
        began = time.monotonic()
        command(*GO_ON, f"--trainer.max_steps={step + 1}", f"--trainer.callbacks={json.dumps([witness])}")
        seconds.append(time.monotonic() - began)
        seen = [json.loads(line) for line in Path(f"seen-{step}", "rank-0.jsonl").read_text().splitlines()]
        assert {line["step"] for line in seen} == {step + 1}
        starts = window_starts(4 * step + np.arange(4), len(tokens), 16, seed=1)
        windows = [tokens[start : start + 16].astype(np.int64).tobytes() for start in starts]
        assert [row for line in seen for row in line["rows"]] == [hashlib.sha256(w).hexdigest()[:16] for w in windows]
    assert read_metrics(run_folder / "run")[-1]["step"] == FAR + 1
    near, far = seconds
    assert far < 3 * near + 1  # going through two million micro-batches would take minutes


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_goes_on_and_only_damaged_ones_stop(
    run_folder: Path, command: Command, refusal: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    whole = run_folder / "run" / "checkpoints" / "step-00000004.ckpt"
    newest = whole.with_name("step-00000005.ckpt")

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    shutil.copy(whole, newest)
    damage(newest)
    command(*GO_ON, "--trainer.max_steps=5")
    said = [line for line in capfd.readouterr().err.splitlines() if "assed over" in line]
    assert len(said) == 1
    assert "step-00000005.ckpt: damaged on disk (" in said[0]
    assert [(line["step"], line["attempt"]) for line in read_metrics(run_folder / "run")][-2:] == [(4, 1), (5, 2)]
    damage(whole)
    damage(newest)
    assert "every periodic checkpoint in it is damaged" in refusal(*GO_ON, "--trainer.max_steps=6")
    assert len(read_metrics(run_folder / "run")) == 5


def test_a_run_that_another_process_has_brought_further_meanwhile_is_not_gone_back_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.find_checkpoint("last") is None
    with ExitStack() as stack:  # the other process, which begins and ends before this one is ready
        RunFolder(tmp_path).claim(stack, fresh=False)
        folder.checkpoints.mkdir()
        (folder.checkpoints / "step-00000250.ckpt").touch()
    with ExitStack() as stack, pytest.raises(BrokenState, match=r"to step 250 in the meantime.*--ckpt_path last"):
        folder.claim(stack, fresh=False)
