"""What watches a training from beside it: summary, progress, throughput, samples, the guard against divergence."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from tqdm import tqdm

from scratchlm.files.journal import Journal
from scratchlm.training.checkpoints import Checkpoints
from scratchlm.training.loggers import WandbRun, say
from scratchlm.training.task import NextTokenTask

SAMPLES_FILE = "samples.jsonl"

# Dense bf16 matrix products with float32 sums, in FLOP/s, from NVIDIA's data sheets (which print twice these figures
# where they count sparsity). The first name found in torch's name of the device counts.
_PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}

_SMOOTHING = 0.9  # share that a new loss leaves to the earlier ones; chosen, not tuned
_ALARMING = 3.0  # times the lowest smoothed loss; chosen, not tuned


def _task(module: LightningModule) -> NextTokenTask:
    assert isinstance(module, NextTokenTask)
    return module


class Summary(Callback):
    """Says at the start what will be trained, on what, and for how long; and shows W&B the corpus card."""

    _started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the summary."""
        self._started = True
        task = _task(pl_module)
        say("\n".join(f"{name:<16}{value}" for name, value in self.lines(trainer, task).items()))
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun) and (rows := _card_rows(task.corpus.get("card", {}))):
                columns = list(rows[0])
                logger.log_rows("corpus/card", columns, [list(row.values()) for row in rows], trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so where the run was complete to begin with."""
        if not self._started:
            step, steps = f"{trainer.global_step:,}", f"{trainer.max_steps:,}"
            say(f"step {step} of {steps} is done already: nothing to train. Raise trainer.max_steps to go on.")

    def lines(self, trainer: Trainer, task: NextTokenTask) -> dict[str, str]:
        """The summary, by what each line says."""
        gpt, settings = task.gpt, task.gpt.settings
        sequences, context = task.corpus["global_batch_size"], gpt.context_length
        micro = sequences // (trainer.accumulate_grad_batches * trainer.world_size)
        autocast = str(trainer.precision) == "bf16-mixed"
        tokens = trainer.max_steps * task.tokens_per_step
        done = f", going on after step {trainer.global_step:,}" if trainer.global_step else ""
        return {
            "parameters": f"{gpt.n_parameters:,}",
            "shape": f"{settings['n_layers']} layers, d_model {settings['d_model']:,}, {settings['n_heads']} heads, "
            f"d_ff {settings['d_ff']:,} ({settings['feed_forward']}), context {context:,}, "
            f"vocabulary {settings['vocab_size']:,}, {'tied' if settings['tied_head'] else 'own'} head",
            "FLOPs a token": f"{gpt.flops_per_token(context):,} (forward and backward)",
            "tokens a step": f"{task.tokens_per_step:,} ({sequences:,} sequences of {context:,}: {micro} at once "
            f"x {trainer.accumulate_grad_batches} in a row x {trainer.world_size} devices)",
            "steps": f"{trainer.max_steps:,} ({tokens:,} tokens, {tokens / gpt.n_parameters:.3g} a parameter){done}",
            "device": f"{_device_name(task.device)}, {trainer.precision}",
            "memory": f"{gpt.training_bytes(micro, autocast) / 1e9:.2f} GB for training, computed, on each device",
        }


class Progress(ProgressBar):
    """A bar with loss, tokens a second and time left; plain lines at each log interval where stderr is no terminal."""

    def __init__(self) -> None:
        """Looks whether stderr is a terminal."""
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._eval_bar: tqdm[Any] | None = None
        self._mark = (0, 0.0)  # step and time of the last line
        self._seconds_per_step: float | None = None  # smoothed

    def enable(self) -> None:
        """Shows progress (the default)."""
        self._enabled = True

    def disable(self) -> None:
        """Shows nothing; Lightning does so on all ranks but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar, at the step resumed from."""
        self._mark = (trainer.global_step, time.monotonic())
        if self._enabled and sys.stderr.isatty():
            n = _task(pl_module).tokens_per_step
            total, initial = trainer.max_steps * n, trainer.global_step * n
            self._bar = tqdm(
                desc="training", total=total, initial=initial, unit=" tokens", unit_scale=True, dynamic_ncols=True
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar at each step; says the loss at a step that logs."""
        task = _task(pl_module)
        if self._bar is not None and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            if task.step_metrics:
                loss = f"{task.step_metrics['train/loss']:.4f}"
                self._bar.set_postfix(step=trainer.global_step, loss=loss, refresh=False)
            self._bar.update(task.tokens_per_step)
        elif self._bar is None and self._enabled and task.step_metrics:
            self._say_line(trainer, task)

    def _say_line(self, trainer: Trainer, task: NextTokenTask) -> None:
        step, now = trainer.global_step, time.monotonic()
        seconds_per_step = (now - self._mark[1]) / max(1, step - self._mark[0])
        earlier = seconds_per_step if self._seconds_per_step is None else self._seconds_per_step
        self._seconds_per_step = 0.7 * earlier + 0.3 * seconds_per_step
        left = tqdm.format_interval(self._seconds_per_step * (trainer.max_steps - step))
        say(
            f"step {step:,}/{trainer.max_steps:,}  loss {task.step_metrics['train/loss']:.4f}  "
            f"{task.tokens_per_step / max(seconds_per_step, 1e-9):,.0f} tokens/s  {left} left"
        )
        self._mark = (step, now)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens a bar for the batches to score."""
        self._open_eval(sum(trainer.num_val_batches), "validation")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens a bar for the batches to score."""
        self._open_eval(sum(trainer.num_test_batches), "test")

    def _open_eval(self, total: float, name: str) -> None:
        if self._enabled and sys.stderr.isatty():
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
            shown = [f"{name} {float(scores[name]):.4f}" for name in _SHOWN if name in scores]
            say(f"step {trainer.global_step:,}  " + "  ".join(shown))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._close_eval()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bars, so that the error stands on a line of its own."""
        self.on_train_end(trainer, pl_module)
        self._close_eval()

    def _close_eval(self) -> None:
        if self._eval_bar is not None:
            self._eval_bar.close()
            self._eval_bar = None


_SHOWN = ("val/loss", "val/perplexity", "val/bits_per_byte")


class Throughput(Callback):
    """Tokens a second, share of the device's peak (MFU) where that is known, share of the time spent waiting for data.

    Validation, samples and the writing of checkpoints do not count.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks."""
        self._peak = _peak_flops(pl_module.device, str(trainer.precision))
        self._restart(trainer)
        self._batch_ended = time.monotonic()
        self._paused = False

    def _restart(self, trainer: Trainer) -> None:
        self._step = trainer.global_step
        self._busy_seconds = self._wait_seconds = 0.0
        self._saving_seconds = _saving_seconds(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves out the time until the next batch."""
        self._paused = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Takes the time since the last batch as waiting for this one."""
        self._batch_started = time.monotonic()
        if not self._paused:
            self._wait_seconds += self._batch_started - self._batch_ended
        self._paused = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the time since the batch's start as work; adds to what a step logs, which has waited for the device."""
        self._batch_ended = time.monotonic()
        self._busy_seconds += self._batch_ended - self._batch_started
        task = _task(pl_module)
        if task.step_metrics:
            task.step_metrics |= self.measure(trainer, task)
            self._restart(trainer)

    def measure(self, trainer: Trainer, task: NextTokenTask) -> dict[str, float]:
        """The figures since the last step that logged."""
        busy = self._busy_seconds - (_saving_seconds(trainer) - self._saving_seconds)
        seconds = max(busy + self._wait_seconds, 1e-9)
        tokens_per_second = (trainer.global_step - self._step) * task.tokens_per_step / seconds
        metrics = {
            "throughput/tokens_per_second": tokens_per_second,
            "throughput/data_wait_fraction": self._wait_seconds / seconds,
        }
        if self._peak is not None:
            flops = tokens_per_second * task.gpt.flops_per_token(task.gpt.context_length)
            metrics["throughput/mfu"] = flops / (self._peak * trainer.world_size)
        return metrics


class Samples(Callback):
    """Completes the task's prompts at each validation: into samples.jsonl, and W&B as a table."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the prompts that the tokenizer can spell, and says which it cannot."""
        self._journal = Journal(Path(trainer.default_root_dir) / SAMPLES_FILE)
        task = _task(pl_module)
        unknown = {prompt: task.tokenizer.unknown_characters(prompt) for prompt in task.sample_prompts}
        self._prompts = [prompt for prompt, characters in unknown.items() if not characters]
        if left_out := [repr(prompt) for prompt, characters in unknown.items() if characters]:
            say(f"model.sample_prompts: the tokenizer cannot spell {', '.join(left_out)}: no samples of that.")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Completes each prompt; every validation draws with the same seeds."""
        task, step = _task(pl_module), trainer.global_step
        if trainer.state.fn != "fit" or trainer.sanity_checking or not (trainer.is_global_zero or task.is_sharded):
            return
        # In float32: autocast would round all weights anew for each token, which costs more than it saves.
        completions = [task.complete(prompt, seed) for seed, prompt in enumerate(self._prompts)]
        if not trainer.is_global_zero:
            return
        tokens = step * task.tokens_per_step
        rows = list(zip(self._prompts, completions, strict=True))
        for prompt, completion in rows:
            self._journal.append({"step": step, "tokens": tokens, "prompt": prompt, "completion": completion})
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                columns = ["step", "tokens", "prompt", "completion"]
                logger.log_rows("samples/completions", columns, [[step, tokens, *row] for row in rows], step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the file."""
        self._journal.close()


class DivergenceGuard(Callback):
    """Stops at a loss or gradient that is no finite number; warns once of a smoothed loss three times its lowest.

    A device that works ahead is asked at a step that logs, which waits for it anyway; a CPU at each step.
    """

    def __init__(self) -> None:
        """Starts with no loss seen."""
        self._smoothed: float | None = None
        self._lowest = float("inf")
        self._warned = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the step.

        Raises:
            BrokenState: The loss or its gradient is not finite.
        """
        task = _task(pl_module)
        if task.step_metrics or task.device.type == "cpu":
            task.require_finite()
        if task.step_metrics:
            self.watch(task.step_metrics["train/loss"], trainer.global_step, task.learning_rate)

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

    def state_dict(self) -> dict[str, Any]:
        """What has been seen, so that a resumed run goes on from it."""
        return {"smoothed": self._smoothed, "lowest": self._lowest, "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what had been seen from a checkpoint."""
        self._smoothed, self._lowest = state_dict["smoothed"], state_dict["lowest"]
        self._warned = state_dict["warned"]


def _saving_seconds(trainer: Trainer) -> float:
    return sum(c.saving_seconds for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def _peak_flops(device: torch.device, precision: str) -> float | None:
    if device.type != "cuda" or not precision.startswith("bf16"):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAK_FLOPS.items() if known in name), None)


def _card_rows(card: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a source, one column for each fact that every source has."""
    sources = card.get("sources", [])
    shared = [key for key in (sources[0] if sources else {}) if all(key in facts for facts in sources)]
    return [{key: _cell(facts[key]) for key in shared} for facts in sources]


def _cell(fact: Any) -> str | float:
    """A column of a W&B table has one type: numbers stay, the rest is text."""
    is_number = isinstance(fact, int | float) and not isinstance(fact, bool)
    return fact if is_number else "" if fact is None else str(fact)
