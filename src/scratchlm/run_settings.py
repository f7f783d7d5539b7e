"""The settings of a run: what cannot work is refused before a file is written, text is read or a device is touched."""

from typing import Any

import torch
from jsonargparse import Namespace

from scratchlm.data.pretraining import PretrainingData
from scratchlm.errors import BadValue
from scratchlm.model.gpt import GPT
from scratchlm.training.task import NextTokenTask

_ONLY = {  # Trainer settings that would break the order of training, and the values that do not
    "limit_train_batches": (None, 1.0),
    "overfit_batches": (0, 0.0),
    "reload_dataloaders_every_n_epochs": (0,),
}


def check_trainer_keys(config: Namespace, subcommand: str) -> None:
    """Refuses Trainer settings that are decided elsewhere or would break the order of training.

    Args:
        config: The configuration of the verb.
        subcommand: The verb.

    Raises:
        BadValue: The first such key.
    """
    trainer = config.trainer
    if trainer.accumulate_grad_batches != 1:
        raise BadValue(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: follows from the batch sizes and "
            "cannot be set. Set data.global_batch_size and data.micro_batch_size, both in sequences."
        )
    for key, allowed in _ONLY.items():
        if trainer[key] not in allowed:
            raise BadValue(
                f"trainer.{key}={trainer[key]}: would train on the same sequences again, or cut steps short. "
                "Leave it out; trainer.max_steps makes a run short."
            )
    if isinstance(trainer.strategy, str) and trainer.strategy not in ("auto", "fsdp") and trainer.strategy[:3] != "ddp":
        raise BadValue(
            f"trainer.strategy={trainer.strategy}: not known to keep the weights, groups of the optimizer and one-file "
            "checkpoints of a single device. Choose auto, ddp (a copy of the network on each device) or fsdp (cut over "
            "the devices)."
        )
    if (trainer.gradient_clip_val or 0) < 0:
        raise BadValue(f"trainer.gradient_clip_val={trainer.gradient_clip_val}: is a norm. Give 0 or more, or null.")
    if trainer.log_every_n_steps is not None and trainer.log_every_n_steps < 1:
        raise BadValue(f"trainer.log_every_n_steps={trainer.log_every_n_steps}: give a whole number from 1.")
    every = trainer.val_check_interval
    if not isinstance(every, int) or every < 1:
        raise BadValue(f"trainer.val_check_interval={every}: counts optimizer steps here. Give a whole number from 1.")
    if subcommand != "fit" or trainer.fast_dev_run:
        return
    lengths = {
        "trainer.max_steps": None if trainer.max_steps == -1 else trainer.max_steps,
        "trainer.max_epochs": trainer.max_epochs,
        "data.train_tokens": config.data.train_tokens,
    }
    given = {key: value for key, value in lengths.items() if value is not None}
    if len(given) != 1:
        said = " and ".join(f"{key}={value}" for key, value in given.items()) or "none of " + ", ".join(lengths)
        raise BadValue(f"{said}: exactly one sets the length of a run. {'Remove the others' if given else 'Give one'}.")
    for key, value in given.items():
        if value < 1:
            raise BadValue(f"{key}={value}: a run has at least one step. Give a whole number from 1.")


def check_values(config: Namespace, n_processes: int) -> None:
    """Builds data and model on paper: a value that cannot work is refused before a file is written or text is read.

    Args:
        config: The configuration of the verb.
        n_processes: Processes that will share each batch.

    Raises:
        BadValue: The first such value.
    """
    data = PretrainingData(**config.data.as_dict())
    if data.micro_batch_size == "auto":
        data.micro_batch_sizes(n_processes)
    else:
        data.accumulation(n_processes)
    model = config.model.as_dict()
    with torch.device("meta"):
        gpt = GPT(**model.pop("gpt"), vocab_size=config.data.vocab_size)
    NextTokenTask(gpt, **model)


def require_same_order(config: Namespace, begun_with: dict[str, Any]) -> None:
    """Refuses to go on with what decides which sequences a step sees, and how many, changed."""
    for key in ("seed", "windows", "stride_tokens", "global_batch_size"):
        before = begun_with.get("data", {}).get(key, config.data[key])
        if config.data[key] != before:
            raise BadValue(
                f"data.{key}={config.data[key]}: the run was begun with {before}, and would not go on in the same "
                "order. Give that value, or start a run in another trainer.default_root_dir."
            )
