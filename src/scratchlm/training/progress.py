"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from scratchlm.training.loggers import say
from scratchlm.training.task import task_of
from scratchlm.training.throughput import Throughput

_SCORES = ("val/loss", "val/perplexity", "val/bits_per_byte")
_DRAWN_SECONDS = 0.5  # from one drawing of the bar to the next; chosen, not tuned
_BAR_COLUMNS = 12  # that the percentage and the narrowest bar take
_LEAST_FIRST = ("wait", "memory", "mfu", "step", "rate", "loss")  # what a narrow terminal goes without


class Progress(ProgressBar):
    """A bar with loss, speed, memory, waiting for data and time left; plain lines where stderr is no terminal.

    Speed and time left go by the last minute or so, memory is the most so far, waiting for data that of the last
    interval of logging; metrics.jsonl has each interval's own.
    """

    def __init__(self, throughput: Throughput | None = None) -> None:
        """Looks whether stderr is a terminal.

        Args:
            throughput: Knows the speed, the memory and the time left; it stands before this one in the Trainer's list.
        """
        super().__init__()
        self._throughput = throughput
        self._enabled = True
        self._bar: _TrainingBar | None = None
        self._eval_bar: tqdm[Any] | None = None
        self._drawn = 0.0
        self._loss: float | None = None
        self._started = 0.0
        self._took: float | None = None  # seconds, of a training that is done

    def enable(self) -> None:
        """Shows progress (the default)."""
        self._enabled = True

    def disable(self) -> None:
        """Shows nothing; Lightning does so on all ranks but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar, at the step resumed from."""
        self._loss, self._took, self._started = None, None, time.monotonic()
        if self._enabled and sys.stderr.isatty():
            self._bar = _TrainingBar(trainer.global_step, trainer.max_steps, self)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar; says a line at a step that logs where there is none."""
        metrics = task_of(pl_module).step_metrics
        if metrics and math.isfinite(metrics["train/loss"]):
            self._loss = metrics["train/loss"]
        if self._bar is not None:
            self._bar.n = trainer.global_step
            if time.monotonic() - self._drawn >= _DRAWN_SECONDS or self._bar.n == trainer.max_steps:
                self._bar.refresh()
                self._drawn = time.monotonic()
        elif self._enabled and metrics:
            say("step " + "  ".join(self.figures(trainer.global_step, trainer.max_steps).values()))

    def figures(self, step: int, max_steps: int) -> dict[str, str]:
        """What is known, in the order in which it is shown.

        Args:
            step: The step just made.
            max_steps: The run's last.
        """
        shown = {"step": f"{step:,}/{max_steps:,}"}
        if self._loss is not None:
            shown["loss"] = f"loss {self._loss:.4f}"
        meter = self._throughput
        if meter is None:
            return shown
        if meter.tokens_per_second is not None:
            shown["rate"] = f"{meter.tokens_per_second:,.0f} tokens/s"
        if meter.mfu is not None:
            shown["mfu"] = f"MFU {meter.mfu:.1%}"
        if meter.most_memory_bytes:
            shown["memory"] = f"{meter.most_memory_bytes / 1e9:.3g} GB"
        if meter.data_wait_fraction is not None:
            shown["wait"] = f"data wait {meter.data_wait_fraction:.0%}"
        left = meter.seconds_left(step)
        if self._took is not None:
            shown["left"] = f"took {_clock(self._took)}"
        elif left is not None:
            shown["left"] = f"{_clock(left)} left"
        return shown

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens a bar for the batches to score."""
        self._open_eval(sum(trainer.num_val_batches), "validation")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens a bar for the batches to score."""
        self._open_eval(sum(trainer.num_test_batches), "test")

    def _open_eval(self, total: float, name: str) -> None:
        if self._enabled and sys.stderr.isatty():
            if self._bar is not None:
                self._bar.refresh()  # it stands still for a while, so it stands at the step made
            self._eval_bar = tqdm(total=total, desc=name, unit=" batches", leave=False, dynamic_ncols=True)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        if self._eval_bar is not None:
            self._eval_bar.update()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        self.on_validation_batch_end()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar; says the scores where they come amid a training."""
        self._close_eval()
        scores = trainer.callback_metrics
        if self._enabled and trainer.state.fn == "fit":
            shown = [f"{name} {float(scores[name]):.4f}" for name in _SCORES if name in scores]
            say(f"step {trainer.global_step:,}  " + "  ".join(shown))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._close_eval()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar, which says how long this process took where the run is done."""
        if self._bar is not None:
            if trainer.global_step == trainer.max_steps:
                self._took = time.monotonic() - self._started
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bars, so that the error stands on a line of its own."""
        self.on_train_end(trainer, pl_module)
        self._close_eval()

    def _close_eval(self) -> None:
        if self._eval_bar is not None:
            self._eval_bar.close()
            self._eval_bar = None


class _TrainingBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar of steps whose figures are asked for when it is drawn, as many as the terminal is wide."""

    def __init__(self, step: int, max_steps: int, progress: Progress) -> None:
        self._progress = progress
        super().__init__(
            total=max_steps, initial=step, dynamic_ncols=True, bar_format="{percentage:3.0f}%|{bar}| {desc}"
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = super().format_dict
        columns = (values["ncols"] or 80) - _BAR_COLUMNS
        return values | {"prefix": fitted(self._progress.figures(self.n, self.total), columns)}


def fitted(figures: dict[str, str], columns: int) -> str:
    """As many figures as fit; the time left goes last.

    Args:
        figures: Their texts, in the order in which they are shown.
        columns: Width to fit into.
    """
    left_out: set[str] = set()
    for name in (*_LEAST_FIRST, ""):
        text = "  ".join(shown for key, shown in figures.items() if key not in left_out)
        if len(text) <= columns:
            return text
        left_out.add(name)
    return text


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hour}:{minute:02}:{second:02}"
