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
from scratchlm.training.checkpoints import step_checkpoints
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
    for path in (whole, newest, whole.with_name("best.ckpt")):
        path.write_bytes(path.read_bytes()[:1000])
    assert "every checkpoint in it is damaged" in refusal(*GO_ON, "--trainer.max_steps=6")
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


def steps_in(folder: Path) -> list[int]:
    return sorted(step_checkpoints(folder))


def test_a_run_that_goes_back_keeps_what_it_gives_up_and_last_means_the_line_it_took(
    command: Command, run_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints = run_folder / "run" / "checkpoints"
    command(*GO_ON, "--trainer.max_steps=8", "--checkpoint.every_steps=2", "--trainer.val_check_interval=5")
    assert steps_in(checkpoints) == [6, 8]
    shutil.copy(checkpoints / "step-00000008.ckpt", run_folder / "eight.ckpt")
    fault = {"class_path": "tests.rank_witness.Fault", "init_args": {"rank": 0, "step": 8, "kind": "mistake"}}
    back = f"--ckpt_path={checkpoints}/step-00000006.ckpt"
    changed = ["--trainer.max_steps=9", "--checkpoint.every_steps=9", "--model.learning_rate=1e-4"]
    with pytest.raises(SystemExit):  # before the first checkpoint of the line it takes
        command("fit", *TINY, back, *changed, f"--trainer.callbacks={json.dumps([fault])}")
    assert "steps 7 to 8 are given up; step-00000008.ckpt: now in run/checkpoints/given-up" in capfd.readouterr().err
    assert (checkpoints / "given-up" / "step-00000008.ckpt").read_bytes() == (run_folder / "eight.ckpt").read_bytes()
    command(*GO_ON, "--trainer.max_steps=9", "--trainer.callbacks=null")
    assert "going on after step 6" in capfd.readouterr().err
    best = torch.load(checkpoints / "best.ckpt", weights_only=True)["global_step"]
    command("fit", *TINY, "--ckpt_path=best", f"--trainer.max_steps={best}")
    assert steps_in(checkpoints)[-1] == best, "also where no periodic checkpoint was of that step"


def test_a_run_begun_from_another_runs_checkpoint_stands_at_its_step_at_once(
    command: Command, run_folder: Path
) -> None:
    of_run = run_folder / "run" / "checkpoints" / "step-00000004.ckpt"
    command("fit", *TINY, "--trainer.max_steps=4", f"--ckpt_path={of_run}", "--trainer.default_root_dir=other")
    assert steps_in(run_folder / "other" / "checkpoints") == [4]


def test_best_is_gone_on_from_where_it_is_the_newest_whole_checkpoint(
    command: Command, run_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints = run_folder / "run" / "checkpoints"
    (checkpoints / "step-00000004.ckpt").write_bytes(b"")
    assert torch.load(checkpoints / "best.ckpt", weights_only=True)["global_step"] == 4
    command(*GO_ON, "--trainer.max_steps=5")
    assert "best.ckpt: is whole, and of step 4" in capfd.readouterr().err
    assert steps_in(checkpoints)[-1] == 5


@pytest.mark.parametrize("word", ["lsat", "hpc", "runs/none.ckpt"])
def test_a_checkpoint_that_is_not_there_is_said_so_also_beside_a_run(
    refusal: Callable[..., str], run_folder: Path, word: str
) -> None:
    del run_folder
    assert f"{word}: no such" in refusal("fit", *TINY, "--trainer.max_steps=5", f"--ckpt_path={word}")
