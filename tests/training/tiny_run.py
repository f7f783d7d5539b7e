"""A training of seconds, run as a script so that a test can kill it, or imported for its parts.

python tiny_run.py FOLDER [--precision P] [--devices N] [--micro M] [--resume PATH|last] [--kill WHERE:N] ...
"""

import argparse
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from scratchlm.model.gpt import GPT
from scratchlm.text.tokenizer import train
from scratchlm.training.checkpoints import FOLDER, Checkpoints, WholeCheckpointIO, newest_whole
from scratchlm.training.divergence import DivergenceGuard
from scratchlm.training.loggers import MetricsLogger
from scratchlm.training.progress import Progress
from scratchlm.training.samples import Samples
from scratchlm.training.stopping import Stopping
from scratchlm.training.summary import Summary
from scratchlm.training.task import NextTokenTask
from scratchlm.training.throughput import Throughput

TEXT = "the cat sat on a mat and saw the dog. once upon a time a small bird sang. " * 60
TOKENIZER = train("char", [TEXT], vocab_size=300)
CONTEXT, GLOBAL_BATCH = 16, 8
SOURCES = ["tales", "facts"]
FACTS: dict[str, Any] = {
    "vocab_size": TOKENIZER.vocab_size,
    "tokenizer": TOKENIZER.to_json(),
    "bytes_of_ids": TOKENIZER.bytes_of_ids(),
    "sources": SOURCES,
    "card": {
        "sources": [
            {"name": "tales", "uri": "tales.txt", "tokens": {"train": 3000}, "share": 0.6},
            {"name": "facts", "uri": "facts.txt", "tokens": {"train": 2000}, "share": 0.4},
        ]
    },
    "context_length": CONTEXT,
    "global_batch_size": GLOBAL_BATCH,
}


class Sequences(IterableDataset[dict[str, Tensor]]):
    """Endless micro-batches: which sequences they hold follows from how many were consumed before."""

    def __init__(self, data: "TinyData") -> None:
        self.data = data

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        trainer, micro = self.data.trainer, self.data.micro
        assert trainer is not None
        sequence = self.data.sequences + trainer.global_rank * micro
        while True:
            starts = [(sequence + row) * 7919 % (len(self.data.ids) - CONTEXT - 1) for row in range(micro)]
            windows = torch.stack([self.data.ids[start : start + CONTEXT + 1] for start in starts])
            yield {"inputs_BT": windows[:, :-1], "targets_BT": windows[:, 1:]}
            sequence += micro * trainer.world_size


class TinyData(LightningDataModule):
    """The batches and the facts that training expects of a data module."""

    def __init__(self, micro: int = 4) -> None:
        super().__init__()
        self.micro = micro
        self.sequences = 0
        self.ids = torch.tensor(TOKENIZER.encode(TEXT))

    def train_dataloader(self) -> Any:
        return DataLoader(Sequences(self), batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> Any:
        assert self.trainer is not None
        batches = []
        for i in range(self.trainer.global_rank, 7, self.trainer.world_size):
            window = self.ids[i * 50 : i * 50 + CONTEXT + 1]
            targets = window[1:].clone()
            targets[CONTEXT - i :] = -100
            source = torch.full((1, CONTEXT), i % 2, dtype=torch.uint8)
            batches.append({"inputs_BT": window[None, :-1], "targets_BT": targets[None], "source_BT": source})
        return DataLoader(batches, batch_size=None, generator=torch.Generator())

    test_dataloader = val_dataloader

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"sequences": self.trainer.global_step * GLOBAL_BATCH}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sequences = state_dict["sequences"]


class Bomb:
    """Kills the process that pickles it: in the middle of writing a checkpoint."""

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class Kill(Callback):
    """A signal at a batch's end, inside the validation after a step, or while a step's checkpoint is written.

    SIGKILL amid the writing, any other as it begins.
    """

    def __init__(self, where: str, number: int, by: signal.Signals = signal.SIGKILL, rank: int = 0) -> None:
        self.where, self.number, self.by, self.rank = where, number, by, rank
        self._has_killed = False

    def _kill(self, trainer: Any) -> None:
        if trainer.global_rank == self.rank and not self._has_killed:
            self._has_killed = True
            os.kill(os.getpid(), self.by)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.where == "batch" and batch_idx == self.number:
            self._kill(trainer)

    def on_validation_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if self.where == "validation" and trainer.global_step == self.number:
            self._kill(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.where == "save" and trainer.global_step == self.number:
            if self.by == signal.SIGKILL:
                checkpoint["bomb"] = Bomb()
            else:
                self._kill(trainer)


class EvenSteps(Callback):
    """Each optimizer step, of two micro-batches, takes as long, and each validation batch."""

    def __init__(self, step_seconds: float = 0.1, validation_seconds: float = 0.0, first_seconds: float = 0.0) -> None:
        self.step_seconds, self.validation_seconds, self.first_seconds = step_seconds, validation_seconds, first_seconds

    def on_before_backward(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(self.step_seconds / 2 + self.first_seconds)
        self.first_seconds = 0.0

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(self.validation_seconds)


def tiny_task(dropout: float = 0.0, **settings: Any) -> NextTokenTask:
    """A network of some thousand weights, the same at each call."""
    torch.manual_seed(5)
    gpt = GPT(TOKENIZER.vocab_size, CONTEXT, d_model=16, n_layers=2, n_heads=2, d_ff=32, dropout=dropout)
    defaults = {"learning_rate": 1e-2, "warmup_steps": 3, "sample_tokens": 4}
    task = NextTokenTask(gpt, **(defaults | settings))
    task.corpus = FACTS
    return task


def tiny_trainer(folder: Path, micro: int = 4, devices: int = 1, **settings: Any) -> Trainer:
    """A Trainer as the command line builds it, with every callback."""
    accumulate = GLOBAL_BATCH // (micro * devices)
    val_every_steps = settings.pop("val_every_steps", 5)
    throughput = Throughput()
    callbacks = [Stopping(), throughput, Progress(throughput), Summary(), Samples(), DivergenceGuard()]
    callbacks += [Checkpoints(every_steps=settings.pop("every_steps", 4)), *settings.pop("callbacks", [])]
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "devices": devices,
        "max_steps": 14,
        "max_epochs": -1,
        "accumulate_grad_batches": accumulate,
        "val_check_interval": val_every_steps * accumulate,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "gradient_clip_val": 1.0,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "logger": [MetricsLogger(folder, GLOBAL_BATCH * CONTEXT)],
        "plugins": [WholeCheckpointIO()],
        "callbacks": callbacks,
    }
    return Trainer(**(defaults | settings))


def main(argv: list[str] | None = None) -> None:
    """Trains as the arguments say; a test calls it with its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--micro", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--every-steps", type=int, default=4)
    parser.add_argument("--resume")
    parser.add_argument("--kill")
    parser.add_argument("--by", default="SIGKILL")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--step-seconds", type=float, default=0.0)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    where, _, number = (arguments.kill or "never:0").partition(":")
    trainer = tiny_trainer(
        arguments.folder,
        arguments.micro,
        arguments.devices,
        precision=arguments.precision,
        max_steps=arguments.steps,
        every_steps=arguments.every_steps,
        strategy="ddp" if arguments.devices > 1 else "auto",
        callbacks=[
            Kill(where, int(number), signal.Signals[arguments.by], arguments.rank),
            EvenSteps(arguments.step_seconds),
        ],
    )
    resume = arguments.resume
    if resume == "last":
        resume = newest_whole(arguments.folder / FOLDER)
        assert resume is not None
    trainer.fit(tiny_task(arguments.dropout), TinyData(arguments.micro), ckpt_path=resume)


if __name__ == "__main__":
    main()
