"""Tokens a second, the share of the device's peak (MFU), the share of waiting for data, memory, and the time left."""

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from scratchlm.training import device
from scratchlm.training.checkpoints import Checkpoints
from scratchlm.training.pace import Pace, Pauses
from scratchlm.training.task import task_of


class Throughput(Callback):
    """Measures training: adds to what a step logs, and answers the progress bar.

    Left out of every rate: validation and samples, the writing of checkpoints, and the first step of the process, in
    which kernels are compiled and memory is first taken. Rates are of all devices together; memory and waiting for data
    are of the one where they are largest.
    """

    def __init__(self) -> None:
        """Starts with nothing measured."""
        self.most_memory_bytes = 0  # that a step that logged has seen so far
        self.data_wait_fraction: float | None = None  # of the time between the last two steps that logged
        self._pace = Pace()
        self._is_on = False
        self._paused_seconds = self._wait_seconds = 0.0
        self._paused_since: float | None = None
        self._logged = self._paced = (0, 0.0)  # step and clock of the last step that logged, and of what pace has seen

    @property
    def tokens_per_second(self) -> float | None:
        """Of the last minute or so; None before the second step is done."""
        seconds = self._pace.seconds_per_step
        return self._tokens_per_step / seconds if seconds else None

    @property
    def mfu(self) -> float | None:
        """Of the last minute or so; None before the second step is done."""
        seconds = self._pace.seconds_per_step
        return self._flops_per_step / seconds / self._peak_flops if seconds else None

    def seconds_left(self, step: int) -> float | None:
        """Until the run's last step, validation and checkpoint are done, judging by those seen in this process.

        Args:
            step: The step just made.
        """
        seconds = self._pace.seconds_per_step
        if seconds is None:
            return None
        steps = (self._max_steps - step) * seconds
        validations = self._validations.seconds_left(step, self._max_steps, self._steps_a_validation * seconds)
        return steps + validations + self._saves.seconds_left(step, self._max_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the device's peak where no table has it, and starts the clock."""
        task = task_of(pl_module)
        self._device = pl_module.device
        self._peak_flops = trainer.world_size * device.peak(self._device, str(trainer.precision)).flops_per_second
        self._tokens_per_step, self._max_steps = task.tokens_per_step, trainer.max_steps
        self._flops_per_step = task.tokens_per_step * task.gpt.flops_per_token(task.gpt.context_length)
        self._savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, Checkpoints)]
        self._saves = Pauses(self._savers[0].every_steps if self._savers else None)
        self._saving_seconds = self._seconds_saved()
        batches = trainer.val_check_batch
        self._validations = Pauses(batches / trainer.accumulate_grad_batches if batches else None)
        # A validation batch is as large as a micro-batch, and a forward pass a third of the arithmetic of training.
        self._steps_a_validation = sum(trainer.num_val_batches) / trainer.accumulate_grad_batches / 3
        self._log_steps: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by Lightning's connector
        self._memory = device.Memory(self._device)
        self._looks = (trainer.global_step + 1) % self._log_steps == 0
        self._pace = Pace()
        self._paused_seconds = 0.0
        self._paused_since = None
        self._first_step = trainer.global_step + 1
        self._start_over(trainer.global_step)
        self._time_fetching(trainer)
        self._is_on = True

    def _time_fetching(self, trainer: Trainer) -> None:
        """Times `next(batch)` alone, which Lightning has no hook around.

        Between two batches it also logs, moves the batch to the device and, with several devices, waits for all.
        """
        loop: Any = trainer.fit_loop.epoch_loop
        kind = type(loop)

        def starts() -> None:
            kind._on_before_fetch(loop)
            self._fetch_started = time.monotonic()
            self._end_validation(trainer.global_step)

        def ended() -> None:
            self._wait_seconds += time.monotonic() - self._fetch_started
            kind._on_after_fetch(loop)

        loop._on_before_fetch, loop._on_after_fetch = starts, ended

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock until the next batch is fetched."""
        if self._is_on:
            device.wait_for(self._device)  # what it still has to do belongs to the steps before
            self._paused_since = time.monotonic()

    def _end_validation(self, step: int) -> None:
        if self._paused_since is not None:
            seconds = time.monotonic() - self._paused_since
            self._paused_since = None
            self._paused_seconds += seconds
            self._validations.add(step, seconds)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Looks at the memory while all activations are there, in a step that will log."""
        if self._looks:
            self._memory.look()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Looks at the memory while all gradients are there, in a step that will log."""
        if self._looks:
            self._memory.look()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the time; adds to what a step logs, which has waited for the device."""
        task, step = task_of(pl_module), trainer.global_step
        self._leave_out_saving(step)
        if step == self._first_step and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            device.wait_for(self._device)
            self._start_over(step)
        elif step > self._paced[0] and (task.step_metrics or self._device.type == "cpu"):
            # A device that works ahead has surely done these steps only where it was waited for.
            now = self._clock()
            self._pace.add(step - self._paced[0], now - self._paced[1])
            self._paced = (step, now)
        if task.step_metrics:
            task.step_metrics |= {f"throughput/{name}": value for name, value in self._measure(trainer, step).items()}
        self._looks = (step + 1) % self._log_steps == 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes no more times."""
        self._end_validation(trainer.global_step)
        self._is_on = False

    def _measure(self, trainer: Trainer, step: int) -> dict[str, float]:
        """The figures since the last step that logged; the first step of a process has no rates."""
        now = self._clock()
        steps, seconds = step - self._logged[0], now - self._logged[1]
        largest: dict[str, float] = {"data_wait_fraction": self._wait_seconds / seconds if steps else 0.0}
        largest |= self._memory.take()
        if trainer.world_size > 1:
            of_this_rank = torch.tensor(list(largest.values()), dtype=torch.float64, device=self._device)
            of_all_ranks = trainer.strategy.reduce(of_this_rank, reduce_op="max")
            largest = dict(zip(largest, of_all_ranks.tolist(), strict=True))
        self.most_memory_bytes = max(self.most_memory_bytes, int(largest["memory_bytes"]))
        self._logged, self._wait_seconds = (step, now), 0.0
        if not steps:
            return {name: value for name, value in largest.items() if name != "data_wait_fraction"}
        self.data_wait_fraction = largest["data_wait_fraction"]
        return largest | {
            "tokens_per_second": steps * self._tokens_per_step / seconds,
            "mfu": steps * self._flops_per_step / seconds / self._peak_flops,
            "seconds_left": self.seconds_left(step) or 0.0,
        }

    def _start_over(self, step: int) -> None:
        self._logged = self._paced = (step, self._clock())
        self._wait_seconds = 0.0

    def _clock(self) -> float:
        """Seconds of training, counted from anywhere."""
        return time.monotonic() - self._paused_seconds

    def _leave_out_saving(self, step: int) -> None:
        """Checkpoints are written when a batch begins, and found out about when it has ended."""
        saved = self._seconds_saved()
        if saved > self._saving_seconds:
            every_steps = self._savers[0].every_steps
            self._saves.add(step // every_steps * every_steps, saved - self._saving_seconds)
            self._paused_seconds += saved - self._saving_seconds
            self._saving_seconds = saved

    def _seconds_saved(self) -> float:
        return sum(saver.saving_seconds for saver in self._savers)
