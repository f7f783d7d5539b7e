import statistics
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from scratchlm.training import device
from scratchlm.training.loggers import Logger, read_metrics
from scratchlm.training.throughput import Throughput

RATES = {"throughput/tokens_per_second", "throughput/mfu", "throughput/data_wait_fraction", "throughput/seconds_left"}
STEP_SECONDS = 0.1  # of tiny.EvenSteps


def fit(tiny, folder, data=None, resume=None, **settings):
    trainer = tiny.tiny_trainer(folder, **({"max_steps": 6} | settings))
    trainer.fit(tiny.tiny_task(), data or tiny.TinyData(), ckpt_path=resume)
    return trainer


def meter(trainer):
    return next(callback for callback in trainer.callbacks if isinstance(callback, Throughput))


def test_tokens_a_second_are_those_of_steps_that_take_a_known_time(tiny, tmp_path):
    fit(tiny, tmp_path, callbacks=[tiny.EvenSteps()])
    rates = [line["throughput/tokens_per_second"] for line in read_metrics(tmp_path)[1:]]
    assert all(rate < 128 / STEP_SECONDS for rate in rates)
    assert max(rates) > 0.6 * 128 / STEP_SECONDS


def test_utilisation_is_tokens_times_their_arithmetic_over_the_peak(tiny, tmp_path):
    trainer = fit(tiny, tmp_path)
    peak = device.peak(torch.device("cpu"), "32-true").flops_per_second
    flops_per_token = trainer.lightning_module.gpt.flops_per_token(16)
    lines = read_metrics(tmp_path)[1:]
    assert len(lines) == 5
    for line in lines:
        assert line["throughput/mfu"] == pytest.approx(line["throughput/tokens_per_second"] * flops_per_token / peak)


def test_validation_does_not_slow_the_rates(tiny, tmp_path):
    slow = tiny.EvenSteps(validation_seconds=0.2)
    fit(tiny, tmp_path, callbacks=[slow], max_steps=6, val_every_steps=2)
    after_validation = read_metrics(tmp_path)[2::2]
    # Seven batches of 0.2 seconds: counted in, a step would take over a second.
    assert min(line["throughput/tokens_per_second"] for line in after_validation) > 128 / 1.0


def test_writing_checkpoints_does_not_slow_the_rates(tiny, tmp_path):
    class SlowDisk(Callback):
        def on_save_checkpoint(self, *args, **kwargs):
            time.sleep(1.0)

    fit(tiny, tmp_path, callbacks=[SlowDisk()], max_steps=5, every_steps=1, limit_val_batches=0)
    assert min(line["throughput/tokens_per_second"] for line in read_metrics(tmp_path)[1:]) > 128 / 0.9


def test_the_first_step_of_a_process_has_no_rates_and_spoils_none(tiny, tmp_path):
    fit(tiny, tmp_path, callbacks=[tiny.EvenSteps(first_seconds=2.0)], max_steps=4, every_steps=2)
    lines = read_metrics(tmp_path)
    assert not RATES & set(lines[0])
    assert lines[0]["throughput/memory_bytes"] > 0
    assert set(lines[1]) >= RATES
    assert min(line["throughput/tokens_per_second"] for line in lines[1:]) > 128 / 1.0

    fit(
        tiny,
        tmp_path,
        resume=tmp_path / "checkpoints" / "step-00000002.ckpt",
        callbacks=[tiny.EvenSteps(first_seconds=2.0)],
        max_steps=6,
    )
    resumed = read_metrics(tmp_path)[2:]
    assert [line["step"] for line in resumed] == [3, 4, 5, 6]
    assert not RATES & set(resumed[0])
    for line in resumed[1:]:
        assert 128 / 1.0 < line["throughput/tokens_per_second"] < 128 / STEP_SECONDS
        assert 0 <= line["throughput/data_wait_fraction"] < 1
        assert line["throughput/seconds_left"] >= 0


def test_waiting_for_data_is_the_time_of_fetching_alone(tiny, tmp_path):
    class SlowData(tiny.TinyData):
        def train_dataloader(self):
            fast = iter(super().train_dataloader())

            def slow():
                while True:
                    time.sleep(0.05)
                    yield next(fast)

            return DataLoader(Endless(slow), batch_size=None, generator=torch.Generator())

    class Endless(torch.utils.data.IterableDataset):
        def __init__(self, make):
            self.make = make

        def __iter__(self):
            return self.make()

    class SlowLogger(Logger):
        name = version = None

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step):
            time.sleep(0.2)

    log = tiny.MetricsLogger(tmp_path, 128)
    fit(tiny, tmp_path, SlowData(), callbacks=[tiny.EvenSteps()], limit_val_batches=0, every_steps=100)
    waiting = statistics.median(line["throughput/data_wait_fraction"] for line in read_metrics(tmp_path)[1:])
    assert 0.35 < waiting < 0.6  # two batches of 0.05 seconds beside a step of 0.1

    log = tiny.MetricsLogger(tmp_path / "logged", 128)
    fit(tiny, tmp_path / "logged", logger=[log, SlowLogger()], limit_val_batches=0, every_steps=100)
    lines = read_metrics(tmp_path / "logged")[1:]
    assert statistics.median(line["throughput/data_wait_fraction"] for line in lines) < 0.1
    assert statistics.median(line["throughput/tokens_per_second"] for line in lines) < 128 / 0.2


def test_the_time_left_is_what_the_run_then_takes(tiny, tmp_path):
    arrived = {}

    class Clock(Callback):
        def on_train_batch_end(self, trainer, *args, **kwargs):
            arrived.setdefault(trainer.global_step, time.monotonic())

    pauses = tiny.EvenSteps(validation_seconds=0.1)
    start = time.monotonic()
    trainer = fit(tiny, tmp_path, callbacks=[pauses, Clock()], max_steps=20, val_every_steps=6, every_steps=100)
    ended = time.monotonic()
    left = {line["step"]: line["throughput/seconds_left"] for line in read_metrics(tmp_path)[1:]}
    # After the first validation the other three are known of: at 7, 13 steps, and validations at 12, 18 and 20.
    assert left[7] > 13 * STEP_SECONDS + 3 * 7 * 0.1
    for step in (7, 12, 13, 17):
        assert left[step] == pytest.approx(ended - arrived[step], rel=0.4)
    assert left[20] == pytest.approx(7 * 0.1, rel=0.5)  # the last validation
    assert all(0 <= seconds < ended - start for seconds in left.values())
    assert meter(trainer).seconds_left(20) < 0.1  # nothing is left


_HOLD = """
import sys, torch
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import tiny_run
from lightning.pytorch import Callback
from scratchlm.training.run_log import read_metrics
class Holds(Callback):  # 200 MB during the steps from the fourth on
    def on_train_batch_start(self, trainer, *args, **kwargs):
        self.held = torch.ones(50_000_000) if trainer.global_step >= 3 else None
    def on_train_batch_end(self, *args, **kwargs):
        self.held = None
folder = Path(sys.argv[2])
trainer = tiny_run.tiny_trainer(folder, callbacks=[Holds()], max_steps=6)
trainer.fit(tiny_run.tiny_task(), tiny_run.TinyData())
meter = next(callback for callback in trainer.callbacks if isinstance(callback, tiny_run.Throughput))
print(meter.most_memory_bytes, *(line["throughput/memory_bytes"] for line in read_metrics(folder)))
"""


def test_memory_is_what_a_step_holds(run_alone, tmp_path):
    most, *memory = run_alone(_HOLD, str(Path(__file__).parent), str(tmp_path))
    assert memory[4] - memory[1] == pytest.approx(200e6, rel=0.2)
    assert most == max(memory)


def test_two_processes_count_the_tokens_of_both(run_tiny, tmp_path):
    done = run_tiny(tmp_path, "--devices", "2", "--micro", "2", "--steps", "12", "--step-seconds", str(STEP_SECONDS))
    assert done.returncode == 0, done.stderr
    lines = read_metrics(tmp_path)
    assert len(lines) == 12
    rates = [line["throughput/tokens_per_second"] for line in lines[1:]]
    assert max(rates) > 0.6 * 128 / STEP_SECONDS  # of one process they would be half as many
    assert statistics.median(rates) < 128 / STEP_SECONDS
    assert all(0 <= line["throughput/data_wait_fraction"] < 1 for line in lines[1:])
    assert all(line["throughput/memory_bytes"] > 1e7 for line in lines)


def test_a_step_that_does_not_log_waits_for_no_device(tiny, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(device, "wait_for", waited.append)
    fit(tiny, tmp_path, max_steps=9, log_every_n_steps=3, limit_val_batches=0)
    assert len(waited) == 1  # after the first step


def test_the_guide_to_the_panels_names_every_figure(tiny, tmp_path):
    fit(tiny, tmp_path, max_steps=2, limit_val_batches=0)
    guide = (Path(__file__).parents[2] / "docs" / "wandb.md").read_text(encoding="utf-8")
    for name in read_metrics(tmp_path)[-1]:
        assert f"`{name}`" in guide, name
