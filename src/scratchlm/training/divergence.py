"""The guard against a training that runs away, and the notes it takes: steps left out, losses far above the usual."""

import math
from collections import deque
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from scratchlm.model.loss import nats_of_each
from scratchlm.training.events import EVENTS_FILE, Events
from scratchlm.training.loggers import say
from scratchlm.training.task import NextTokenTask, task_of

# All chosen, not tuned.
_SMOOTHING = 0.9  # share that a new loss leaves to the earlier ones
_ALARMING = 3.0  # times the lowest smoothed loss
_RECENT = 128  # losses that tell how far one usually is from the smoothed loss before it
_FEWEST = 20  # of them, and from one spike noted to the next
_SPIKE_DEVIATIONS = 5.0  # above the smoothed loss, and
_SPIKE_NATS = 0.2
_DEVIATION = 1.4826  # standard deviations of normal numbers a median absolute deviation
_WORST = 8  # sequences noted of a spike


class Tracer(Protocol):
    """Answers which text a step saw."""

    def step(self, step: int) -> list[dict[str, Any]]:
        """One entry a sequence of the step's batch, plain values: its number, place and documents."""

    def ids(self, step: int) -> NDArray[np.uint16]:
        """The windows of the step's batch, (global batch, T + 1), in the same order."""


class DivergenceGuard(Callback):
    """Notes steps that were left out and stops after too many in a row; notes spikes; warns of a loss that stays up.

    A device that works ahead is asked at a step that logs, which waits for it anyway; a CPU at each step.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        """Starts with no loss seen.

        Args:
            tracer: Tells which documents were in a step's batch; without it, notes hold numbers only.
        """
        self._tracer = tracer
        self._task: NextTokenTask | None = None
        self._looked = 0  # the step up to which it is known which were left out
        self._skipped = self._in_a_row = 0
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._since_spike = 0  # losses
        self._smoothed: float | None = None
        self._lowest = float("inf")
        self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins after the step resumed from."""
        self._task, self._looked = task_of(pl_module), trainer.global_step
        self._events = Events(trainer.default_root_dir)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the step.

        Raises:
            BrokenState: Too many in a row had to be left out.
        """
        task = task_of(pl_module)
        if task.step_metrics or task.device.type == "cpu":
            self._look(task)
        if not task.step_metrics:
            return
        if self._skipped:
            task.step_metrics["train/skipped_steps"] = float(self._skipped)
        loss, step = task.step_metrics["train/loss"], trainer.global_step
        if math.isfinite(loss):
            if self.is_spike(loss):
                self._note_spike(task, step, loss)
            self.watch(loss, step, task.learning_rate)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets go of the task."""
        self._task = None

    def _look(self, task: NextTokenTask) -> None:
        """Counts and notes the steps left out since the last look."""
        if task.global_step == self._looked:
            return
        skipped = task.take_skipped(self._looked)
        for step in range(self._looked + 1, task.global_step + 1):
            self._in_a_row = self._in_a_row + 1 if step in skipped else 0
            if step in skipped:
                self._skipped += 1
                self._events.add("skipped", step, sequences=self._tracer.step(step) if self._tracer else [])
                say(
                    f"step {step:,}: its loss or gradient is no finite number, so it changed no weight; "
                    f"{self._skipped:,} such steps by now, {self._in_a_row} in a row. {EVENTS_FILE} has the documents."
                )
            if self._in_a_row == task.max_skipped_steps:
                raise task.divergence(
                    f"the loss or its gradient was no finite number at {self._in_a_row} steps in a row, the last "
                    f"step {step:,} (model.max_skipped_steps={task.max_skipped_steps})"
                )
        self._looked = task.global_step

    def watch(self, loss: float, step: int, learning_rate: float) -> None:
        """Smooths the loss, and warns where it has risen too far."""
        earlier = loss if self._smoothed is None else self._smoothed
        self._smoothed = _SMOOTHING * earlier + (1 - _SMOOTHING) * loss
        self._lowest = min(self._lowest, self._smoothed)
        if self._smoothed > _ALARMING * self._lowest and not self._warned:
            self._warned = True
            say(
                f"warning: model.learning_rate={learning_rate:g}: at step {step:,} the smoothed loss is "
                f"{self._smoothed:.2f}, after a lowest of {self._lowest:.2f}. If it stays there, go back to a "
                f"checkpoint with a third of the rate: --ckpt_path last --model.learning_rate {learning_rate / 3:.2g}"
            )

    def is_spike(self, loss: float) -> bool:
        """Whether a loss stands out from what led up to it; to be asked before `watch` smooths it in.

        Its distance from the smoothed loss is judged by the median absolute deviation of the recent distances, which
        neither a falling loss nor the spikes themselves move much.
        """
        if self._smoothed is None:
            return False
        distance, spike = loss - self._smoothed, False
        self._since_spike += 1
        if len(self._recent) >= _FEWEST and self._since_spike >= _FEWEST:
            usual = median(self._recent)
            deviation = _DEVIATION * median(abs(seen - usual) for seen in self._recent)
            spike = distance > max(_SPIKE_NATS, _SPIKE_DEVIATIONS * deviation)
        if spike:
            self._since_spike = 0
        self._recent.append(distance)
        return spike

    def _note_spike(self, task: NextTokenTask, step: int, loss: float) -> None:
        """Scores the step's batch once more, a sequence at a time, and notes the worst."""
        usual, worst = self._smoothed, []
        if self._tracer and (task.is_sharded or task.global_rank == 0):  # all must run a network that is cut
            ids = self._tracer.ids(step)
            nats = _nats_of_each_sequence(task, ids)
            entries = self._tracer.step(step)
            worst = [
                entries[i] | {"loss": nats[i], "text": task.tokenizer.decode(ids[i].tolist())}
                for i in sorted(range(len(nats)), key=lambda i: -nats[i])[:_WORST]
            ]
        self._events.add("spike", step, loss=loss, usual=usual, worst=worst)
        say(f"step {step:,}: loss {loss:.4f}, where {usual:.4f} is usual. {EVENTS_FILE} has the worst sequences.")

    def state_dict(self) -> dict[str, Any]:
        """What has been seen, so that a resumed run goes on from it."""
        if self._task is not None:
            self._look(self._task)
        return {
            "skipped": self._skipped,
            "in_a_row": self._in_a_row,
            "recent": list(self._recent),
            "since_spike": self._since_spike,
            "smoothed": self._smoothed,
            "lowest": self._lowest,
            "warned": self._warned,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what had been seen from a checkpoint."""
        self._skipped, self._in_a_row = state_dict.get("skipped", 0), state_dict.get("in_a_row", 0)
        self._recent = deque(state_dict.get("recent", []), maxlen=_RECENT)
        self._since_spike = state_dict.get("since_spike", 0)
        self._smoothed, self._lowest = state_dict["smoothed"], state_dict["lowest"]
        self._warned = state_dict["warned"]


def _nats_of_each_sequence(task: NextTokenTask, ids: NDArray[np.uint16]) -> list[float]:
    """Mean nats of each window, (B, T + 1), by the weights of now; draws no random number."""
    trainer, found = task.trainer, []
    at_once = len(ids) // (trainer.accumulate_grad_batches * trainer.world_size)
    task.gpt.eval()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        for i in range(0, len(ids), at_once):
            ids_BT = torch.from_numpy(ids[i : i + at_once].astype(np.int64)).to(task.device)
            nats_BT = nats_of_each(task.gpt.hidden(ids_BT[:, :-1]), task.gpt.head_VD, ids_BT[:, 1:])
            found += nats_BT.float().mean(dim=1).tolist()
    task.gpt.train()
    return found
