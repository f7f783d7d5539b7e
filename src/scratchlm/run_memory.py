"""The memory of a run: the micro-batch that fits in it, and what to lower where it ran out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.accelerators import CUDAAccelerator

from scratchlm.data.bins import read_manifest
from scratchlm.data.pretraining import PretrainingData
from scratchlm.errors import BadValue, BrokenState, UserError
from scratchlm.model import checkpoint as checkpoint_file
from scratchlm.model.gpt import GPT
from scratchlm.training.fitting import OUT_OF_MEMORY, Attempt, as_chosen


def choose_micro_batch_size(config: Namespace, choices: dict[str, Any], n_processes: int) -> dict[str, Any]:
    """The largest micro-batch that fits; as when the run began, where that still holds.

    Args:
        config: The configuration of fit, its device and precision chosen.
        choices: What the machine chose when the run began; empty for a new run.
        n_processes: Processes that will share each batch.

    Returns:
        What `training.fitting.as_chosen` gives, for choices.json.

    Raises:
        BadValue: Not even one sequence fits, or attempts are made for no such device or precision.
    """
    trainer = config.trainer
    if trainer.accelerator not in ("cuda", "mps", "cpu") or trainer.precision not in ("bf16-mixed", "32-true"):
        raise BadValue(
            f"data.micro_batch_size=auto: is not found for trainer.accelerator={trainer.accelerator} with "
            f"trainer.precision={trainer.precision}. Give a whole number, or leave both to the machine."
        )
    wanted = Attempt(
        gpt=config.model.gpt.as_dict() | {"vocab_size": vocab_size(config)},
        device=_first_device(trainer),
        autocast=trainer.precision == "bf16-mixed",
        n_processes=n_processes,
        n_nodes=trainer.num_nodes,
    )
    sizes = PretrainingData(**config.data.as_dict()).micro_batch_sizes(n_processes)
    return as_chosen(choices.get("micro_batch_size"), wanted, sizes)


@contextmanager
def memory_advice(config: Namespace) -> Iterator[None]:
    """Turns running out of memory into the computed need and what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        has_words = any(words in str(error) for words in OUT_OF_MEMORY)
        if isinstance(error, UserError) or not (isinstance(error, MemoryError) or has_words):
            raise
        data, gpt, trainer = config.data, config.model.gpt, config.trainer
        at_once = 1 if data.micro_batch_size == "auto" else data.micro_batch_size
        device = torch.device(trainer.accelerator if trainer.accelerator in ("mps", "cpu") else "cuda")
        with torch.device("meta"):
            network = GPT(vocab_size=vocab_size(config), **gpt)
        need = network.training_bytes(at_once, trainer.precision == "bf16-mixed", device)
        cures = [f"a smaller data.context_length={data.context_length}", f"model.gpt.d_model={gpt.d_model}"]
        if not gpt.activation_checkpointing:
            cures.insert(0, "model.gpt.activation_checkpointing=true")
        if at_once > 1:
            cures.insert(0, f"a smaller data.micro_batch_size={at_once} (auto finds the largest that fits)")
        raise BrokenState(
            f"out of memory: this step needs about {need / 1e9:.1f} GB. Try, in this order, {', '.join(cures)} or "
            f"model.gpt.n_layers={gpt.n_layers}."
        ) from error


def vocab_size(config: Namespace) -> int:
    """Ids of the tokenizer: of the checkpoint that predict reads, else of the bins."""
    if config.data.checkpoint:
        return int(checkpoint_file.read(config.data.checkpoint).gpt_settings["vocab_size"])
    return int(read_manifest(config.data.folder)["vocab_size"])


def _first_device(trainer: Namespace) -> str:
    """The device of the first process, as torch spells it; the others' are taken to be alike."""
    if trainer.accelerator != "cuda":
        return str(trainer.accelerator)
    devices = [0] if trainer.devices == "auto" else CUDAAccelerator.parse_devices(trainer.devices)
    return f"cuda:{devices[0] if devices else 0}"
