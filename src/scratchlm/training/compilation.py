"""Whether a run compiles its blocks, by what compiling would cost and save; and the compiling itself."""

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from scratchlm.errors import BadValue, BrokenState
from scratchlm.training.device import wait_for
from scratchlm.training.loggers import say
from scratchlm.training.task import NextTokenTask, task_of

# What compiling a block costs where torch's cache knows nothing of it, in seconds, and the share of a step that it
# saves. CPU: 12 to 20 s and 0.06 to 0.13, measured on 2 cores with AMX over 5M to 218M parameters. CUDA: not measured,
# taken from what others report of such networks. Metal: torch's compiler is new there, and has been wrong.
_COST_SECONDS = {"cpu": 20.0, "cuda": 60.0}
_SAVED_FRACTION = {"cpu": 0.1, "cuda": 0.2}


class Compilation(Callback):
    """Decides at the start of training, once for a run, and compiles before the first step."""

    def __init__(self, choices: dict[str, Any], record: Callable[[], None]) -> None:
        """Keeps the run's choices.

        Args:
            choices: What the machine has chosen for this run; its key `compile` counts where `auto` is asked for.
            record: Writes the choices down.
        """
        self.choices = choices
        self.record = record

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compiles where that was asked for, or pays.

        Raises:
            BadValue: Compiling was asked for, and there is no compiler.
            BrokenState: It was asked for, and failed.
        """
        task = task_of(pl_module)
        asked = task.compiles
        if asked == "auto":
            chosen = self.choices.get("compile")
            if chosen is None:
                chosen = trainer.strategy.broadcast(self._choose(trainer, task))
                self._note(chosen)
            asked = bool(chosen)
        elif asked and (missing := missing_compiler(task.device.type)):
            raise BadValue(f"model.compile={asked}: {missing}, or leave model.compile out.")
        if not asked:
            return
        task.gpt.compile_blocks()
        if task.is_sharded:  # whose gradients cannot be taken by themselves: compiled in the first step
            return
        start = time.monotonic()
        try:
            _learn_once(task, trainer)
        except Exception as error:  # of the compiler, which has many, and runs others
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if task.compiles != "auto":
                raise BrokenState(
                    f"model.compile={task.compiles}: compiling failed ({reason}). Say --model.compile false."
                ) from error
            task.gpt.compile_blocks(False)
            self.choices["compile_reason"] = f"compiling failed ({reason})"
            self._note(False)
            say(f"compiling failed ({reason}); going on without")
        else:
            say(f"compiled in {time.monotonic() - start:.1f} s")

    def _choose(self, trainer: Trainer, task: NextTokenTask) -> bool:
        """Times a micro-batch as it is, and weighs what would be saved until the end against the cost."""
        kind = task.device.type
        if kind not in _COST_SECONDS or task.is_sharded:
            return False
        _learn_once(task, trainer)  # the first takes several times as long: kernels are chosen, memory is first touched
        start = time.monotonic()
        _learn_once(task, trainer)
        seconds = time.monotonic() - start
        left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches * seconds
        saved, cost = _SAVED_FRACTION[kind] * left, _COST_SECONDS[kind]
        pays = saved > cost
        missing = missing_compiler(kind) if pays else None
        reason = (
            f"about {cost:.0f} s where torch's cache does not have it, to save about {saved:,.0f} of {left:,.0f} s"
            f"{'; but ' + missing if missing else ''}"
        )
        say(f"{'compiling' if pays and not missing else 'not compiled'}: {reason}")
        self.choices["compile_reason"] = reason
        return pays and not missing

    def _note(self, chosen: bool) -> None:
        self.choices["compile"] = chosen
        self.record()


def missing_compiler(device_type: str) -> str | None:
    """What torch.compile lacks on this machine to make kernels for a device, and the cure; None: nothing."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # imports torch's compiler: a second or two
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler is installed: install g++ or clang++"
    return "triton is not installed: pip install triton" if device_type == "cuda" and not has_triton() else None


def _learn_once(task: NextTokenTask, trainer: Trainer) -> None:
    """One micro-batch forward and backward, of which nothing stays: no gradient, and no random number is taken."""
    n_sequences = task.corpus["global_batch_size"] // (trainer.accumulate_grad_batches * trainer.world_size)
    ids_BT = torch.zeros(n_sequences, task.gpt.context_length, dtype=torch.long, device=task.device)
    devices = [task.device] if task.device.type == "cuda" else []
    with torch.random.fork_rng(devices), trainer.precision_plugin.train_step_context():
        loss = task.loss({"inputs_BT": ids_BT, "targets_BT": ids_BT})
        torch.autograd.grad(loss, list(task.gpt.parameters()))  # no .backward(): DDP would exchange these gradients
    wait_for(task.device)
