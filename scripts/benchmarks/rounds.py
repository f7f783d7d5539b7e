"""Turns of a real `scratchlm fit`: a callback that lets it make as many steps as it is told, and times them.

`bench.py` names it in the YAML of the run (`trainer.callbacks`), so what is timed is the command line's own Trainer.
"""

import time
from typing import Any

import torch
from benchmarks.turns import Orders
from lightning.pytorch import Callback, LightningModule, Trainer

from scratchlm.training.checkpoints import Checkpoints


class Rounds(Callback):
    """Stops between two steps until an order comes; see `steps` and `bare` in `_obey`."""

    def __init__(self, orders: int, answers: int, began: float) -> None:
        """Takes up the orders.

        Args:
            orders: File descriptor that orders are read from.
            answers: File descriptor that answers go to.
            began: When the process was started, by `time.time()`.
        """
        self._orders = Orders(orders, answers)
        self._process_began = began
        self._until: int | None = None  # step after which to stop
        self._bare: Bare | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Says what is trained; the clock of the first turn then runs through all that a start does."""
        gpt: Any = pl_module.gpt
        embeddings = {id(p) for m in gpt.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
        embeddings.add(id(gpt.head_VD))
        beyond = sum(p.numel() for p in gpt.parameters() if id(p) not in embeddings)
        self._orders.answer(
            parameters=gpt.n_parameters,
            beyond_embeddings=beyond,
            precision=str(trainer.precision),
            micro_batch=pl_module.corpus["global_batch_size"] // trainer.accumulate_grad_batches,
            tokens_per_step=pl_module.tokens_per_step,
            torch=torch.__version__,
            threads=torch.get_num_threads(),
        )
        self._obey(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends a turn where its steps are made; at a batch's end, other callbacks would have yet to do their part."""
        self._go_on(trainer)
        if trainer.global_step == self._until and batch_idx % trainer.accumulate_grad_batches == 0:
            _wait_for_device(pl_module.device)
            saving = _saving_seconds(trainer) - self._saving_before
            self._answer(pl_module, time.perf_counter() - self._began, paused=self._paused + saving)
            self._obey(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the loss."""
        self._loss = outputs["loss"]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a pause that ends with the next batch of training."""
        self._pause_began: float | None = time.perf_counter()

    def _go_on(self, trainer: Trainer) -> None:
        if self._pause_began is not None:
            self._paused += time.perf_counter() - self._pause_began
            self._pause_began = None

    def _obey(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the steps of orders {"bare": n} here; lets the Trainer go on at {"steps": n}."""
        while (order := self._orders.next()) and "bare" in order:
            self._bare = self._bare or Bare(trainer, pl_module)
            _wait_for_device(pl_module.device)
            began = time.perf_counter()
            self._loss = self._bare.steps(order["bare"])
            _wait_for_device(pl_module.device)
            self._answer(pl_module, time.perf_counter() - began)
        self._until = trainer.global_step + order["steps"]
        self._paused, self._pause_began = 0.0, None
        self._saving_before = _saving_seconds(trainer)
        self._began = time.perf_counter()

    def _answer(self, pl_module: LightningModule, seconds: float, paused: float = 0.0) -> None:
        on_gpu = pl_module.device.type == "cuda"
        self._orders.answer(
            seconds=seconds,
            paused=paused,
            loss=float(self._loss),
            since_start=time.time() - self._process_began,
            peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        )
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()


class Bare:
    """A loop with nothing in it, over the module, the optimizer and the data of the fit that it interrupts."""

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer, self._task, self._optimizer = trainer, pl_module, trainer.optimizers[0]
        self._data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning's data connector
        self._batches = iter(self._data.train_dataloader())

    def steps(self, n: int) -> torch.Tensor:
        """Forward, backward, clip and AdamW, n times; gives the last loss."""
        task: Any = self._task
        optimizer, trainer, data = self._optimizer, self._trainer, self._data
        for _ in range(n):
            optimizer.zero_grad()
            for micro in range(trainer.accumulate_grad_batches):
                batch = data.transfer_batch_to_device(next(self._batches), task.device, 0)
                batch = data.on_after_batch_transfer(batch, 0)
                with trainer.precision_plugin.train_step_context():
                    loss: torch.Tensor = task.training_step(batch, micro)
                (loss / trainer.accumulate_grad_batches).backward()
            task.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
            optimizer.step()
        return loss.detach()


def _saving_seconds(trainer: Trainer) -> float:
    return sum(c.saving_seconds for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints))


def _wait_for_device(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
