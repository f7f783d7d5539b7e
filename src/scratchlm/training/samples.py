"""What the model would write now: completions of the task's prompts at each validation."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from scratchlm.files.journal import Journal
from scratchlm.training.loggers import WandbRun, say
from scratchlm.training.run_log import SAMPLES_FILE
from scratchlm.training.task import task_of


class Samples(Callback):
    """Completes the task's prompts at each validation: into samples.jsonl, and W&B as a table."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the prompts that the tokenizer can spell, and says which it cannot."""
        self._journal = Journal(Path(trainer.default_root_dir) / SAMPLES_FILE)
        task = task_of(pl_module)
        unknown = {prompt: task.tokenizer.unknown_characters(prompt) for prompt in task.sample_prompts}
        self._prompts = [prompt for prompt, characters in unknown.items() if not characters]
        if left_out := [repr(prompt) for prompt, characters in unknown.items() if characters]:
            say(f"model.sample_prompts: the tokenizer cannot spell {', '.join(left_out)}: no samples of that.")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Completes each prompt; every validation draws with the same seeds."""
        task, step = task_of(pl_module), trainer.global_step
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self._prompts:
            return
        if not (trainer.is_global_zero or task.is_sharded):  # all must run a network that is cut over them
            return
        # In float32: autocast would round all weights anew for each token, which costs more than it saves.
        completions = [task.complete(prompt, seed) for seed, prompt in enumerate(self._prompts)]
        if not trainer.is_global_zero:
            return
        tokens = step * task.tokens_per_step
        rows = list(zip(self._prompts, completions, strict=True))
        for prompt, completion in rows:
            self._journal.append({"step": step, "tokens": tokens, "prompt": prompt, "completion": completion})
        self._journal.close()
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                logger.log_samples([[step, tokens, *row] for row in rows], step)
