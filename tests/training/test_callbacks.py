import json
import sys
import time

import pytest
from lightning.pytorch import Callback

from scratchlm.training.callbacks import DivergenceGuard, Summary, Throughput
from scratchlm.training.loggers import read_metrics


def fit(tiny, folder, task=None, **settings):
    trainer = tiny.tiny_trainer(folder, **({"max_steps": 6} | settings))
    trainer.fit(task or tiny.tiny_task(), tiny.TinyData())
    return trainer


def test_the_summary_says_the_exact_parameters_and_what_a_step_takes(tiny, tmp_path, capsys):
    task = tiny.tiny_task()
    fit(tiny, tmp_path, task)
    said = capsys.readouterr().err
    n_parameters = sum(parameter.numel() for parameter in task.gpt.parameters())
    lines = dict(line.split(maxsplit=1) for line in said.splitlines() if " " in line)
    assert lines["parameters"].strip() == f"{n_parameters:,}"
    assert "2 layers, d_model 16, 2 heads" in lines["shape"]
    assert lines["steps"].startswith("6 (768 tokens")
    assert f"{task.gpt.flops_per_token(tiny.CONTEXT):,}" in said
    assert "128 (8 sequences of 16: 4 at once x 2 in a row x 1 devices)" in said
    assert "cpu (1 threads), 32-true" in said
    assert "GB for training" in lines["memory"]


def test_a_resumed_runs_summary_says_where_it_goes_on(tiny, tmp_path, capsys):
    fit(tiny, tmp_path, max_steps=4)
    trainer = tiny.tiny_trainer(tmp_path, max_steps=6)
    trainer.fit(tiny.tiny_task(), tiny.TinyData(), ckpt_path=tmp_path / "checkpoints" / "step-00000004.ckpt")
    assert "going on after step 4" in capsys.readouterr().err


def test_without_a_terminal_there_is_a_plain_line_each_log_interval(tiny, tmp_path, capsys):
    fit(tiny, tmp_path, max_steps=5, log_every_n_steps=2)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "tokens/s" in line]
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]
    assert all("loss" in line and "left" in line for line in lines)
    assert "step 5  val/loss" in said
    assert "\r" not in said


def test_on_a_terminal_there_is_a_bar_with_the_loss(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fit(tiny, tmp_path)
    said = capsys.readouterr().err
    assert "tokens/s" in said
    assert "loss=" in said
    assert "100%" in said


def test_samples_of_each_validation_are_written_and_reproducible(tiny, tmp_path, capsys):
    task = tiny.tiny_task(sample_prompts=["the cat", "Ünspellable", ""])
    fit(tiny, tmp_path, task, max_steps=6)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [(5, "the cat"), (5, ""), (6, "the cat"), (6, "")]
    assert rows[2]["tokens"] == 6 * 128
    assert task.complete("the cat", seed=0) == rows[2]["completion"]
    assert capsys.readouterr().err.count("Ünspellable") == 1


def test_sampling_leaves_the_training_as_it_is(tiny, tmp_path):
    fit(tiny, tmp_path / "with", tiny.tiny_task(dropout=0.1), max_steps=8)
    fit(tiny, tmp_path / "without", tiny.tiny_task(dropout=0.1, sample_prompts=[]), max_steps=8)
    left, right = ([line["train/loss"] for line in read_metrics(tmp_path / name)] for name in ("with", "without"))
    assert left == right
    assert not (tmp_path / "without" / "samples.jsonl").exists()


def test_throughput_counts_training_and_not_validation(tiny, tmp_path):
    class Slow(Callback):
        def on_validation_batch_start(self, *args, **kwargs):
            time.sleep(0.05)

    fit(tiny, tmp_path, callbacks=[Slow()], max_steps=6, val_every_steps=2)
    after_validation = read_metrics(tmp_path)[2::2]
    assert max(line["throughput/tokens_per_second"] for line in after_validation) > 128 / (7 * 0.05)
    assert all(0 <= line["throughput/data_wait_fraction"] < 1 for line in after_validation)
    assert all("throughput/mfu" not in line for line in after_validation), "no peak is known of a CPU"


def test_utilisation_is_the_share_of_a_known_peak(tiny, tmp_path):
    trainer = fit(tiny, tmp_path)
    throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))
    throughput._peak = 1e9
    throughput._step, throughput._busy_seconds, throughput._wait_seconds = trainer.global_step - 2, 1.5, 0.5
    figures = throughput.measure(trainer, trainer.lightning_module)
    assert figures["throughput/tokens_per_second"] == pytest.approx(128)
    assert figures["throughput/data_wait_fraction"] == pytest.approx(0.25)
    assert figures["throughput/mfu"] == pytest.approx(128 * trainer.lightning_module.gpt.flops_per_token(16) / 1e9)


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


def test_every_callback_of_a_run_is_seen_by_its_summary(tiny, tmp_path):
    trainer = fit(tiny, tmp_path)
    lines = next(c for c in trainer.callbacks if isinstance(c, Summary)).lines(trainer, trainer.lightning_module)
    assert list(lines) == ["parameters", "shape", "FLOPs a token", "tokens a step", "steps", "device", "memory"]
