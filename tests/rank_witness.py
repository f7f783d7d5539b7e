"""Callbacks for runs of several processes: one writes down what each process saw, one makes a process fail."""

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.distributed import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from scratchlm.errors import BadValue


class Witness(Callback):
    """Appends the sequences of each micro-batch to rank-R.jsonl, and how often gradients have been sent."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.n_exchanges = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        self.file = (self.folder / f"rank-{trainer.global_rank}.jsonl").open("a")
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, self._mean)

    def _mean(self, state: None, bucket: GradBucket) -> Future[Tensor]:
        self.n_exchanges += 1
        sent = torch.distributed.all_reduce(bucket.buffer() / torch.distributed.get_world_size(), async_op=True)
        return sent.get_future().then(lambda done: done.value()[0])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rows = [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in batch["inputs_BT"]]
        step = batch_idx // trainer.accumulate_grad_batches + 1
        self.file.write(json.dumps({"step": step, "rows": rows, "exchanges": self.n_exchanges}) + "\n")
        self.file.flush()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.file.close()


class Reader(Callback):
    """Appends the ids that the network was given in each micro-batch to a file, targets and all."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rows = torch.cat([batch["inputs_BT"], batch["targets_BT"][:, -1:]], dim=1)
        step = batch_idx // trainer.accumulate_grad_batches + 1
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "rows": rows.tolist()}) + "\n")


class Fault(Callback):
    """Makes one process fail in a step: by a mistake, a bug, an infinite loss, or a signal to itself."""

    def __init__(self, rank: int, step: int, kind: str) -> None:
        self.rank, self.step, self.kind = rank, step, kind

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        vars(pl_module).pop("loss", None)
        if trainer.global_rank != self.rank or batch_idx != (self.step - 1) * trainer.accumulate_grad_batches:
            return
        if " in validation" in self.kind:
            return
        if self.kind == "infinite loss":
            inner = pl_module.loss
            vars(pl_module)["loss"] = lambda batch: inner(batch) + float("inf")
            return
        if self.kind == "mistake":
            raise BadValue("fault=1: made by the test. Do not make it.")
        if self.kind == "bug":
            raise KeyError("made by the test")
        os.kill(os.getpid(), signal.Signals[self.kind])

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        name, _, where = self.kind.partition(" in validation of ")
        if where and trainer.global_step == self.step and trainer.global_rank == self.rank:
            if where == "all":  # its loader's workers too
                os.killpg(0, signal.Signals[name])
            else:
                os.kill(os.getpid(), signal.Signals[name])
