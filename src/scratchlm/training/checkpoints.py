"""Checkpoints on disk: written whole, pruned, and found again."""

import math
import re
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from scratchlm.errors import BadValue, BrokenState, UserError
from scratchlm.files.whole import remove_leftovers, require_space, told_if_unwritable, whole_file
from scratchlm.model.checkpoint import load, read, verify
from scratchlm.training.loggers import say
from scratchlm.training.task import task_of

FOLDER = "checkpoints"  # in the run folder
BEST = "best.ckpt"
_STEP_NAME = re.compile(r"step-(\d{8,})\.ckpt")


class WholeCheckpointIO(CheckpointIO):
    """Streams a checkpoint to a file that is there whole or not at all, and loads nothing but plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint without a second copy in memory, and reads it back before it takes its name.

        Raises:
            BrokenState: The disk is full or broken, or the folder cannot be written or its parent is gone; what stood
                at `path` is untouched.
        """
        path = Path(path)
        if not path.parent.parent.is_dir():
            raise BrokenState(
                f"{path}: cannot be written, for {path.parent.parent} is gone: removed, renamed or unmounted while the "
                "run went on. Put it back, and go on by --ckpt_path last."
            )
        if not path.parent.is_dir():
            say(f"{path.parent}: is gone, and with it the checkpoints so far; it is made anew")
        require_space(path, sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(checkpoint)}.values()))
        with whole_file(path, check=partial(_check_written, path)) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch's writer hides the error of the disk behind a complaint about its own position.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint that `verify` finds whole, never running code from it.

        Raises:
            MissingFile: There is none.
            BadValue: It holds code, or names a class to be made.
            BrokenState: It is damaged.
        """
        checkpoint: dict[str, Any] = load(path, map_location or "cpu")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes the file if it is there."""
        Path(path).unlink(missing_ok=True)


def _check_written(path: Path, temporary: Path) -> None:
    try:
        verify(temporary)
    except BrokenState as error:
        raise BrokenState(
            f"{path}: what was just written of it ({temporary.stat().st_size:,} bytes) does not read back the same, so "
            "the disk or the memory of this machine is failing. The checkpoints before it are as they were: go on from "
            "them, better on another machine, by --ckpt_path last."
        ) from error


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(inner)


class Checkpoints(Checkpoint):
    """Saves every so many steps, at the end, and whenever the validation loss is the best so far."""

    def __init__(self, every_steps: int = 250, keep: int = 2) -> None:
        """Saves into `checkpoints` in the run folder: step-00000250.ckpt and so on, and best.ckpt.

        Args:
            every_steps: Optimizer steps from one periodic checkpoint to the next; the last step is saved in any case.
            keep: Periodic checkpoints that stay; the older ones are removed. Two, so that a damaged one has another
                behind it.

        Raises:
            BadValue: Either is below 1.
        """
        for name, value in (("every_steps", every_steps), ("keep", keep)):
            if value < 1:
                raise BadValue(f"checkpoint.{name}={value}: must be 1 or above.")
        self.every_steps = every_steps
        self.keep = keep
        self.best = math.inf  # lowest validation loss so far
        self.saving_seconds = 0.0  # spent between two batches of training, so that Throughput can leave it out
        self._saved_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the folder, and removes what a killed writer left there."""
        self.folder = Path(trainer.default_root_dir) / FOLDER
        if stage == "fit" and trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            with told_if_unwritable(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the step resumed from as saved; a best one of a later step is set aside until it is made again."""
        self._saved_step = trainer.global_step
        best = self.folder / BEST
        if not (trainer.is_global_zero and trainer.global_step and best.exists()):
            return
        try:
            step = read(best).step
        except UserError as error:
            say(f"{error} The next validation makes a new one.")
            self.best = math.inf
        else:
            if step > trainer.global_step:
                best.rename(self._best_of(step))
                say(f"{best}: of step {step:,}, after the one gone back to; it is now {self._best_of(step).name}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves the step before this batch: later than its own end, so that a validation due at that step is done."""
        is_boundary = batch_idx % trainer.accumulate_grad_batches == 0
        if is_boundary and trainer.global_step % self.every_steps == 0 and trainer.global_step != self._saved_step:
            if task_of(pl_module).skipped_last_step:  # by ruined weights perhaps, which are not to oust good ones
                return
            start = time.monotonic()
            self.save_now(trainer, pl_module)
            self.saving_seconds += time.monotonic() - start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves best.ckpt where the validation loss is lower than ever."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        loss = float(trainer.callback_metrics["val/loss"])
        if not math.isfinite(loss):
            raise task_of(pl_module).divergence(
                f"the validation loss is no finite number at step {trainer.global_step:,}"
            )
        if not loss >= self.best:  # also where that is no number
            self.best = loss
            self._save(trainer, pl_module, self.folder / BEST)
            if trainer.is_global_zero and (aside := self._best_of(trainer.global_step)).exists():
                aside.unlink()

    def _best_of(self, step: int) -> Path:
        """Where the best checkpoint lies that a run has gone back behind: given up, or to come once more."""
        return self.folder / f"best-{step:08d}.ckpt"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last step."""
        self.save_now(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The best validation loss, so that a resumed run goes on from it."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best validation loss from a checkpoint."""
        self.best = state_dict["best"]

    def save_now(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the step just made, unless it is saved already; only at a boundary of optimizer steps.

        Raises:
            BrokenState: It cannot be written, or holds a number that is not finite.
        """
        step = trainer.global_step
        if step == self._saved_step:
            return
        self._save(trainer, pl_module, step_path(self.folder, step))
        self._saved_step = step
        if trainer.is_global_zero:
            self._prune(step)

    def _save(self, trainer: Trainer, pl_module: LightningModule, path: Path) -> None:
        task_of(pl_module).require_finite()
        if not getattr(trainer, "fast_dev_run", False):  # a rehearsal leaves nothing behind
            for logger in trainer.loggers:
                logger.save()  # so that no power cut leaves a checkpoint that is ahead of the metrics
            trainer.save_checkpoint(path, weights_only=False)

    def _prune(self, step: int) -> None:
        """Keeps the newest; those of later steps belong to a line that was given up when the run went back."""
        found = step_checkpoints(self.folder)
        kept = sorted((s for s in found if s <= step), reverse=True)[: self.keep]
        for other, path in found.items():
            if other not in kept:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:  # a folder, or not ours to remove: no reason to stop a training
                    say(f"{path}: cannot be removed ({error.strerror}); it stays")


def step_path(folder: Path, step: int) -> Path:
    """Where the periodic checkpoint of a step lies."""
    return folder / f"step-{step:08d}.ckpt"


def step_checkpoints(folder: str | Path) -> Mapping[int, Path]:
    """Periodic checkpoints in a folder by their step."""
    matches = ((_STEP_NAME.fullmatch(path.name), path) for path in Path(folder).glob("step-*.ckpt"))
    return {int(match[1]): path for match, path in matches if match}


def newest_whole(folder: str | Path, passed_over: dict[str, str] | None = None) -> Path | None:
    """The periodic checkpoint of the latest step whose bytes are sound, or best.ckpt where only that is later.

    It says which it passed over and why.

    Args:
        folder: The `checkpoints` folder of a run.
        passed_over: Takes the name of each damaged one and why.

    Returns:
        The path, or None where there is no periodic checkpoint at all.

    Raises:
        BrokenState: There are some, and all are damaged.
    """
    found = step_checkpoints(folder)
    for step in sorted(found, reverse=True):
        try:
            verify(found[step])
        except UserError as error:  # a folder, a link to nowhere, or damaged
            say(f"{error} Passed over.")
            if passed_over is not None:
                passed_over[found[step].name] = str(error)
        else:
            return found[step] if step == max(found) else _later_best(folder, step) or found[step]
    if not found:
        return None
    if best := _later_best(folder, 0):
        return best
    raise BrokenState(
        f"{folder}: every checkpoint in it is damaged. Start a new run in another trainer.default_root_dir."
    )


def _later_best(folder: str | Path, step: int) -> Path | None:
    best = Path(folder) / BEST
    try:
        found = read(best).step
    except UserError:
        return None
    if found <= step:
        return None
    say(f"{best}: is whole, and of step {found:,}.")
    return best
