"""What the model learns: predict the next token. Loss, steps, scores, completions, and what a checkpoint carries."""

import hashlib
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from scratchlm.errors import BadValue, BrokenState
from scratchlm.model import checkpoint as checkpoint_file
from scratchlm.model.generate import generate
from scratchlm.model.gpt import GPT
from scratchlm.model.loss import mean_nats, nats_of_each
from scratchlm.text.tokenizer import Tokenizer, from_json
from scratchlm.training.loggers import log_metrics
from scratchlm.training.metrics import Nats
from scratchlm.training.optimizers import adamw, clip_in_step, learning_rate_at, set_rates
from scratchlm.training.sharding import ShardedStrategy, is_finite, shard, whole

Batch = dict[str, Any]

_SAMPLE_PROMPTS = ["", "Once upon a time", "The history of", "In this article"]  # chosen, not tuned


class NextTokenTask(LightningModule):
    """Pretraining: AdamW on the mean cross-entropy of the next token."""

    def __init__(
        self,
        gpt: GPT,
        compile: Literal["auto"] | bool = "auto",
        learning_rate: float = 1.8e-3,
        weight_decay: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.95,
        warmup_steps: int = 250,
        decay_steps: int | None = None,
        floor_fraction: float = 0.1,
        max_skipped_steps: int = 10,
        sample_prompts: list[str] | None = None,
        sample_tokens: int = 64,
        temperature: float = 0.8,
        top_k: int | None = 50,
    ) -> None:
        """Keeps the settings; rates are functions of them and the step, so a new value holds from the next step on.

        Args:
            gpt: The network to train.
            compile: Whether torch.compile makes kernels for the blocks before the first step; auto does where that
                saves more time than it takes. Validation and samples go on without them.
            learning_rate: Peak learning rate, reached at the end of the warm-up.
            weight_decay: AdamW's decay of matrices; embeddings, norms and biases do not decay.
            beta1: AdamW's averaging of the gradient.
            beta2: AdamW's averaging of the gradient's square.
            warmup_steps: Optimizer steps over which the rate rises in a line to its peak.
            decay_steps: Optimizer step at which the cosine has come down to the floor, counted from the start of the
                run; by default the last step. Training past it goes on at the floor.
            floor_fraction: Lowest learning rate of the decay, as a fraction of the peak.
            max_skipped_steps: A step whose loss or gradient is no finite number changes no weight; so many of them in a
                row stop the run.
            sample_prompts: Texts to complete at each validation; by default no text and three openings,
                an empty list for none.
            sample_tokens: Most new tokens of a sample or a prediction.
            temperature: Sampling temperature of samples and predictions; 0 takes the likeliest token.
            top_k: Samples and predictions draw from this many likeliest tokens; null for all.

        Raises:
            BadValue: A rate, fraction or count outside its range.
        """
        super().__init__()
        self.gpt = gpt
        self.compiles = compile  # `compile` is Lightning's own method
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = (beta1, beta2)
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.floor_fraction = floor_fraction
        self.max_skipped_steps = max_skipped_steps
        self.sample_prompts = _SAMPLE_PROMPTS if sample_prompts is None else sample_prompts
        self.sample_tokens = sample_tokens
        self.temperature = temperature
        self.top_k = top_k
        # Set from outside before the Trainer runs: the data module's plain facts (tokenizer JSON, bytes of each id,
        # sources, card, sizes), and the run's resolved configuration, for the checkpoint.
        self.corpus: dict[str, Any] = {}
        self.configuration: dict[str, Any] = {}
        self.step_metrics: dict[str, float] = {}  # filled by a step that logs, empty after any other batch
        self.validation_owed = False  # whether the validation due at this step was broken off; it comes with a resume
        self._seed = torch.initial_seed()
        self._tokenizer: Tokenizer | None = None
        self._check()

    def _check(self) -> None:
        positive = {"learning_rate": self.learning_rate, "sample_tokens": self.sample_tokens}
        fractions = {"floor_fraction": self.floor_fraction, "beta1": self.betas[0], "beta2": self.betas[1]}
        not_negative = {"weight_decay": self.weight_decay, "warmup_steps": self.warmup_steps}
        for name, value in positive.items():
            if not value > 0:
                raise BadValue(f"model.{name}={value}: must be above 0.")
        for name, value in fractions.items():
            if not 0 <= value <= 1 or (value == 1 and name != "floor_fraction"):
                raise BadValue(f"model.{name}={value}: a fraction, from 0 to {'1' if name[0] == 'f' else 'below 1'}.")
        for name, value in (not_negative | {"temperature": self.temperature}).items():
            if not value >= 0:
                raise BadValue(f"model.{name}={value}: must be 0 or above.")
        if self.max_skipped_steps < 1:
            raise BadValue(
                f"model.max_skipped_steps={self.max_skipped_steps}: must be 1 or above; 1 stops at the first."
            )
        if self.top_k is not None and self.top_k < 1:
            raise BadValue(f"model.top_k={self.top_k}: must be 1 or above, or null to draw from all tokens.")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise BadValue(
                f"model.decay_steps={self.decay_steps}: the decay begins when the warm-up ends, at "
                f"model.warmup_steps={self.warmup_steps}. Give more decay_steps or fewer warmup_steps."
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step learns from, over all processes."""
        return int(self.corpus["global_batch_size"]) * self.gpt.context_length

    @property
    def tokenizer(self) -> Tokenizer:
        """The corpus's tokenizer, parsed once."""
        if self._tokenizer is None:
            self._tokenizer = from_json(self.corpus["tokenizer"])
        return self._tokenizer

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the network only, so that all must run it together."""
        return isinstance(self.trainer.strategy, ShardedStrategy)

    def configure_model(self) -> None:
        """Cuts the network over the processes where the strategy is to."""
        if self.is_sharded:
            assert self.device_mesh is not None
            shard(self.gpt, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Optimizer:
        """AdamW; its rates are set at each step."""
        return adamw(self.gpt, self.learning_rate, self.weight_decay, self.betas)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 1."""
        decay_steps = self.trainer.max_steps if self.decay_steps is None else self.decay_steps
        return learning_rate_at(step, self.learning_rate, self.warmup_steps, decay_steps, self.floor_fraction)

    def setup(self, stage: str) -> None:
        """Refuses what would go wrong silently.

        Raises:
            BadValue: float16, whose loss scaling the clipping here does not undo.
        """
        if str(self.trainer.precision).startswith("16"):
            raise BadValue(
                f"trainer.precision={self.trainer.precision}: float16 is not supported. Choose bf16-mixed or 32-true."
            )

    def on_train_start(self) -> None:
        """Makes the counters that live on the device."""
        self._loss_sum = torch.zeros((), device=self.device)
        self._norm = torch.zeros((), device=self.device)
        self._is_bad = torch.zeros((), dtype=torch.bool, device=self.device)
        # Whether each step since the last that logged was left out, by its number modulo the length.
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by Lightning's connector
        self._left_out = torch.zeros(interval, dtype=torch.bool, device=self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout by the micro-batch, so that a resumed run drops what an undisturbed one would."""
        self.step_metrics = {}
        if self.gpt.settings["dropout"] > 0:
            key = f"{self._seed} {batch_idx} {self.global_rank}".encode()
            torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()))

    def loss(self, batch: Batch) -> Tensor:
        """Mean nats of a micro-batch's targets."""
        return mean_nats(self.gpt.hidden(batch["inputs_BT"]), self.gpt.head_VD, batch["targets_BT"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss, which is also summed over the micro-batches of a step."""
        loss = self.loss(batch)
        is_first = batch_idx % self.trainer.accumulate_grad_batches == 0
        self._loss_sum = loss.detach() if is_first else self._loss_sum + loss.detach()
        return loss

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips, keeps the norm before clipping, and sees to it that a step that is not finite changes nothing."""
        gradients = [p.grad for p in self.gpt.parameters() if p.grad is not None]
        self._norm = whole(torch.nn.utils.get_total_norm(gradients))
        self._is_bad = ~(torch.isfinite(self._norm) & torch.isfinite(self._loss_sum))
        if self.trainer.world_size > 1:  # each process has the loss of its own sequences
            told = self._is_bad.to(torch.uint8)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
            self._is_bad = told.bool()
        raw = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        by_value, most = gradient_clip_algorithm == "value", gradient_clip_val or None
        if by_value and most:
            torch.nn.utils.clip_grad_value_(self.gpt.parameters(), most)
        if raw.defaults["fused"] and not self.is_sharded:
            clip_in_step(raw, self._norm, None if by_value else most, self._is_bad)
            return
        if most and not by_value:
            torch.nn.utils.clip_grads_with_norm_(self.gpt.parameters(), most, self._norm)
        if bool(self._is_bad):  # waits for the device; a weight without a gradient is passed over by any optimizer
            for parameter in self.gpt.parameters():
                parameter.grad = None

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Optimizer | LightningOptimizer, optimizer_closure: Any = None
    ) -> None:
        """One step at the rates of that step, and what it measured; only a step that logs waits for the device."""
        step = self.trainer.global_step + 1
        learning_rate = self.learning_rate_at(step)
        raw = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        set_rates(raw, learning_rate, self.weight_decay, self.betas)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        interval = len(self._left_out)
        self._left_out[step % interval] = self._is_bad
        if step % interval == 0 or step == self.trainer.max_steps:
            mean = self._loss_sum / self.trainer.accumulate_grad_batches
            mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
            loss, norm = torch.stack([mean, self._norm]).tolist()
            self.step_metrics = {
                "train/loss": loss,
                "train/gradient_norm": norm,
                "train/learning_rate": learning_rate,
            }

    def take_skipped(self, after: int) -> list[int]:
        """Steps that were left out because their loss or gradient was no finite number; waits for the device.

        Args:
            after: The step up to which they are known, not before the last step that logged.
        """
        flags = self._left_out.tolist()
        return [step for step in range(after + 1, self.trainer.global_step + 1) if flags[step % len(flags)]]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs, after the callbacks have looked at the step."""
        if self.step_metrics:
            log_metrics(self.trainer, self.step_metrics)
        if self.trainer.global_step == self.trainer.max_steps:
            # Lightning validates at once when told to stop, and only once: so the last step is validated whether or
            # not val_check_interval falls on it.
            self.trainer.should_stop = True

    @property
    def skipped_last_step(self) -> bool:
        """Whether the step just made was left out; waits for the device."""
        return bool(self._is_bad)

    def require_finite(self) -> None:
        """Waits for the device.

        Raises:
            BrokenState: A weight or a number of the optimizer's state is not finite.
        """
        if not is_finite(self.gpt, self.trainer.optimizers[0]):
            raise self.divergence(f"a weight or its optimizer state is no finite number at step {self.global_step:,}")

    def divergence(self, what: str) -> BrokenState:
        """The one line for a training that has diverged, with the rate to try."""
        return BrokenState(
            f"model.learning_rate={self.learning_rate:g}: {what}. No checkpoint holds such a state. Try a third of the "
            f"rate: --ckpt_path last --model.learning_rate {self.learning_rate / 3:.2g}"
        )

    def on_validation_epoch_start(self) -> None:
        """Starts the scores at zero."""
        self._nats = self._new_nats()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores one batch."""
        self._score(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs loss, perplexity and bits a byte, over all and by source."""
        self._log_scores("val")

    def on_test_epoch_start(self) -> None:
        """Starts the scores at zero."""
        self._nats = self._new_nats()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores one batch."""
        self._score(batch)

    def on_test_epoch_end(self) -> None:
        """Logs loss, perplexity and bits a byte, over all and by source."""
        self._log_scores("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str]]:
        """Completes prompts: one dictionary each, with `prompt` and `completion`."""
        return [{"prompt": prompt, "completion": self.complete(prompt)} for prompt in batch["prompts"]]

    def complete(self, prompt: str, seed: int = 0) -> str:
        """Continues a text by up to `sample_tokens` tokens, or to the end of the text.

        Args:
            prompt: What to continue; empty starts a text.
            seed: Seed of the draws.

        Raises:
            BadValue: The tokenizer cannot spell the prompt.
        """
        tokenizer = self.tokenizer
        end = tokenizer.end_of_text_id
        ids = generate(
            self.gpt,
            tokenizer.encode(prompt) or [end],
            max_new_tokens=self.sample_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            seed=seed,
            stop_ids=[end],
            banned_ids=[special for special in tokenizer.special_ids if special != end],
        )
        return tokenizer.decode(list(ids))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what generate and a resume need beside Lightning's own state."""
        checkpoint[checkpoint_file.KEY] = checkpoint_file.block(
            self.gpt,
            self.corpus.get("tokenizer", ""),
            self.corpus.get("card", {}),
            self.global_step,
            self.global_step * self.corpus.get("global_batch_size", 0),
            configuration=self.configuration,
            validation_owed=self.validation_owed,
            order=self.corpus.get("order", {}),
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another network's or tokenizer's checkpoint, and places Lightning's loops at its step.

        Raises:
            BadValue: The checkpoint is not ours, or its sizes or its tokenizer differ from this run's.
        """
        block = checkpoint.get(checkpoint_file.KEY)
        if block is None:
            raise BadValue("--ckpt_path: not a checkpoint of scratchlm fit. Name one from a run's checkpoints folder.")
        checkpoint_file.require_same_shape(self.gpt.settings, block["gpt_settings"])
        if "tokenizer" in self.corpus:
            spelled = (self.corpus["tokenizer"], block["tokenizer_json"])
            now, before = ({"tokenizer.json": checkpoint_file.text_sha256(text)} for text in spelled)
            checkpoint_file.require_same_order(now, before, "of this run")
        _place_loops(checkpoint, self.trainer.accumulate_grad_batches, block.get("validation_owed", False))
        if self.trainer.state.fn != "fit":
            checkpoint["callbacks"] = {}  # Lightning would warn of those that only fit has

    def _new_nats(self) -> Nats:
        nats = Nats(self.corpus["sources"], self.corpus["bytes_of_ids"])
        return nats if self.device.type == "mps" else nats.to(self.device)  # Metal has no float64

    def _score(self, batch: Batch) -> None:
        nats_BT = nats_of_each(self.gpt.hidden(batch["inputs_BT"]), self.gpt.head_VD, batch["targets_BT"])
        self._nats.update(nats_BT, batch["targets_BT"], batch["source_BT"])

    def _log_scores(self, split: str) -> None:
        scores = {f"{split}/{name}": value for name, value in self._nats.compute().items()}
        fitting = self.trainer.state.fn == "fit"
        # Equal on all ranks already. For callback_metrics, and for what validate and test give back and print; inside
        # fit, Lightning would also log them at a step by its own count.
        self.log_dict(scores, logger=False if fitting else None, sync_dist=True)
        if fitting and not self.trainer.sanity_checking:
            log_metrics(self.trainer, scores)


def _place_loops(checkpoint: dict[str, Any], accumulate_grad_batches: int, validation_owed: bool) -> None:
    """Writes Lightning's loop counters as what they are here: functions of the step, amid one endless epoch.

    A validation that is owed is one that has begun, which Lightning goes back to.

    Lightning stores them as they stood in the hook that saved, counted in micro-batches: depending on the hook it would
    repeat or skip a validation, and with another micro-batch size or number of processes the next step would be short.
    """
    n = checkpoint["global_step"] * accumulate_grad_batches
    batches = {"ready": n, "started": n, "processed": n, "completed": n}
    epoch = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    loops = checkpoint["loops"]["fit_loop"]
    loops["epoch_loop.batch_progress"] = {"total": batches, "current": dict(batches), "is_last_batch": False}
    loops["epoch_progress"] = {"total": epoch, "current": dict(epoch)}
    n = int(validation_owed)
    begun = {"ready": n, "started": n, "processed": 0, "completed": 0}
    loops["epoch_loop.val_loop.batch_progress"] = {"total": begun, "current": dict(begun), "is_last_batch": False}


def task_of(module: LightningModule) -> NextTokenTask:
    """The module that a callback is handed, as what it is here."""
    assert isinstance(module, NextTokenTask)
    return module
