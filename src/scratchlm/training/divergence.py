"""The guard against a training that runs away."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from scratchlm.training.loggers import say
from scratchlm.training.task import task_of

_SMOOTHING = 0.9  # share that a new loss leaves to the earlier ones; chosen, not tuned
_ALARMING = 3.0  # times the lowest smoothed loss; chosen, not tuned


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
        task = task_of(pl_module)
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
