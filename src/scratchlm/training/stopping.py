"""Stopping when told to: at the next step's end, saved, all processes together."""

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from scratchlm.training.checkpoints import Checkpoints
from scratchlm.training.events import Events
from scratchlm.training.loggers import say
from scratchlm.training.task import task_of

# SIGHUP comes when a terminal is closed or its line is cut; SIGUSR1 is what SLURM sends ahead of the end of a job that
# asks for it: sbatch --signal=USR1@120.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Stopped(SystemExit):
    """The end of a run that was told to stop; the exit status is 128 and the signal's number, as shells have it."""

    def __init__(self, number: int, saved: bool = False) -> None:
        """Ends the process.

        Args:
            number: Of the signal.
            saved: Whether the state of the last step is in a checkpoint.
        """
        super().__init__(128 + number)
        self.signal, self.saved = signal.Signals(number), saved


class Stopping(Callback):
    """SIGTERM, SIGINT, SIGHUP and SIGUSR1 set a flag; at the next boundary of optimizer steps all is saved.

    Before the first batch there is nothing to save, and the process ends at once; a second Ctrl-C ends it at once
    whenever it comes. Amid a validation the state is that of a boundary: it is saved there, and the validation is made
    anew on resume. Lightning 2.6 saves amid the micro-batches of a step, exits with 0, and hangs where only one of
    several processes is told.
    """

    def __init__(self) -> None:
        """Starts with no signal."""
        self._told = 0
        self._was_interrupted = False
        self._is_training = False
        self._group: Any = None
        self._end_children: Callable[[], None] = _nothing

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals from Lightning, which gives them back when the Trainer ends."""
        self._told, self._was_interrupted, self._is_training = 0, False, False
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        self._events = Events(trainer.default_root_dir)
        self._savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]
        if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
            self._end_children = lambda: launcher.kill(signal.SIGKILL)
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._tell)
        if trainer.received_sigterm:
            raise Stopped(signal.SIGTERM)
        if trainer.world_size > 1:
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
            # Asked on the processors, so that none has to wait for its device.
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stops at a boundary of optimizer steps.

        Raises:
            Stopped: One of the processes was told to.
        """
        self._is_training = True
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_told(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds how many batches all processes will score."""
        self._n_common = self._agreed(int(sum(trainer.num_val_batches)), torch.distributed.ReduceOp.MIN)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stops amid a validation, but for the last: behind it only the last checkpoint is to come.

        Raises:
            Stopped: One of the processes was told to.
        """
        if self._is_training and not trainer.should_stop and batch_idx < self._n_common:
            self._stop_if_told(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the end, now that the last checkpoint is there; a run that was complete to begin with has its own."""
        rehearses = getattr(trainer, "fast_dev_run", False)
        if self._is_training and trainer.global_step == trainer.max_steps and not rehearses:
            self._events.add("end", trainer.global_step)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._was_interrupted:
            _say_now("stopped at once; --ckpt_path last goes on from the last checkpoint")
            self._end_children()
            os._exit(128 + number)
        self._told = number
        self._was_interrupted |= number == signal.SIGINT
        if number == signal.SIGHUP:  # what is said from now on would fail
            for stream in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        if not self._is_training:
            raise Stopped(number)
        name = signal.Signals(number).name
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        _say_now(f"{name}: stopping when this step is done and saved{again}")

    def _stop_if_told(self, trainer: Trainer, pl_module: LightningModule) -> None:
        number = self._agreed(self._told, torch.distributed.ReduceOp.MAX)
        if not number:
            return
        task = task_of(pl_module)
        task.validation_owed = bool(trainer.validating)
        for saver in self._savers:
            saver.save_now(trainer, pl_module)
        step = trainer.global_step
        self._events.add("stop", step, signal=signal.Signals(number).name, saved=bool(self._savers))
        if number == signal.SIGUSR1 and trainer.is_global_zero:
            _requeue()
        raise Stopped(number, saved=bool(self._savers))

    def _agreed(self, number: int, how: Any) -> int:
        """One number for all processes."""
        if self._group is None:
            return number
        told = torch.tensor(number)
        torch.distributed.all_reduce(told, how, group=self._group)
        return int(told)


def _requeue() -> None:
    """Has SLURM run the job once more, as Lightning does."""
    if not SLURMEnvironment.detect():
        return
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID", "")
    if array:
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    try:
        status = subprocess.run(["scontrol", "requeue", job], check=False, stdout=subprocess.DEVNULL).returncode
    except OSError as error:
        say(f"scontrol requeue {job}: {error.strerror}. Queue the job again yourself.")
    else:
        say(f"scontrol requeue {job}: " + ("done" if not status else f"failed with status {status}"))


@rank_zero_only
def _say_now(text: str) -> None:
    """As `say`, but fit for a signal's handler: amid another line Python's own files refuse a second."""
    with suppress(OSError):
        os.write(2, f"\nscratchlm: {text}\n".encode())


def _nothing() -> None: ...
