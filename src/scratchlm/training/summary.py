"""What is about to be trained, on what, and for how long."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from scratchlm.training import device
from scratchlm.training.free_memory import free_bytes
from scratchlm.training.loggers import WandbRun, say
from scratchlm.training.task import NextTokenTask, task_of


class Summary(Callback):
    """Says at the start what will be trained, on what, and for how long; and shows W&B the corpus card."""

    _started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the summary."""
        self._started = True
        task = task_of(pl_module)
        say("\n".join(f"{name:<16}{value}" for name, value in self.lines(trainer, task).items()))
        self._warn_of_memory(trainer, task)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun) and (rows := _card_rows(task.corpus.get("card", {}))):
                columns = list(rows[0])
                logger.log_rows("corpus/card", columns, [list(row.values()) for row in rows], trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so where the run was complete to begin with."""
        if not self._started:
            step, steps = f"{trainer.global_step:,}", f"{trainer.max_steps:,}"
            say(f"step {step} of {steps} is done already: nothing to train. Raise trainer.max_steps to go on.")

    def _warn_of_memory(self, trainer: Trainer, task: NextTokenTask) -> None:
        """Says so where the tensors, whose weights are there already, need more than is free."""
        micro, need = self._micro_batch(trainer, task)
        more = need - 4 * task.gpt.n_parameters
        free = free_bytes(task.device, trainer.world_size // trainer.num_nodes)
        if more > free and not task.is_sharded:
            say(
                f"warning: data.micro_batch_size={micro}: training takes {more / 1e9:.2f} GB more, computed, and "
                f"{free / 1e9:.2f} GB are free. If it runs out, say data.micro_batch_size=auto."
            )

    def _micro_batch(self, trainer: Trainer, task: NextTokenTask) -> tuple[int, int]:
        """Sequences at once, and the bytes that training them takes."""
        micro = task.corpus["global_batch_size"] // (trainer.accumulate_grad_batches * trainer.world_size)
        return micro, task.gpt.training_bytes(micro, str(trainer.precision) == "bf16-mixed")

    def lines(self, trainer: Trainer, task: NextTokenTask) -> dict[str, str]:
        """The summary, by what each line says."""
        gpt, settings = task.gpt, task.gpt.settings
        sequences, context = task.corpus["global_batch_size"], gpt.context_length
        micro, need = self._micro_batch(trainer, task)
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
            "device": f"{device.name(task.device)}, {trainer.precision}",
            "peak": str(device.peak(task.device, str(trainer.precision))),
            "memory": f"{need / 1e9:.2f} GB of tensors on each device, computed; "
            "a process takes more, which the lines below measure",
        }


def _card_rows(card: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a source, one column for each fact that every source has."""
    sources = card.get("sources", [])
    shared = [key for key in (sources[0] if sources else {}) if all(key in facts for facts in sources)]
    return [{key: _cell(facts[key]) for key in shared} for facts in sources]


def _cell(fact: Any) -> str | float:
    """A column of a W&B table has one type: numbers stay, the rest is text."""
    is_number = isinstance(fact, int | float) and not isinstance(fact, bool)
    return fact if is_number else "" if fact is None else str(fact)
