"""What only a CUDA device can show."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tests.training.tiny_run import TinyData, tiny_task, tiny_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Strict(Callback):
    """Has torch refuse to wait for the device, from the second step on."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if trainer.global_step >= 2 else "default")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_that_logs_nothing_does_not_wait_for_the_device(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accelerator": "cuda", "precision": "bf16-mixed", "every_steps": 100}
    trainer = tiny_trainer(
        tmp_path, max_steps=8, log_every_n_steps=100, val_every_steps=100, callbacks=[Strict()], **settings
    )
    trainer.fit(tiny_task(sample_prompts=[]), TinyData())
    assert trainer.global_step == 8
