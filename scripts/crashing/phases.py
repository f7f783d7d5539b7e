"""Where a training stands at this moment, told through a shared file to the process that means to kill it."""

import time
import zlib
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback

from scratchlm.files.journal import Journal

SEEN_FILE = "seen.jsonl"  # in the run folder: a CRC of each micro-batch


class Phase(IntEnum):
    """What a training is doing."""

    START = 0
    STEP = 1
    VALIDATION = 2  # samples included
    SAVE = 3
    END = 4


class Place:
    """The moment of a training: whole numbers of 8 bytes, each written at once, in a file that both processes map."""

    def __init__(self, path: str | Path) -> None:
        """Maps the file; one that is not there is made, for a process that is about to start."""
        is_new = not Path(path).exists()
        if is_new:
            Path(path).write_bytes(bytes(8 * (5 + 2 * len(Phase))))
        fields = np.memmap(path, np.int64, "r+")
        self._now, self.counts, self.nanoseconds = np.split(fields, (5, 5 + len(Phase)))
        if is_new:
            self.resumed_from, self.counts[Phase.START] = -1, 1
            self._now[4] = time.monotonic_ns()

    @property
    def phase(self) -> Phase:
        """What the training is doing, or did last."""
        return Phase(int(self._now[0]))

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self._now[1])

    @step.setter
    def step(self, step: int) -> None:
        self._now[1] = step

    @property
    def resumed_from(self) -> int:
        """The step that the process went on from; -1 while it has not."""
        return int(self._now[2])

    @resumed_from.setter
    def resumed_from(self, step: int) -> None:
        self._now[2] = step

    @property
    def first_step_at(self) -> int:
        """The monotonic clock, in nanoseconds, when the first new step was done; 0 before."""
        return int(self._now[3])

    @first_step_at.setter
    def first_step_at(self, nanoseconds: int) -> None:
        self._now[3] = nanoseconds

    def enter(self, phase: Phase, again: bool = False) -> None:
        """Tells that another phase begins, or, with `again`, goes on behind one that came between."""
        now = time.monotonic_ns()
        self.nanoseconds[self.phase] += now - self._now[4]
        self._now[4] = now
        self._now[0] = phase
        self.counts[phase] += not again


class Phases(Callback):
    """Keeps a `Place` up to date, and a journal of what each micro-batch held."""

    def __init__(self, place: str) -> None:
        """Maps the place.

        Args:
            place: File of the `Place`, made by the process that looks on.
        """
        self.place = Place(place)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Notes what the run goes on from, and has each save tell when it begins and ends."""
        self.seen = Journal(Path(trainer.default_root_dir) / SEEN_FILE)
        self.place.step = self.place.resumed_from = trainer.global_step
        writer = trainer.strategy.checkpoint_io
        save = writer.save_checkpoint

        def told(*arguments: Any, **keywords: Any) -> None:
            before = self.place.phase
            self.place.enter(Phase.SAVE)
            save(*arguments, **keywords)
            self.place.enter(before, again=True)

        writer.save_checkpoint = told

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A step begins with its first micro-batch."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.place.enter(Phase.STEP)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Notes what was learned from, and the step where it is done."""
        crc = zlib.crc32(batch["inputs_BT"].cpu().numpy().tobytes())
        self.seen.append({"batch": batch_idx, "crc": crc})
        self.place.step = trainer.global_step
        if trainer.global_step > self.place.resumed_from and not self.place.first_step_at:
            self.place.first_step_at = time.monotonic_ns()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """It ends where the next step begins."""
        self.place.enter(Phase.VALIDATION)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """All is done but the way out."""
        self.place.enter(Phase.END)
