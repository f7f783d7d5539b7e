"""The settings of a run: what cannot work is refused before a file is written, text is read or a device is touched."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from packaging.version import InvalidVersion, Version
from torch import Tensor

from scratchlm.data.pretraining import PretrainingData
from scratchlm.errors import BadValue, BrokenState
from scratchlm.model import checkpoint as checkpoint_file
from scratchlm.model.gpt import GPT
from scratchlm.training.checkpoints import Checkpoints
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


def require_resumable(config: Namespace, path: Path) -> None:
    """Refuses a checkpoint out of which training cannot go on, before Lightning stumbles over it.

    Args:
        config: The configuration of fit.
        path: The checkpoint, verified, and of the shape and order of this run.

    Raises:
        BrokenState: The state of the optimizer or of the loops is missing, or of another form than this run's.
    """
    content = checkpoint_file.load(path, mmap=True, is_verified=True)
    form = {
        "global_step": 0,
        "epoch": 0,
        "pytorch-lightning_version": "",
        "callbacks": _Partial(Checkpoints=Checkpoints().state_dict()),
        "lr_schedulers": [],
        "PretrainingData": {},
        "loops": {"fit_loop": _FitLoop(Trainer, max_epochs=-1).state_dict()},  # type: ignore[arg-type]  # needs none
        "optimizer_states": [_form_of_optimizer(config, content[checkpoint_file.KEY]["gpt_settings"])],
    }
    for fault in chain(_faults(content, form, ""), _faults_of_version(content)):
        raise BrokenState(f"{path}: cannot be gone on from: {fault}. Use another checkpoint.")
    optimizing = content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    steps = {
        "its 'scratchlm' block": content[checkpoint_file.KEY]["step"],
        "global_step": content["global_step"],
        "its loops": optimizing["optimizer"]["step"]["total"]["completed"],
    }
    if len(set(steps.values())) > 1:
        said = ", ".join(f"{step} in {place}" for place, step in steps.items())
        raise BrokenState(f"{path}: cannot be gone on from: it names several steps: {said}. Use another checkpoint.")


def _faults_of_version(content: dict[str, Any]) -> Iterator[str]:
    try:
        Version(content["pytorch-lightning_version"])
    except InvalidVersion:
        yield f"pytorch-lightning_version={content['pytorch-lightning_version']} is no version"


def _form_of_optimizer(config: Namespace, gpt_settings: dict[str, Any]) -> dict[str, Any]:
    """What the optimizer's part of a checkpoint looks like: the groups' parameters, and the shapes of their moments."""
    model = config.model.as_dict()
    del model["gpt"]
    with torch.device("meta"):
        optimizer = NextTokenTask(GPT(**gpt_settings), **model).configure_optimizers()
    groups, defaults = optimizer.param_groups, optimizer.defaults
    flags = {key for key, value in defaults.items() if isinstance(value, bool | None)}  # torch fills in what is missing
    shapes = [parameter.shape for group in groups for parameter in group["params"]]
    numbers = iter(range(len(shapes)))
    return {
        "state": _Partial({number: _Moments(shape) for number, shape in enumerate(shapes)}),
        "param_groups": [
            {key: [next(numbers) for _ in group[key]] if key == "params" else None for key in group.keys() - flags}
            for group in groups
        ],
    }


class _Partial(dict[Any, Any]):
    """A form of which keys may be missing."""


class _Moments(NamedTuple):
    """Whatever an optimizer keeps of a parameter: numbers, and tensors of its shape."""

    shape: torch.Size


def _faults(found: Any, form: Any, where: str) -> Iterator[str]:
    """Where a plain value is not of a form: its keys missing, lists of another length, other types, other shapes."""
    if isinstance(form, _Moments):
        tensors = [value for value in found.values() if isinstance(value, Tensor)] if isinstance(found, dict) else None
        if tensors is None or any(tensor.ndim and tensor.shape != form.shape for tensor in tensors):
            yield f"{where} is not of the shape {tuple(form.shape)}"
    elif isinstance(form, dict) and isinstance(found, dict):
        for key, inner in form.items():
            place = f"{where}.{key}" if where else str(key)
            if key in found:
                yield from _faults(found[key], inner, place)
            elif not isinstance(form, _Partial):
                yield f"{place} is missing"
    elif isinstance(form, list) and isinstance(found, list):
        if form and len(found) != len(form):
            yield f"{where} has {len(found)} entries, not {len(form)}"
        for number, (value, inner) in enumerate(zip(found, form, strict=False)):
            yield from _faults(value, inner, f"{where}[{number}]")
    elif form is not None and type(found) is not (kind := dict if isinstance(form, dict) else type(form)):
        yield f"{where} is {type(found).__name__}, not {kind.__name__}"
