import copy
import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from scratchlm.errors import BrokenState
from scratchlm.training.checkpoints import newest_whole, step_checkpoints
from scratchlm.training.divergence import DivergenceGuard
from scratchlm.training.events import read_events
from scratchlm.training.run_log import read_metrics
from scratchlm.training.task import NextTokenTask


def test_a_loss_that_triples_is_warned_of_once_with_a_third_of_the_rate(capsys):
    guard = DivergenceGuard()
    for step, loss in enumerate([10.0, *[2.0] * 60, *[9.0] * 60]):
        guard.watch(loss, step, 3e-3)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "model.learning_rate=0.003" in warnings[0]
    assert "--model.learning_rate 0.001" in warnings[0]


def test_a_single_spike_or_a_slow_fall_is_not_warned_of(capsys):
    guard = DivergenceGuard()
    for step, loss in enumerate([10.0, 8.0, 6.0, *[4.0] * 20, 30.0, *[4.0] * 20]):
        guard.watch(loss, step, 3e-3)
    assert "warning" not in capsys.readouterr().err


def test_the_guard_goes_on_from_what_it_had_seen(capsys):
    before, after = DivergenceGuard(), DivergenceGuard()
    for step in range(40):
        before.watch(2.0, step, 3e-3)
    after.load_state_dict(before.state_dict())
    for step in range(60):
        after.watch(9.0, step, 3e-3)
    assert "after a lowest of 2.00" in capsys.readouterr().err


class Poison(Callback):
    """Makes the gradients of some steps no finite number, and keeps the weights before and after each."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps
        self.before: dict[int, Any] = {}
        self.after: dict[int, Any] = {}

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.before[trainer.global_step + 1] = copy.deepcopy(pl_module.gpt.state_dict())
        if trainer.global_step + 1 in self.steps:
            next(pl_module.gpt.parameters()).grad[0, 0] = math.nan

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.after[trainer.global_step] = copy.deepcopy(pl_module.gpt.state_dict())


class InfiniteLoss(NextTokenTask):
    """Steps 4 and 9 have an infinite loss, though a finite gradient."""

    def loss(self, batch: Any) -> torch.Tensor:
        return super().loss(batch) + (math.inf if self.trainer.global_step + 1 in (4, 9) else 0.0)


class NotFused(NextTokenTask):
    """Somebody's own optimizer."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        optimizer.defaults["fused"] = False
        for group in optimizer.param_groups:
            group["fused"] = False
        return optimizer


def task_of_kind(tiny: Any, kind: type[NextTokenTask]) -> NextTokenTask:
    plain = tiny.tiny_task()
    task = kind(plain.gpt, learning_rate=1e-2, warmup_steps=3, sample_tokens=4)
    task.corpus = plain.corpus
    return task


def poisoned(tiny: Any, folder: Path, steps: set[int], task: Any = None, **settings: Any) -> Any:
    poison = Poison(steps)
    resume = settings.pop("resume", None)
    trainer = tiny.tiny_trainer(folder, callbacks=[poison, *settings.pop("callbacks", [])], **settings)
    trainer.fit(task or tiny.tiny_task(dropout=0.1), tiny.TinyData(), ckpt_path=resume)
    return poison


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", [NextTokenTask, NotFused, InfiniteLoss])
@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": None}, {"gradient_clip_algorithm": "value"}])
def test_a_step_that_is_not_finite_changes_no_weight_is_counted_and_noted(tiny, tmp_path, kind, settings):
    steps = set() if kind is InfiniteLoss else {4, 9}
    poison = poisoned(tiny, tmp_path, steps, task_of_kind(tiny, kind), **settings)
    for step in range(1, 15):
        assert same(poison.before[step], poison.after[step]) == (step in (4, 9)), step
    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]  # NaN is no JSON
    counted = {line["step"]: line.get("train/skipped_steps", 0) for line in lines if "train/learning_rate" in line}
    assert counted == {step: (step >= 4) + (step >= 9) for step in range(1, 15)}
    assert [event["step"] for event in read_events(tmp_path) if event["kind"] == "skipped"] == [4, 9]


def test_too_many_in_a_row_stop_the_run_and_the_last_good_checkpoint_stays(tiny, tmp_path):
    task = tiny.tiny_task(max_skipped_steps=4)
    with pytest.raises(BrokenState, match=r"4 steps in a row, the last step 11 \(model.max_skipped_steps=4\)"):
        poisoned(tiny, tmp_path, {3, 4, 5, *range(8, 15)}, task=task, every_steps=1)
    assert max(step_checkpoints(tmp_path / "checkpoints")) == 7
    newest = torch.load(newest_whole(tmp_path / "checkpoints"), weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in newest["state_dict"].values())


def test_a_run_with_such_steps_killed_amid_them_goes_on_to_the_bit_and_counts_on(tiny, tmp_path):
    steps = {6, 7, 8, 9}
    poisoned(tiny, tmp_path / "whole", steps)
    stop = tiny.Kill("batch", 15, signal.SIGTERM)  # the second micro-batch of step 8
    with pytest.raises(SystemExit):
        poisoned(tiny, tmp_path / "cut", steps, callbacks=[stop])
    newest = shutil.copy(newest_whole(tmp_path / "cut" / "checkpoints"), tmp_path / "stopped.ckpt")
    poisoned(tiny, tmp_path / "cut", steps, resume=newest)
    names = ("step", "train/loss", "train/gradient_norm", "train/skipped_steps", "val/loss")
    whole, cut = (
        [{name: line.get(name) for name in names} for line in read_metrics(tmp_path / run)] for run in ("whole", "cut")
    )
    assert cut == whole
    assert whole[-1]["train/skipped_steps"] == 4
    with pytest.raises(BrokenState, match="4 steps in a row"):  # of which three were before
        poisoned(tiny, tmp_path / "cut", steps, task=tiny.tiny_task(dropout=0.1, max_skipped_steps=4), resume=newest)


def spikes(losses: list[float]) -> list[int]:
    guard, found = DivergenceGuard(), []
    for number, loss in enumerate(losses):
        if guard.is_spike(loss):
            found.append(number)
        guard.watch(loss, number, 1e-3)
    return found


def test_a_loss_that_stands_out_is_a_spike_once():
    assert spikes([*[3.0, 3.1] * 20, 9.0, 9.0, 3.0, *[3.0] * 30, 9.0]) == [40, 73]
    falling = [3 + 3 * math.exp(-i / 10) + 0.1 * (i * i % 7) for i in range(100)]
    assert spikes(falling) == []
    assert spikes([*falling, falling[-1] + 1.5]) == [100]


def test_few_losses_tell_nothing_of_what_is_usual():
    assert spikes([3.0] * 15 + [9.0]) == []
